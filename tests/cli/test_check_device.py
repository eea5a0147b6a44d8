"""The check of a device: it walks through on a CPU, a part's failure or lack of time stops no other."""

import json

import pytest
import torch

from uda.cli.main import main
from uda.device_check import PARTS, Finding, Outcome, Setup, run_check, run_part
from uda.device_check import report as device_report
from uda.device_check.report import table_lines


def tool(*arguments):
    return main(["check-device", *arguments])


#: `methods` is walked through by tests/cuda, `ranks` starts three Pythons.
QUICK = [name for name in PARTS if name not in ("methods", "ranks")]


def walk(tmp_path, capsys, names):
    only = [word for name in names for word in ("--only", name)]
    assert tool("--device", "cpu", "--json", str(tmp_path / "check.json"), *only) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines()) and "nothing failed" in said
    found = json.loads((tmp_path / "check.json").read_text())
    assert list(found["parts"]) == list(names)
    assert all(part["status"] == "ok" and part["findings"] for part in found["parts"].values()), found
    assert found["machine"]["torch"] == torch.__version__ and found["machine"]["processor"]
    return found


@pytest.mark.slow
def test_the_check_walks_through_on_a_cpu_and_marks_what_it_did_not_measure(tmp_path, capsys):
    found = walk(tmp_path, capsys, QUICK)
    rates = [finding["figures"] for finding in found["parts"]["loader"]["findings"]]
    assert rates and all(value is None for figures in rates for value in figures.values())
    assert [finding["what"] for finding in found["parts"]["resume"]["findings"]] == ["sgd", "adamw"]


@pytest.mark.slow
def test_the_whole_check_walks_through_on_a_cpu(tmp_path, capsys):
    walk(tmp_path, capsys, list(PARTS))


@pytest.mark.slow
def test_a_part_that_fails_or_has_no_time_stops_no_other(tmp_path):
    """A device that is not there fails every part of it in words; time is left for one part alone."""
    seconds = PARTS["phases"].seconds
    assert seconds < device_report.FITS * PARTS["methods"].seconds
    lines = []
    missing = Setup("cuda:63", command=main)
    outcomes = [run_part(name, missing, 60) for name in ("phases", "resume")]
    assert [outcome.status for outcome in outcomes] == ["failed"] * 2 and all(outcome.failed for outcome in outcomes)
    assert all("runtime.device: 'cuda:63'" in outcome.error for outcome in outcomes)
    left = run_check(Setup("cpu", command=main), ["methods", "phases"], seconds, tmp_path / "check.json", lines.append)
    assert [outcome.status for outcome in left] == ["left out: time", "ok"] and not any(part.failed for part in left)
    assert "  left out: time, 0 s" in lines


@pytest.mark.parametrize(("finding", "code"), [(Finding("mcd, fp16", {}), 0), (Finding("mcd, fp16", {}, "far"), 1)])
def test_the_exit_code_says_whether_anything_is_wrong(monkeypatch, capsys, finding, code):
    outcome = Outcome("methods", "ok", findings=[finding])
    monkeypatch.setattr("uda.device_check.report.run_part", lambda name, setup, seconds, say: outcome)
    assert tool("--device", "cpu", "--only", "methods") == code
    assert ("failed: methods" if code else "nothing failed") in capsys.readouterr().out


def test_a_part_is_ended_when_its_time_is_up():
    outcome = run_part("methods", Setup("cpu", command=main), 0.01)
    assert outcome.status == "cut short: time" and not outcome.findings and outcome.failed, "nothing was found at all"


def test_a_finding_in_lines():
    found = Finding("train resnet101, batch 128, fp32", {"images a second": 1234.5, "peak GiB": None}, "too slow")
    assert table_lines(found) == [
        "  train resnet101, batch 128, fp32",
        f"{'':34}images a second 1,234, peak GiB -",
        "    WRONG: too slow",
    ]
    assert table_lines(Finding("mcd, fp32", {"loss": 2.5})) == [f"{'  mcd, fp32':34}loss 2.5"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--only", "metods"], 2, "did you mean 'methods'"),
        (["--device", "cuda:63"], 2, "'cuda:63'"),
        (["--list"], 0, "phases     Whether each phase"),
    ],
)
def test_the_command_line(capsys, arguments, code, message):
    assert tool(*arguments) == code
    said = capsys.readouterr()
    assert message in said.out + said.err
