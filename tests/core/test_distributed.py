"""Several processes: as torchrun starts them, and where torchrun has no part in it forked with its environment."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.adaptation.test_run import read_results
from tests.forked import Forked, forked_job
from uda.core.distributed import Ranks, start
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
TOOL = CHECKOUT / "tools" / "self_train.py"


def torchrun(processes, *arguments, **options):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*launcher, *map(str, arguments)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def run_tool(*arguments):
    """Exit code, stdout and stderr of a run by itself."""
    process = Forked(TOOL, *arguments)
    return process.wait(), *process.communicate()


def test_collectives_in_a_job_of_three(tmp_path):
    codes, output = forked_job(3, CHECKOUT / "tests" / "ranks_script.py", tmp_path)
    assert codes == [0, 0, 0], output
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert found == [[0, 3, 0], [1, 3, 1], [2, 3, 2]]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_rows_cover_everything_once_and_evenly(count, world):
    shares = [np.arange(count)[Ranks(rank, world).rows(count)] for rank in range(world)]
    assert np.concatenate(shares).tolist() == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_one_process_sends_nothing_and_needs_no_environment(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with start() as ranks:
        assert (ranks.rank, ranks.world, ranks.is_main) == (0, 1, True)
        assert ranks.gather_texts("x") == ["x"] and ranks.broadcast(b"y") == b"y"


def test_half_an_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match=r"without RANK.*torchrun"), start():
        pass


def labels(folder, index):
    return list(csv.DictReader((folder / f"rounds/{index:02d}/pseudo_labels.csv").open()))


def test_two_processes_choose_what_one_does_with_the_same_batches(tiny, tmp_path):
    """One process that divides its batch into two parts computes what two processes do, up to rounding."""
    folder = tmp_path / "two"
    codes, output = forked_job(2, TOOL, "--cfg", tiny, f"output={folder}")
    assert codes == [0, 0], output
    assert output.count("oracle best") == 1, "one process speaks"
    alone = tmp_path / "one"
    code, _, error = run_tool("--cfg", tiny, f"output={alone}", "runtime.accumulate=2")
    assert code == 0, error
    for index in (0, 1):
        pairs = list(zip(labels(alone, index), labels(folder, index), strict=True))
        assert all((a["image"], a["label"], a["selected"]) == (b["image"], b["label"], b["selected"]) for a, b in pairs)
        assert all(float(a["score"]) == pytest.approx(float(b["score"]), rel=1e-3) for a, b in pairs)
    ours, theirs = read_results(folder), read_results(alone)
    assert ours["final"]["per_class"] == theirs["final"]["per_class"]
    assert ours["rounds"][1]["loss"] == pytest.approx(theirs["rounds"][1]["loss"], rel=1e-3)


ADAPTING = (
    *("source.epochs=0", "adaptation.steps=6", "adaptation.evaluate_every=4", "adaptation.optim.lr=0.05"),
    *("adaptation.batch={source: 8, target: 8}", "method_options={hidden: 8}", "method=dann"),
)


def test_two_processes_adapt_as_one_does_with_the_same_batches(tiny, tmp_path):
    """DANN: its domain classifier, with BatchNorm of its own, is every process's."""
    codes, output = forked_job(2, TOOL, "--cfg", tiny, f"output={tmp_path / 'two'}", *ADAPTING)
    assert codes == [0, 0], output
    code, _, error = run_tool("--cfg", tiny, f"output={tmp_path / 'one'}", *ADAPTING, "runtime.accumulate=2")
    assert code == 0, error
    ours, theirs = read_results(tmp_path / "two"), read_results(tmp_path / "one")
    assert ours["final"]["per_class"] == theirs["final"]["per_class"]
    for two, one in zip(ours["rounds"], theirs["rounds"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.mark.parametrize("name", ["mcd", "shot"])
def test_several_phases_and_labels_of_rank_0_in_a_job_of_two(tiny, tmp_path, name):
    own = {"mcd": ["method_options={}"], "shot": ["method_options={}", "adaptation.batch.source=0", "source.epochs=1"]}
    words = [f"output={tmp_path}/run", *ADAPTING[:-2], f"method={name}", *own[name]]
    codes, output = forked_job(2, TOOL, "--cfg", tiny, *words)
    assert codes == [0, 0], output
    assert len(read_results(tmp_path / "run")["rounds"]) == 2


def test_ranks_with_different_configs_are_stopped_with_the_keys(tiny, tmp_path):
    code = f"""
import os, sys
from uda.cli.main import main
sys.exit(main(["adapt", "--cfg", {str(tiny)!r}, "output={tmp_path / "run"}", "seed=" + os.environ["RANK"]]))
"""
    script = tmp_path / "differently.py"
    script.write_text(code)
    codes, output = forked_job(2, script)
    assert 0 not in codes and "the config of process 1 is not that of process 0 (seed: 0 -> 1)" in output
    assert not (tmp_path / "run").exists()


def test_too_small_a_batch_is_named(tiny, tmp_path):
    codes, output = forked_job(3, TOOL, "--cfg", tiny, f"output={tmp_path / 'run'}", "source.batch_size=4")
    assert 0 not in codes and "a batch of 4 images is too small for 3 parts (processes times" in output


def wait_until(condition, process):
    until = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def wait_for(path, process):
    wait_until(path.exists, process)


def number_of_checkpoint(folder):
    return max((int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("state-*.pt")), default=0)


def ranks_of(job):
    """Process numbers of a job's ranks."""
    return [int(word) for word in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]


LONG = ("self_training.rounds=40", "self_training.portion.step=0", "runtime.checkpoint_minutes=0")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find the ranks")
def test_a_killed_rank_ends_the_job_which_resumes_with_another_number_of_processes(tiny, tmp_path):
    folder = tmp_path / "run"
    job = torchrun(2, TOOL, "--cfg", tiny, f"output={folder}", *LONG)
    wait_for(folder / "rounds/00/report.json", job)
    killed = time.monotonic()
    os.kill(ranks_of(job)[-1], signal.SIGKILL)
    output, _ = job.communicate(timeout=60)
    assert job.returncode != 0 and time.monotonic() - killed < 60
    assert "another process of this job has ended or was killed" in output or "interrupted by SIGTERM" in output
    code, output, error = run_tool("--cfg", tiny, f"output={folder}", *LONG)
    assert code == 0, error
    assert "resuming" in output and len(read_results(folder)["rounds"]) == 40


def test_sigterm_to_the_job_saves_and_leaves(tiny, tmp_path):
    folder = tmp_path / "run"
    words = ("--cfg", tiny, f"output={folder}", "self_training.steps=20000", "runtime.checkpoint_minutes=0")
    job = torchrun(2, TOOL, *words)
    wait_for(folder / "rounds/source.json", job)
    saved = number_of_checkpoint(folder)
    wait_until(lambda: number_of_checkpoint(folder) >= saved + 2, job)  # the source stage's own, and one of the round
    asked = time.monotonic()
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert re.search(r"interrupted by SIGTERM: saved at round 0, \d+ epochs? done", output), output
    code, _, error = run_tool(*words, "--dry-run")
    assert code == 0, error
