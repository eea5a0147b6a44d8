"""The launcher `submitit` with its local executor, and its settings."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import submitit

from tests.tables import fake_slurm
from tests.tables.stand_in_runs import WORKER, StandIn
from uda.cli.commands.table import LAUNCHER_NAMES
from uda.core.errors import UserError
from uda.core.interruption import Interrupted
from uda.core.resources import CHECKOUT
from uda.tables import LAUNCHERS
from uda.tables.launchers import cluster
from uda.tables.launchers.cluster import Submitit, Submitted, read_slurm
from uda.tables.launchers.launcher import Ended


@pytest.fixture
def quick(monkeypatch):
    """Jobs find the program of the tests, and there is no Slurm."""
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setattr("submitit.SlurmExecutor.affinity", lambda: -1)


def killed_once(folder):
    """A run with three checkpoints. It is killed after the fourth, and then ends."""
    (folder / "checkpoints").mkdir(parents=True)
    for number in range(3):
        (folder / "checkpoints" / f"state-{number:06}-x.pt").touch()
    return StandIn(folder, ["kill", str(folder)])


def test_a_killed_job_is_submitted_again_and_its_runs_end_once(quick, tmp_path):
    """One job of four runs: the second is killed after a checkpoint, the third fails. Its logs are kept."""
    commands = {"first": ["say", "hello"], "failed": ["exit", "3"], "last": ["say", "bye"]}
    jobs, codes = [StandIn(tmp_path / name, command) for name, command in commands.items()], []
    jobs.insert(1, killed_once(tmp_path / "killed"))
    with Submitit(1, chunk=4, worker=WORKER) as launched:
        launched.launch(jobs, lambda job, end: codes.append((job.folder.name, end.code)))
    assert codes == [("first", 0), ("killed", 0), ("failed", 3), ("last", 0)]
    said = [job.output.read_text() for job in jobs]
    assert said[0].startswith("hello ") and said[0].count("\n") == 1, "it was not run again"
    first, early, second = said[1].splitlines()
    assert (first, second) == ("start 3", "start 4") and early.startswith("uda table: job ")
    assert early.rpartition("see ")[2].endswith("_log.out") and os.path.exists(early.rpartition("see ")[2])


def test_a_line_that_was_cut_off_by_a_kill_is_passed_over(tmp_path):
    """The job was killed while it wrote the end of run 0, was started again, and ran it once more."""
    record = tmp_path / "record.jsonl"
    submitted = Submitted([StandIn(tmp_path / "run", ["say"])], record, slot=0)
    record.write_text('{"run": 0}\n{"run": 0, "co{"run": 0}\n{"run": 0, "code": 0, "sec')
    assert list(submitted.news()) == [] and submitted.begun == {0}
    with open(record, "a") as file:
        file.write('onds": 2.0}\n')
    assert list(submitted.news()) == [(0, Ended(0, 2.0))] and submitted.left == []


def test_a_signal_lets_runs_save_and_cancels_the_rest(quick, tmp_path):
    jobs, codes = [StandIn(tmp_path / name, ["wait"]) for name in ("begun", "waiting")], {}

    def ask():
        until = time.monotonic() + 60
        while time.monotonic() < until and not (jobs[0].output.exists() and jobs[0].output.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask)
    with Submitit(1, worker=WORKER) as launched:
        asking.start()
        launched.launch(jobs, lambda job, end: codes.setdefault(job.folder.name, end))
    asking.join()
    assert list(codes) == ["begun"] and codes["begun"].by_signal
    assert not jobs[1].output.exists() and not list((tmp_path / "stand_in" / ".submitit").iterdir())
    with pytest.raises(Interrupted):
        launched.leave()


@pytest.mark.parametrize(
    ("known", "at_once", "chunk", "sizes"),
    [
        ({}, 2, None, [1] * 12),
        ({}, 2, 5, [5, 5, 2]),
        ({"a": 100.0, "b": 100.0}, 1, None, [6, 6]),
        ({"a": 100.0}, 1, None, [6, 1, 1, 1, 1, 1, 1]),
        ({"a": 1.0, "b": 1.0}, 4, None, [3] * 4),
        ({"a": 700.0, "b": 1.0}, 2, None, [1] * 6 + [6]),
    ],
)
def test_short_runs_share_a_job(tmp_path, known, at_once, chunk, sizes):
    """Six runs of each of two rows: together about ten minutes, and no fewer jobs than there are at a time."""
    jobs = [StandIn(tmp_path / f"{i}", ["say"], name="ab"[i // 6]) for i in range(12)]
    chunks = list(Submitit(at_once, chunk=chunk, seconds=known.get)._chunks(jobs))
    assert [len(chunk) for chunk in chunks] == sizes
    assert [job for chunk in chunks for job in chunk] == jobs


def test_runs_with_other_plugins_do_not_share_a_job(tmp_path):
    jobs = [StandIn(tmp_path / f"{i}", ["say"], plugins=own) for i, own in enumerate([[], ["a.py"], ["a.py"], []])]
    assert [len(chunk) for chunk in Submitit(1, chunk=4)._chunks(jobs)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["time=90"], "time", 90),
        (["time=2:30:00"], "time", 150),
        (["time=1-02:00:30"], "time", 1561),
        (["time=45:00"], "time", 45),
        (["memory=32GB"], "memory", 32.0),
        (["memory=1.5"], "memory", 1.5),
        (["partition=gpu", "gpus=2"], "gpus", 2),
        ([], "cpus", 4),
    ],
)
def test_settings_of_slurm(words, key, value):
    assert getattr(read_slurm(words), key) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["partion=gpu"], "--slurm: partion: unknown key, did you mean 'partition'"),
        (["time=soon"], "--slurm: time: .*'soon'"),
        (["cpus=0"], "--slurm: cpus: .*got 0"),
        (["gpu"], "--slurm: 'gpu': overrides are written key=value"),
    ],
)
def test_wrong_settings_of_slurm(words, message):
    with pytest.raises(UserError, match=message):
        Submitit(1, slurm=words)


def test_without_the_package_there_is_one_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r'^--launcher submitit needs the package submitit .*"uda-toolkit\[cluster\]"'):
        Submitit(1)


@pytest.mark.parametrize("name", ["local", "print"])
def test_settings_of_jobs_are_refused_where_there_are_none(name):
    with pytest.raises(UserError, match="--slurm and --chunk are for --launcher submitit"):
        LAUNCHERS[name](1, chunk=2)
    with pytest.raises(UserError, match="--chunk: must be 1 or more; got 0"):
        Submitit(1, chunk=0)


def test_the_command_knows_every_launcher():
    assert set(LAUNCHER_NAMES) == set(LAUNCHERS)


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A Slurm of `tests/tables/fake_slurm.py`. Jobs find the program of the tests. Returns its folder."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    fake_slurm.install(folder)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(cluster, "LOOK_AT_SLURM", 0.2)
    submitit.SlurmJob.watcher.clear()  # it knows jobs of the same numbers from other tests
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    return folder


def test_jobs_of_slurm_are_an_array_and_a_killed_one_is_submitted_again(slurm, tmp_path):
    """The settings reach sbatch. What is left of the second job becomes a job of its own."""
    jobs = [StandIn(tmp_path / name, ["say", "hello"]) for name in "abcd"]
    jobs[1] = killed_once(tmp_path / "b")
    words = ["partition=gpu", "time=2:00:00", "gpus=1", "cpus=6", "memory=8GB", "account=us"]
    codes = []
    with Submitit(3, slurm=words, chunk=2, worker=WORKER) as launched:
        launched.launch(jobs, lambda job, end: codes.append((job.folder.name, end.code)))
    assert sorted(codes) == [(name, 0) for name in "abcd"]
    first, second = sorted(slurm.glob("sbatch.*"))
    expected = ["array=0-1%2", "partition=gpu", "time=120", "gpus-per-node=1", "cpus-per-task=6", "mem=8GB"]
    for flag in (*expected, "account=us", "signal=USR2@120", "job-name=uda-stand_in"):
        assert f"#SBATCH --{flag}\n" in first.read_text(), flag
    assert "--array" not in second.read_text()
    assert [job.output.read_text().count("hello") for job in jobs] == [1, 0, 1, 1]


def test_an_array_has_no_more_jobs_than_slurm_takes(slurm, tmp_path, monkeypatch):
    """Also with a number of runs for each job, and with more jobs at a time than an array may have."""
    monkeypatch.setattr(cluster, "MOST_JOBS", 3)
    jobs = [StandIn(tmp_path / str(i), ["say", "hello"]) for i in range(8)]
    codes = []
    with Submitit(5, chunk=1, worker=WORKER) as launched:
        launched.launch(jobs, lambda job, end: codes.append((job.folder.name, end.code)))
    assert sorted(codes) == [(str(i), 0) for i in range(8)]
    arrays = [re.search(r"--array=0-(\d+)", path.read_text()) for path in slurm.glob("sbatch.*")]
    assert max(1 + int(array[1]) for array in arrays if array) == 3


def test_a_job_is_submitted_again_when_fewer_are_left_than_may_run_at_a_time(slurm, tmp_path):
    """The second run keeps Slurm busy, one job at a time, while the first is known to have been killed."""
    go, killed = tmp_path / "go", killed_once(tmp_path / "killed")
    busy, codes = StandIn(tmp_path / "busy", ["until", str(go)]), []

    def watch():
        until = time.monotonic() + 60
        while time.monotonic() < until and not (killed.output.exists() and "ended early" in killed.output.read_text()):
            time.sleep(0.05)
        time.sleep(1)
        codes.append(len(list(slurm.glob("sbatch.*"))))
        go.touch()

    watching = threading.Thread(target=watch)
    watching.start()
    with Submitit(1, chunk=1, worker=WORKER) as launched:
        launched.launch([killed, busy], lambda job, end: codes.append((job.folder.name, end.code)))
    watching.join()
    assert codes == [1, ("busy", 0), ("killed", 0)]
    assert len(list(slurm.glob("sbatch.*"))) == 2


def test_a_job_is_submitted_again_after_it_has_left_the_queue(slurm, tmp_path):
    """Slurm has started it again after its node was lost, so its run is still locked."""
    held, codes = tmp_path / "held", []
    job = StandIn(tmp_path / "run", ["hold", str(held)])

    def lose():
        until = time.monotonic() + 60
        while time.monotonic() < until and not held.exists():
            time.sleep(0.05)
        (slurm / "1.state").write_text("NODE_FAIL")

    losing = threading.Thread(target=lose)
    losing.start()
    with Submitit(1, worker=WORKER) as launched:
        launched.launch([job], lambda job, end: codes.append(end.code))
    losing.join()
    assert codes == [0] and len(list(slurm.glob("sbatch.*"))) == 2


def test_slurm_warns_a_job_and_it_goes_on_after_its_run_was_saved(slurm, tmp_path):
    """Of the same job the first run is not run again. Ctrl-C then cancels it, and both runs are told as stopped."""
    jobs = [StandIn(tmp_path / "first", ["say", "hello"]), StandIn(tmp_path / "second", ["wait"])]
    codes = {}

    def ready(times):
        until = time.monotonic() + 60
        output = jobs[1].output
        while not (output.exists() and output.read_text().count("ready") == times):
            assert time.monotonic() < until
            time.sleep(0.05)

    def disturb():
        ready(1)
        os.kill(process_of(slurm), signal.SIGUSR2)
        ready(2)
        os.kill(os.getpid(), signal.SIGINT)

    disturbing = threading.Thread(target=disturb)
    with Submitit(1, chunk=2, worker=WORKER) as launched:
        disturbing.start()
        launched.launch(jobs, lambda job, end: codes.setdefault(job.folder.name, end))
    disturbing.join()
    assert codes["first"].code == 0 and codes["second"].by_signal
    assert jobs[0].output.read_text().count("hello") == 1
    assert len(list(slurm.glob("sbatch.*"))) == 1, "it was not submitted a second time"
    assert (slurm / "1.state").read_text() == "CANCELLED"


def process_of(slurm):
    """The process of the only job: `python -m submitit.core._submit`, which srun has become."""
    shell = int((slurm / "1.pid").read_text())
    (child,) = (int(word) for word in Path(f"/proc/{shell}/task/{shell}/children").read_text().split())
    return child


LOCKS = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print('locked')"


@pytest.fixture
def before(slurm, tmp_path):
    """Folders of two processes of other machines, with the job 90 of one that was killed and 91 of one at work."""
    killed, at_work = (tmp_path / "stand_in" / ".submitit" / f"elsewhere.{number}.1" for number in (90, 91))
    for number, folder in ((90, killed), (91, at_work)):
        folder.mkdir(parents=True)
        (folder / "jobs.txt").write_text(f"{number}\n")
        (folder / ".lock").touch()
        (slurm / f"{number}.state").write_text("RUNNING")
    command = [sys.executable, "-c", f"{LOCKS}; sys.stdout.flush(); sys.stdin.read()", str(at_work / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield [killed, at_work]
        process.stdin.close()


def states(slurm):
    return [(slurm / f"{number}.state").read_text() for number in (90, 91)]


def test_jobs_of_a_table_that_was_killed_on_any_machine_are_cancelled(slurm, before, tmp_path):
    """Not those of one that is at work, as its lock says. The own lock says so, too."""
    with Submitit(1, worker=WORKER) as launched:
        launched.launch([StandIn(tmp_path / "a", ["say", "hello"])], lambda job, end: None)
        assert states(slurm) == ["CANCELLED", "RUNNING"]
        (own,) = set(before[0].parent.iterdir()) - {before[1]}
        command = [sys.executable, "-c", LOCKS.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB"), str(own / ".lock")]
        assert subprocess.run(command, capture_output=True).returncode == 1
    assert list(before[0].parent.iterdir()) == [before[1]]


def test_numbers_of_processes_of_this_machine_are_not_kept_as_those_of_jobs(quick, tmp_path):
    """Another machine would cancel jobs of Slurm with these numbers."""
    kept = []
    with Submitit(1, worker=WORKER) as launched:
        jobs = [StandIn(tmp_path / "a", ["say", "hello"])]
        launched.launch(jobs, lambda job, end: kept.extend(tmp_path.glob("stand_in/.submitit/*/jobs.txt")))
        assert [path.read_text() for path in kept] == [""]


def test_a_machine_without_slurm_leaves_the_numbers_of_jobs(before, monkeypatch):
    monkeypatch.setenv("PATH", "")
    cluster._cancel_those_of_before(before)
    assert all((folder / "jobs.txt").exists() for folder in before)


def test_nothing_is_cancelled_where_no_lock_says_who_is_at_work(slurm, before, tmp_path, monkeypatch):
    def refuse(file, mode):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with Submitit(1, worker=WORKER) as launched:
        launched.launch([StandIn(tmp_path / "a", ["say", "hello"])], lambda job, end: None)
    assert states(slurm) == ["RUNNING", "RUNNING"] and sorted(before[0].parent.iterdir()) == before


def test_what_slurm_refuses_is_one_error(slurm, tmp_path):
    jobs = [StandIn(tmp_path / name, ["say", "hello"]) for name in "ab"]
    message = r"the jobs were refused: sbatch: error: invalid partition specified: gone$"
    with Submitit(1, slurm=["partition=gone"], worker=WORKER) as launched, pytest.raises(UserError, match=message):
        launched.launch(jobs, pytest.fail)
