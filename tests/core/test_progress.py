"""Progress lines: what a log file gets, and that the items themselves are untouched."""

import io
from types import SimpleNamespace

import pytest

import uda.core.progress
from uda.core.progress import progress
from uda.training.run_folder import RunLog


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


@pytest.fixture
def no_terminal(monkeypatch):
    """Standard error goes to a file, wherever the tests run."""
    monkeypatch.setattr("sys.stderr", io.StringIO())


@pytest.fixture
def set_clock(monkeypatch):
    """Give the module a clock that advances by this many seconds each time it is read."""

    def install(step):
        readings = iter(range(0, 1000 * step, step))
        monkeypatch.setattr(uda.core.progress, "time", SimpleNamespace(monotonic=lambda: next(readings)))

    return install


def test_lines_without_a_terminal(no_terminal, set_clock, monkeypatch):
    """2 s per item: 1 of 3 after 2 s is 0.5 per second and leaves 4 s; 2 of 3 leaves 2 s. No line at the end."""
    monkeypatch.setattr(uda.core.progress, "SECONDS_BETWEEN_LINES", 0)
    set_clock(2)
    lines = []
    assert list(progress("abc", "round 4", 3, lines.append)) == ["a", "b", "c"]
    assert lines == ["round 4: 1/3, 0.5 per second, 4 s left", "round 4: 2/3, 0.5 per second, 2 s left"]


def test_a_line_every_so_many_seconds_only(no_terminal, set_clock):
    """Ten seconds per item and a line every thirty: after items 3 and 6 of 8. Slow items have no rate of 0.1."""
    set_clock(10)
    lines = []
    list(progress(range(8), "predict", 8, lines.append))
    assert uda.core.progress.SECONDS_BETWEEN_LINES == 30
    assert lines == ["predict: 3/8, 10 s each, 50 s left", "predict: 6/8, 10 s each, 20 s left"]


def test_what_is_quick_says_nothing(no_terminal):
    lines = []
    list(progress(range(1000), "predict", 1000, lines.append))
    assert lines == []


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_items_pass_through_unchanged_and_one_at_a_time(monkeypatch, stream):
    """The very objects, in order, and none is fetched before it is asked for."""
    monkeypatch.setattr("sys.stderr", stream())
    given = [object() for _ in range(5)]
    fetched = []

    def source():
        for item in given:
            fetched.append(item)
            yield item

    lines = []
    for count, item in enumerate(progress(source(), "train", 5, lines.append), 1):
        assert item is given[count - 1]
        assert len(fetched) == count
    assert count == 5 and lines == []


def test_a_bar_on_a_terminal(monkeypatch):
    """The bar waits two seconds before it shows: its clock is set forward instead."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    lines = []
    assert list(progress(range(4), "train", 4, lines.append)) == [0, 1, 2, 3]
    assert "train" in terminal.getvalue() and "/4" in terminal.getvalue()
    assert lines == []


def test_a_quiet_log_gets_neither_bar_nor_lines(monkeypatch, set_clock):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(uda.core.progress, "SECONDS_BETWEEN_LINES", 0)
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr("tqdm.std.time", lambda: next(clock))
    set_clock(2)
    assert list(progress(range(4), "train", 4, RunLog(show=None))) == [0, 1, 2, 3]
    assert list(progress(range(4), "train", 4, RunLog(silent=True))) == [0, 1, 2, 3]
    assert terminal.getvalue() == ""
