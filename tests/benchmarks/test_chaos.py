"""Runs that are killed (SIGKILL) at any moment come to the end of the undisturbed run, bit for bit."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.adaptation.test_run import read_results
from tests.checkpoints import load_checkpoint
from tests.forked import Forked
from tests.in_process import adapt
from uda.core.resources import CHECKOUT
from uda.training.checkpoint import Checkpoints

spec = importlib.util.spec_from_file_location("chaos_under_test", CHECKOUT / "benchmarks" / "chaos.py")
chaos = importlib.util.module_from_spec(spec)
spec.loader.exec_module(chaos)

LONGER = ("self_training.steps=150", "source.steps=100", "self_training.adapt_batch_norm=true", "model.dropout=0.3")


def test_three_kills(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chaos, "start", lambda *start: Forked(*chaos.command(*start[:2])[1:], output=start[2]))
    arguments = ["--cfg", str(tiny), "--kills", "3", "--life", "0.8", "--keep", str(tmp_path), *LONGER]
    assert chaos.main(arguments) == 0
    out = capsys.readouterr().out
    assert out.count("kill ") == 3 and "killed 3 times: equal bit for bit" in out
    assert (tmp_path / "killed" / "log.txt").read_text().count("resuming") >= 2, "the kills came too soon to matter"


@pytest.mark.slow
def test_thirty_kills_of_a_digits_run(tmp_path, capsys):
    assert chaos.main(["--kills", "30", "--keep", str(tmp_path), "self_training.rounds=4"]) == 0
    assert "killed 30 times: equal bit for bit" in capsys.readouterr().out


@pytest.mark.slow
def test_kills_of_a_job_of_two(tmp_path, capsys):
    arguments = ["--nproc", "2", "--kills", "5", "--keep", str(tmp_path), "self_training.rounds=3"]
    assert chaos.main(arguments) == 0
    assert "killed 5 times: equal bit for bit" in capsys.readouterr().out


def test_the_comparison_can_fail(tmp_path):
    for name, seconds, label in (("a", 1, "1"), ("b", 2, "1"), ("c", 1, "0")):
        (tmp_path / name / "rounds/00").mkdir(parents=True)
        (tmp_path / name / "results.json").write_text(
            json.dumps({"seconds": seconds, "rounds": [{"seconds": seconds}]})
        )
        (tmp_path / name / "rounds/00/pseudo_labels.csv").write_text(f"image,label\nx,{label}\n")
    assert chaos.differences(tmp_path / "a", tmp_path / "b") == []
    assert chaos.differences(tmp_path / "a", tmp_path / "c") == ["rounds/00/pseudo_labels.csv"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_within_five_seconds(tiny, tmp_path, number):
    """In a round that would last for minutes: the whole process group is told, a loader's worker too."""
    folder = tmp_path / "run"
    long = ["self_training.steps=100000", "runtime.workers=1", "self_training.batch.source=2", "data.cache=none"]
    process = Forked(CHECKOUT / "tools" / "self_train.py", "--cfg", tiny, f"output={folder}", *long)
    until = time.monotonic() + 60
    while not (folder / "rounds/source.json").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(1.5)
    asked = time.monotonic()
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=30)
    assert time.monotonic() - asked < 5
    assert process.returncode == 128 + number, error
    assert f"interrupted by {signal.Signals(number).name}: saved at round 0" in error
    assert "the same command resumes from there" in error and "Traceback" not in error
    progress, _ = load_checkpoint(folder / "checkpoints")
    assert progress.stage == "round" and progress.begun


def test_a_disk_that_fills_up_ends_the_run_with_the_last_checkpoint_intact(tiny, tmp_path, monkeypatch, capsys):
    folder, replace, count = tmp_path / "run", os.replace, 0

    def full_after_seven_files(source, target):
        nonlocal count
        count += 1
        if count > 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_after_seven_files)
    arguments = ["--cfg", str(tiny), f"output={folder}"]
    assert adapt(arguments) == 2
    error = capsys.readouterr().err
    assert "cannot be written: No space left on device; nothing that was written before is lost" in error
    assert "Traceback" not in error
    assert load_checkpoint(folder / "checkpoints") is not None
    monkeypatch.undo()
    assert adapt(arguments) == 0
    assert adapt(["--cfg", str(tiny), f"output={tmp_path / 'whole'}"]) == 0
    assert read_results(folder) == read_results(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_some_steps_and_a_warning(tiny, tmp_path, capsys):
    """The newest file is cut in half: the run resumes from the one before it and ends the same."""
    arguments = ["--cfg", str(tiny), f"output={tmp_path / 'run'}"]
    assert adapt(arguments) == 0
    whole = read_results(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    newest = max((tmp_path / "run" / "checkpoints").glob("state-*.pt"))
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    capsys.readouterr()
    assert adapt(arguments) == 0
    out = capsys.readouterr().out
    assert f"warning: {newest.name} is damaged" in out and "resuming" in out and "round 1" in out
    assert read_results(tmp_path / "run") == whole


def test_a_newer_checkpoint_is_refused_before_anything_is_written(tiny, tmp_path, capsys):
    arguments = ["--cfg", str(tiny), f"output={tmp_path / 'run'}"]
    assert adapt(arguments) == 0
    (tmp_path / "run" / "results.json").unlink()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    progress, state = load_checkpoint(checkpoints.folder)
    checkpoints.save(progress, {**state, "version": 99})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert adapt(arguments) == 2
    assert "newer version of uda" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="no record locks")
def test_two_runs_in_one_folder_are_kept_apart(tiny, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    lock = tmp_path / "run" / ".lock"
    command = [sys.executable, "-c", hold, lock]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        assert adapt(["--cfg", str(tiny), f"output={tmp_path / 'run'}"]) == 2
        other.communicate("\n")
    assert "another process works in" in capsys.readouterr().err
    assert adapt(["--cfg", str(tiny), f"output={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize("place", ["/dev/null/run", "/proc/run"])
@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="these places are Linux's")
def test_an_output_that_cannot_be_written_is_named(tiny, place, capsys):
    assert adapt(["--cfg", str(tiny), f"output={place}"]) == 2
    error = capsys.readouterr().err
    assert f"output: {place} cannot be written" in error and "Traceback" not in error
