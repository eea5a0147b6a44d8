"""Checkpoints on disk: whole, checked, two of them, and nothing that carries code."""

import os
import pathlib
import pickle
import resource

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints import load_checkpoint
from tests.forked import Forked
from uda.core.errors import UserError
from uda.core.files import OutputError
from uda.training.checkpoint import VERSION, Checkpoints, Progress, parse


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def state(number=0):
    return {"network": {"weight": torch.full((50,), float(number))}}


@pytest.fixture
def saved(tmp_path):
    """A folder after three saves: numbers 2 and 3 are there."""
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2, 3):
        checkpoints.save(Progress(epoch=number), state(number))
    return tmp_path


def damage(path, position, bit=1):
    content = bytearray(path.read_bytes())
    content[position] ^= bit
    path.write_bytes(content)


def test_the_newest_and_the_one_before_it_are_kept(saved):
    assert [name[:12] for name in files(saved)] == ["state-000002", "state-000003"]
    progress, found = load_checkpoint(saved)
    assert progress == Progress(epoch=3) and torch.equal(found["network"]["weight"], torch.full((50,), 3.0))


def test_nothing_there_is_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path / "none") is None and load_checkpoint(tmp_path) is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]))
def test_any_flipped_bit_is_noticed_and_the_one_before_is_used(saved, place, bit):
    newest = saved / files(saved)[-1]
    whole = newest.read_bytes()
    damage(newest, int(place * len(whole)), bit)
    lines = []
    content = Checkpoints(saved, lines.append).read()
    newest.write_bytes(whole)
    assert parse(content)[0] == Progress(epoch=2)
    (line,) = lines
    assert line.startswith("warning: state-000003") and "damaged" in line and "state-000002" in line


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_noticed(saved, share):
    newest = saved / files(saved)[-1]
    newest.write_bytes(newest.read_bytes()[: int(share * newest.stat().st_size)])
    assert load_checkpoint(saved)[0] == Progress(epoch=2)


def test_going_on_from_the_one_before_never_deletes_it_before_the_next_is_written(saved):
    """3 is damaged, 2 was read: the next save leaves 2 and itself, and drops the damaged one."""
    damage(saved / files(saved)[-1], 100)
    checkpoints = Checkpoints(saved)
    checkpoints.read()
    checkpoints.save(Progress(epoch=9), state(9))
    assert [name[:12] for name in files(saved)] == ["state-000002", "state-000004"]


def test_all_damaged_is_an_error_that_names_them(saved):
    for name in files(saved):
        damage(saved / name, 10)
    with pytest.raises(UserError, match=r"all checkpoints are damaged: state-000003.*state-000002.*to start again"):
        load_checkpoint(saved)


def test_a_newer_version_is_refused_and_left_alone(saved):
    checkpoints = Checkpoints(saved)
    checkpoints.save(Progress(), {**state(), "version": VERSION + 1})
    before = files(saved)
    with pytest.raises(UserError, match="newer version of uda"):
        load_checkpoint(saved)
    assert files(saved) == before


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("bomb-went-off",))


def test_a_file_that_carries_code_is_refused_and_not_run(tmp_path, in_folder):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(Progress(), {"bomb": Bomb()})
    with pytest.raises(UserError, match="not a checkpoint of plain tensors"):
        load_checkpoint(tmp_path / "c")
    with pytest.raises(UserError, match="not a checkpoint of plain tensors"):
        parse(pickle.dumps(Bomb(), protocol=2))
    assert not (in_folder / "bomb-went-off").exists()


def test_the_file_opens_with_plain_torch(saved):
    found = torch.load(saved / files(saved)[-1], weights_only=True)
    assert found["version"] == VERSION and found["progress"]["epoch"] == 3


FULL = """
import resource, sys, torch
from pathlib import Path
from uda.training.checkpoint import Checkpoints, Progress
from uda.core.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    Checkpoints(Path(sys.argv[1])).save(Progress(), {"big": torch.zeros(1_000_000)})
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no file size limit here")
def test_a_write_that_the_system_refuses_half_way_leaves_what_was_there(saved, tmp_path_factory):
    """A limit of the file's size stops a real write in its middle, as a full disk does."""
    before = {name: (saved / name).read_bytes() for name in files(saved)}
    script = tmp_path_factory.mktemp("script") / "full.py"
    script.write_text(FULL)
    process = Forked(script, saved)
    output, error = process.communicate()
    assert process.returncode == 0, error
    assert "cannot be written: File too large" in output
    assert {name: (saved / name).read_bytes() for name in files(saved)} == before
    assert load_checkpoint(saved)[0] == Progress(epoch=3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_a_clear_error(saved, monkeypatch):
    real = pathlib.Path.open

    def open_full(path, *args, **kwargs):
        return real(pathlib.Path("/dev/full") if path.name.endswith(".tmp") else path, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "open", open_full)
    with pytest.raises(OutputError, match="No space left on device"):
        Checkpoints(saved).save(Progress(), state())
    assert len(files(saved)) == 2 and load_checkpoint(saved)[0] == Progress(epoch=3)


def test_checkpoints_that_nothing_needs_are_spaced_by_their_cost(tmp_path, monkeypatch):
    """One that took 0.5 s: none before 50 s, however short the interval."""
    now = 0.0
    monkeypatch.setattr("uda.training.checkpoint.time.monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, every=10)
    now = 9.9
    assert not checkpoints.due
    now = 10.0
    assert checkpoints.due

    def slow_write(*args):
        nonlocal now
        now += 0.5

    monkeypatch.setattr("uda.training.checkpoint.write_bytes", slow_write)
    checkpoints.save(Progress(), state())
    now += 49.9
    assert not checkpoints.due
    now += 0.2
    assert checkpoints.due and checkpoints.seconds_spent == 0.5
