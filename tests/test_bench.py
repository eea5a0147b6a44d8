"""The benchmark tool: every contest runs, and the figures that it writes are consistent."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from uda.config import ROOT

TOOL = ROOT / "tools" / "bench.py"


def load_tool():
    spec = importlib.util.spec_from_file_location("bench_under_test", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


bench = load_tool()


def test_list_names_every_benchmark_with_a_line(capsys):
    assert bench.main(["--list"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == sorted(bench.BENCHMARKS)
    assert all(len(line) == 2 for line in lines)
    for work in ("train_step", "predict", "select_1000000x12", "select_100000x1000"):
        assert any(line[0].startswith(work) for line in lines), work


@pytest.mark.parametrize("name", sorted(bench.BENCHMARKS))
def test_every_contest_runs(name):
    """The least amount of work: both sides take time, and the bar is a ratio that an overhead can miss.

    Only reading files has a floor that can be undercut: another library's way to read them.
    """
    seconds, floor_seconds, bar = bench.time_contest(name, scale=0.001, repeats=1)
    assert seconds > 0 and floor_seconds > 0
    assert bar is None or 0.9 < bar <= (8 if name.startswith("files") else 1)


def test_json_of_a_quick_benchmark(tmp_path):
    path = tmp_path / "bench.json"
    command = ["--only", "select_1000000x12", "--scale", "0.001", "--repeats", "1", "--json", str(path)]
    ended = subprocess.run(
        [sys.executable, str(TOOL), *command],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr
    content = json.loads(path.read_text(encoding="utf-8"))
    (row,) = content["rows"]
    assert row.keys() >= {"name", "seconds", "floor_seconds", "ratio", "bar", "peak_mib", "floor_peak_mib"}
    assert row["name"] == "select_1000000x12" and row["seconds"] > 0
    assert row["ratio"] == pytest.approx(row["floor_seconds"] / row["seconds"])
    assert (content["scale"], content["repeats"]) == (0.001, 1)
    assert f"{row['ratio']:.3f}" in ended.stdout


def test_an_unknown_benchmark_is_named_before_anything_is_measured(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert bench.main(["--only", "predict_resnet", "--json", str(path)]) == 2
    captured = capsys.readouterr()
    assert "did you mean 'predict_resnet18'?" in captured.err and captured.out == ""
    assert not path.exists()


@pytest.mark.parametrize("arguments", [["--scale", "0"], ["--scale", "2"], ["--repeats", "0"], ["--fast"]])
def test_wrong_use_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err
