"""The launcher `local`: many runs in one process, and what becomes of runs that are killed or asked to stop."""

import json
import os
import re
import signal
import sys
import threading
import time

import pytest
import torch
import yaml

from tests.forked import Forked
from tests.tables.stand_in_runs import WORKER, StandIn
from uda.cli.worker import carry_out
from uda.core.errors import UserError
from uda.core.interruption import Interrupted
from uda.core.resources import CHECKOUT
from uda.kinds import register_tables
from uda.tables import jobs_of, load_table, run_jobs
from uda.tables.launchers.launcher import MOST_EARLY_KILLS
from uda.tables.launchers.local import Local, Worker, own_devices, visible_devices

register_tables()


@pytest.fixture
def quick(monkeypatch):
    """Workers find the program of the tests."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))


def launched(jobs, at_once=1):
    """The exit code of each run, by the name of its folder."""
    codes = {}
    with Local(at_once, worker=WORKER) as launcher:
        launcher.launch(jobs, lambda job, end: codes.setdefault(job.folder.name, end.code))
    return codes


def test_runs_of_a_process_are_those_of_single_commands_bit_for_bit(tiny, tmp_path, monkeypatch):
    """Of several methods and with dropout, in this process, after a run that failed: nothing leaks from run to run."""
    for number, name in ((1, "stdout"), (2, "stderr")):  # as in a worker, not those of pytest
        monkeypatch.setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115
    words = ["adapt", "--cfg", str(tiny), "runtime.threads=1", "model.dropout=0.3"]
    mcc = ["method=mcc", "source.epochs=0", "adaptation={steps: 5, evaluate_every: 2, batch: {source: 4, target: 4}}"]
    runs = {
        "cbst": ["report.loggers=[tensorboard]"],
        "wrong": ["self_training.portion.start=0.01", "self_training.portion.max=0.01"],
        "mcc": mcc,
        "avh": ["self_training.selector=avc", "seed=1"],
    }
    codes, alone = {}, []
    for name, own in runs.items():
        program = CHECKOUT / "uda" / "__main__.py"
        alone.append(Forked(program, *words, *own, f"output={tmp_path}/alone/{name}"))
        own_words = [*words, *own, f"output={tmp_path}/worker/{name}"]
        codes[name] = carry_out(own_words, tmp_path / f"{name}.out")
    assert [command.wait() for command in alone] == list(codes.values()) == [0, 2, 0, 0]
    assert "error: " in (tmp_path / "wrong.out").read_text()
    for name in ("cbst", "mcc", "avh"):
        folders = [tmp_path / place / name for place in ("worker", "alone")]
        files = [sorted(str(path.relative_to(folder)) for path in weights_of(folder)) for folder in folders]
        assert files[0] == files[1] and "checkpoints/final.safetensors" in files[0]
        for file in files[0]:
            assert len({(folder / file).read_bytes() for folder in folders}) == 1, f"{name}: {file}"
        results = [without_time(json.loads((folder / "results.json").read_text())) for folder in folders]
        assert results[0] == results[1] and results[0]["final"]
        commands = [json.loads((folder / "environment.json").read_text())["command"] for folder in folders]
        assert commands[0][:-1] == commands[1][:-1] and commands[0][-1].startswith("output=")
        assert (tmp_path / f"{name}.out").read_text().count("run      tiny, seed ") == 1


def weights_of(folder):
    return folder.rglob("*.safetensors")


def without_time(content):
    """Results without what depends on the clock."""
    if isinstance(content, dict):
        timed = ("seconds", "pace", "memory")
        return {key: without_time(value) for key, value in content.items() if not any(word in key for word in timed)}
    return [without_time(entry) for entry in content] if isinstance(content, list) else content


def test_one_process_carries_out_all_runs_of_the_same_plugins(quick, tmp_path):
    plugins = [[], [], ["a.py"], ["a.py"], ["b.py"], []]
    jobs = [StandIn(tmp_path / str(i), ["say", "hello"], own) for i, own in enumerate(plugins)]
    assert launched(jobs) == {str(i): 0 for i in range(6)}
    processes = [job.output.read_text().split()[1] for job in jobs]
    assert processes[0] == processes[1] and processes[2] == processes[3]
    assert len({processes[0], processes[2], processes[4], processes[5]}) == 4


def test_a_killed_run_is_started_again_as_long_as_it_comes_further(quick, tmp_path):
    """Four starts leave a checkpoint each and are killed, the fifth ends; the next run has another process."""
    jobs = [StandIn(tmp_path / "run", ["kill", str(tmp_path / "run")]), StandIn(tmp_path / "next", ["say", "hello"])]
    assert launched(jobs) == {"run": 0, "next": 0}
    assert jobs[0].output.read_text() == "".join(f"start {i}\n" for i in range(5))
    assert jobs[1].output.read_text().startswith("hello ")


def test_a_run_that_is_killed_three_times_without_progress_ends(quick, tmp_path):
    lost = StandIn(tmp_path / "run", ["lost", str(tmp_path / "run")])
    assert launched([lost, StandIn(tmp_path / "next", ["say", "hello"])]) == {"run": -signal.SIGKILL, "next": 0}
    assert lost.output.read_text() == "start\n" * 3


def test_more_kills_are_allowed_before_a_run_begins(quick, tmp_path):
    early = StandIn(tmp_path / "run", ["early"])
    assert launched([early]) == {"run": -signal.SIGKILL}
    assert early.output.read_text() == "start\n" * MOST_EARLY_KILLS


def test_a_process_that_ends_by_itself_is_a_failure_of_its_run_alone(quick, tmp_path):
    jobs = [StandIn(tmp_path / "run", ["exit", "3"]), StandIn(tmp_path / "next", ["say", "hello"])]
    assert launched(jobs) == {"run": 3, "next": 0}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_to_every_run_and_nothing_starts_after_it(quick, tmp_path, number):
    jobs = [StandIn(tmp_path / str(i), ["wait"]) for i in range(3)]
    before, codes = signal.getsignal(number), {}

    def ask():
        until = time.monotonic() + 30
        while time.monotonic() < until and not all(j.output.exists() and j.output.read_text() for j in jobs[:2]):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask)
    with Local(2, worker=WORKER) as launcher:
        launcher.leave()  # nothing has come yet
        asking.start()
        launcher.launch(jobs, lambda job, end: codes.setdefault(job.folder.name, end.code))
        launcher.launch([StandIn(tmp_path / "late", ["say", "late"])], pytest.fail)
    asking.join()
    assert codes == {"0": 128 + number, "1": 128 + number}
    assert not jobs[2].output.exists() and not (tmp_path / "late.out").exists()
    assert signal.getsignal(number) is before
    with pytest.raises(Interrupted) as asked:
        launcher.leave()
    assert asked.value.exit_code == 128 + number


def test_a_signal_reaches_a_process_that_is_just_being_started(quick, tmp_path):
    worker = Worker(WORKER)
    worker.send_signal(signal.SIGTERM)
    assert worker.run(["say", "hello", "runtime.threads=1"], tmp_path / "run.out") == -signal.SIGTERM


def test_the_message_of_a_run_that_is_killed_again_and_again(tiny, tmp_path, monkeypatch):
    path = tmp_path / "one.yaml"
    row = {"name": "Source", "cfg": str(tiny), "set": ["method=source_only"]}
    path.write_text(yaml.safe_dump({"seeds": [0], "pairs": [["drawn", "photos"]], "rows": [row]}))
    starts = []

    def run(self, words, output, again, plugins):
        starts.append(again)
        job.folder.mkdir(exist_ok=True)
        (job.folder / "log.txt").write_text("run" * len(starts))
        return -signal.SIGKILL

    monkeypatch.setattr(Worker, "run", run)
    (job,) = jobs_of(load_table(path), tmp_path / "runs")
    with pytest.raises(UserError, match=r"^Source, .*: its process was killed again .*SIGKILL \(was there enough mem"):
        run_jobs([job], Local(1), log=lambda line: None)
    assert starts == [False, True, True]


@pytest.mark.parametrize(
    ("visible", "count", "device", "expected"),
    [
        (None, 3, "auto", ["0", "1", "2", "0"]),
        ("4, 6", 2, "cuda", ["4", "6", "4", "6"]),
        ("GPU-1a,GPU-2b", 2, "auto", ["GPU-1a", "GPU-2b", "GPU-1a", "GPU-2b"]),
        ("5,-1,6", 1, "auto", ["all"] * 4),
        (None, 1, "auto", ["all"] * 4),
        (None, 0, "auto", ["all"] * 4),
        (None, 3, "cuda:1", ["all"] * 4),
    ],
)
def test_each_process_has_a_gpu_of_its_own_where_there_are_several(
    quick, tmp_path, monkeypatch, visible, count, device, expected
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    jobs = [StandIn(tmp_path / str(i), ["say", "hello"], device=device) for i in range(4)]
    assert [own.get("CUDA_VISIBLE_DEVICES", "all") for own in own_devices(jobs, 4)] == expected
    assert len(visible_devices()) == count


def test_the_variables_of_a_worker_reach_its_process(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8")
    jobs = [StandIn(tmp_path / str(i), ["say", "hello"]) for i in range(4)]
    assert launched(jobs, at_once=2) == {str(i): 0 for i in range(4)}
    said = [re.fullmatch(r"hello (\d+) (\d)\n", job.output.read_text()).groups() for job in jobs]
    assert {device for _, device in said} <= {"7", "8"} and len(set(said)) == len({process for process, _ in said})
