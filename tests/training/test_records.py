"""The records of a run: kept in its checkpoint, copied into files, and results that agree with them."""

import json

import pytest

from uda.core.errors import UserError
from uda.training.records import REPORTS, SOURCE, Records, read_results

ROUND = REPORTS["rounds"]


@pytest.fixture
def records(tmp_path):
    """Those of a source model and three rounds, with their files."""
    found = Records(tmp_path)
    found.write(SOURCE, {"class_mean": 0.1})
    for index in range(3):
        found.write(ROUND.format(index), {"round": index, "loss": 1 / (index + 3), "class_mean": float("nan")})
    return found


def test_records_are_as_json_holds_them(records):
    assert [record["round"] for record in records.reports()] == [0, 1, 2]
    assert records.reports()[0] == {"round": 0, "loss": 1 / 3, "class_mean": None}
    assert records.get(SOURCE) == {"class_mean": 0.1} and records.get(ROUND.format(3)) is None
    assert Records(records.folder, records.state()).reports() == records.reports()


def test_epochs_are_reports_too(tmp_path):
    found = Records(tmp_path)
    for epoch in range(101):
        found.write(REPORTS["epochs"].format(epoch), {"epoch": epoch})
    assert [record["epoch"] for record in found.reports()] == list(range(101))
    assert (tmp_path / "epochs/100.json").is_file()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is missing"),
        ("", "is broken"),
        ('{"round": 1, "lo', "is broken"),
        ("[1]", "is broken"),
        (b"\xff\xfe", "is broken"),
        ('{"round": 7}', "was changed"),
        ('{"round": 1, "loss": 0.5, "class_mean": null}', "was changed"),
    ],
)
@pytest.mark.parametrize("name", [SOURCE, ROUND.format(1)])
def test_a_damaged_file_is_written_anew_and_said(records, content, problem, name):
    file = records.folder / name
    whole, lines = file.read_bytes(), []
    others = {path: path.stat().st_mtime_ns for path in records.folder.rglob("*.json") if path != file}
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    Records(records.folder, records.state()).restore(lines.append)
    assert lines == [f"warning: {file} {problem}; it was written again from the checkpoint"]
    assert file.read_bytes() == whole
    assert {path: path.stat().st_mtime_ns for path in others} == others, "whole files are left alone"


def test_whole_files_are_no_news(records):
    lines = []
    records.restore(lines.append)
    assert lines == []


@pytest.fixture
def results(records):
    """`results.json` of the records."""
    path = records.folder / "results.json"
    content = {
        "final": {"class_mean": None},
        "source_only": records.get(SOURCE),
        "rounds": [{**record, "per_class": {}} for record in records.reports()],
    }
    path.write_text(json.dumps(content))
    return path


def test_results_come_with_the_records_that_they_sum_up(results, records):
    content, reports = read_results(results)
    assert content["final"] == {"class_mean": None} and reports == records.reports()


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", '{"final": 3, "rounds": []}', '{"final": {}}'])
def test_broken_results_are_no_results(results, content):
    results.write_text(content)
    with pytest.raises(UserError, match=r"results\.json is broken"):
        read_results(results)


@pytest.mark.parametrize("entry", [{"loss": 0.9}, 3, {"round": 2}])
def test_results_of_another_run_are_no_results(results, entry):
    content = json.loads(results.read_text())
    content["rounds"][1] = {**content["rounds"][1], **entry} if isinstance(entry, dict) else entry
    results.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"results\.json and .*rounds/01/report\.json belong to different runs"):
        read_results(results)


@pytest.mark.parametrize("name", [SOURCE, ROUND.format(0), ROUND.format(2)])
def test_results_without_a_record_name_it(results, name):
    (results.parent / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        read_results(results)
