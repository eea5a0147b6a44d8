"""Hundreds of short runs whose processes are killed at random moments end as those of an undisturbed table."""

import os
import random
import signal
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from uda.core.resources import CHECKOUT
from uda.kinds import register_tables
from uda.tables import LAUNCHERS, collect, jobs_of, load_table, read_csv, run_jobs
from uda.tables.launchers import cluster, local

register_tables()

#: Columns that differ from run to run of the same recipe.
OF_THE_START = {"seconds", "finished", "commit"}


@pytest.fixture(scope="module")
def settings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CHECKOUT))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr("submitit.SlurmExecutor.affinity", lambda: -1)
        for module in (local, cluster):
            patch.setattr(module, "cores", lambda: 2)
        yield


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory):
    """Two rows of a hundred seeds. The second starts from the models of the first."""
    rows = [
        {"name": "Source", "cfg": str(tiny), "set": ["method=source_only"]},
        {"name": "CBST", "cfg": str(tiny)},
    ]
    common = [f"data.root={tiny.parent}", "self_training.rounds=1", "self_training.steps=2"]
    content = {"seeds": list(range(100)), "pairs": [["drawn", "photos"]], "set": common, "rows": rows}
    path = tmp_path_factory.mktemp("table") / "many.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_table(path)


@pytest.fixture(scope="module")
def undisturbed(table, settings, tmp_path_factory):
    """The folder of the CSVs of all runs, of processes that nobody killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    jobs = jobs_of(table, folder / "runs")
    run_jobs(jobs, LAUNCHERS["local"](2), log=lambda line: None)
    collect(table, jobs, folder)
    return folder


def children(name: bytes) -> list[int]:
    """The processes below this one whose command line has a name in it."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    for process in parents.keys() - {os.getpid()}:
        above = process
        while above in parents and above != os.getpid():
            above = parents[above]
        with suppress(OSError):
            if above == os.getpid() and name in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def killing(name: bytes, times: int, lines: list[str], over: threading.Event) -> int:
    """Kill a random process some time after a run has ended, again and again. Returns how often it was done.

    A start takes long on a busy machine, so the time between two kills is not fixed.
    """
    draw, killed, seen = random.Random(0), 0, 0
    while killed < times and not over.wait(draw.uniform(0.1, 1.5)):
        if len(lines) > seen and (processes := sorted(children(name))):
            with suppress(ProcessLookupError):
                os.kill(draw.choice(processes), signal.SIGKILL)
                killed, seen = killed + 1, len(lines)
    return killed


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("launcher", "own", "name", "seeds", "times"),
    [
        ("submitit", {"chunk": 5}, b"submitit", 100, 30),
        ("local", {}, b"uda.cli.worker", 30, 12),
    ],
)
def test_no_run_is_lost_and_none_is_doubled(table, undisturbed, tmp_path, launcher, own, name, seeds, times):
    jobs = [job for job in jobs_of(table, tmp_path / "runs") if job.seed < seeds]
    counts, lines, over, killed = Counter(), [], threading.Event(), []
    thread = threading.Thread(target=lambda: killed.append(killing(name, times, lines, over)))
    thread.start()
    try:

        def after(job):
            counts[job.run] += 1
            collect(table, [job], tmp_path, log=pytest.fail)

        run_jobs(jobs, LAUNCHERS[launcher](2, **own), log=lines.append, after=after)
    finally:
        over.set()
        thread.join()
    assert killed == [times], "it was over too early"
    assert counts == {job.run: 1 for job in jobs} and len(lines) == 1 + len(jobs)
    for file in ("many.csv", "many_reports.csv"):
        rows = [row for row in read_csv(undisturbed / file) if int(row["seed"]) < seeds]
        expected, found = (
            [{key: value for key, value in row.items() if key not in OF_THE_START} for row in some]
            for some in (rows, read_csv(tmp_path / file))
        )
        assert found == expected and len(found) >= len(jobs)
    assert not children(name), "a process is left"
    again = max((tmp_path / "runs").rglob("*.out"), key=lambda path: path.read_text().count("loading PyTorch"))
    assert again.read_text().count("loading PyTorch") > 1, "no run was killed within"
