"""The table of an adaptation in the terminal and in log.txt."""

import numpy as np
import pytest

from uda.adaptation.terminal import OF_INTERVALS, OF_ROUNDS, round_cells, source_cells
from uda.core.plain_text import columns_of
from uda.data.domains import TargetLabels
from uda.generalization.report import COLUMNS
from uda.report.terminal import fitting, header, row
from uda.training.pace import rough_duration
from uda.training.run_folder import RunLog

NAMES = {
    12: [f"class {index}" for index in range(12)],
    345: [f"class number {index}" for index in range(345)],
    "hostile": ["\x1b[2J\x1b[31m", "line\nbreak", "蝴蝶" * 30, "פרפר", "x" * 200, "a\u202eb", "tab\tbed"],
}


def table_of(run, rounds=2):
    """The lines of a run's source model and rounds."""
    run.begin(rounds)
    return run.lines


@pytest.mark.parametrize("columns", [OF_ROUNDS, OF_INTERVALS, COLUMNS], ids=["rounds", "intervals", "generalization"])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_tables_fit_at_every_width_from_40(columns, labelled):
    for width in range(40, 141):
        assert sum(column.width for column in fitting(columns, width, labelled)) <= width


def test_columns_come_with_the_width():
    def left_out(width, labelled=True):
        kept = fitting(OF_ROUNDS, width, labelled)
        return {column.title for column in OF_ROUNDS if column not in kept and (labelled or not column.oracle)}

    assert left_out(140) == set()
    assert left_out(91) == {"AVH", "norm", "loss", "classes"}
    assert left_out(80) == {"AVH", "norm", "loss", "classes", "confidence"}
    assert left_out(60) == left_out(80) | {"AVC", "seconds", "portion"}
    assert left_out(80, labelled=False) == {"loss"}


def test_the_table_of_a_run(make_run):
    lines = table_of(make_run())
    assert lines[:3] == [
        "                         oracle           oracle  oracle  oracle",
        " round portion selected TP rate   AVC class mean overall    gain seconds    left",
        "-" * 80,
    ]
    rows = [line for line in lines[3:] if line[5] != " "]
    assert [row.split()[0] for row in rows] == ["source", "0", "1"]
    assert rows[1].split()[:2] == ["0", "0.2"] and rows[1].endswith(" min")


GOLDEN = {
    (80, True): """
                         oracle           oracle  oracle  oracle
 round portion selected TP rate   AVC class mean overall    gain seconds    left
--------------------------------------------------------------------------------
source                                     80.06   80.00              12  10 min
     9     0.9     4497   98.00 0.143      95.44   95.40  +15.38    3705 120.0 h
""",
    (60, True): """
                 oracle     oracle  oracle  oracle
 round selected TP rate class mean overall    gain    left
----------------------------------------------------------
source                       80.06   80.00          10 min
     9     4497   98.00      95.44   95.40  +15.38 120.0 h
""",
    (80, False): """
 round portion selected   AVC   AVH confidence   norm classes seconds    left
-----------------------------------------------------------------------------
source                                                    9.7      12  10 min
     9     0.9     4497 0.143 0.071      0.987   31.4    10.0    3705 120.0 h
""",
    (140, True): """
                         oracle                                                  oracle  oracle  oracle
 round portion selected TP rate   AVC   AVH confidence   norm   loss classes class mean overall    gain seconds    left
-----------------------------------------------------------------------------------------------------------------------
source                                                                   9.7      80.06   80.00              12  10 min
     9     0.9     4497   98.00 0.143 0.071      0.987   31.4  0.250    10.0      95.44   95.40  +15.38    3705 120.0 h
""",
}


@pytest.mark.parametrize(("width", "labelled"), GOLDEN)
def test_golden_tables(width, labelled):
    source = {"class_mean": 0.8006, "overall": 0.8, "effective_classes": 9.74, "seconds": 12.2}
    chosen = {"portion": 0.9, "selected": 4497, "tp_rate": 0.98, "avc": 0.143, "avh": 0.071, "confidence": 0.987}
    reached = {"class_mean": 0.9544, "overall": 0.954, "effective_classes": 9.99, "seconds": 3705, "loss": 0.25}
    columns = fitting(OF_ROUNDS, width, labelled)
    rows = [
        source_cells(source) | {"left": rough_duration(600)},
        round_cells({"round": 9, "feature_norm": 31.4, **chosen, **reached}, source)
        | {"left": rough_duration(432_000)},
    ]
    lines = [*header(columns), *(row(columns, cells) for cells in rows)]
    assert lines == GOLDEN[width, labelled].strip("\n").split("\n")


def test_a_target_without_labels_has_no_oracle_columns(make_run):
    lines = table_of(make_run(labelled=False))
    assert lines[0] == " round portion selected   AVC   AVH confidence   norm classes seconds    left"
    assert lines[1] == "-" * len(lines[0])
    assert not any("oracle" in line for line in lines)


@pytest.mark.parametrize("domains", [1, 3])
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("classes", NAMES)
def test_every_line_fits_and_is_harmless(make_run, classes, labelled, domains):
    run = make_run(classes=NAMES[classes], labelled=labelled, images=800, page=False)
    if labelled and domains > 1:
        where = np.arange(800) % domains
        run.target_labels = TargetLabels(run.labels, where, [NAMES["hostile"][place] for place in range(domains)])
    lines = table_of(run)
    assert max(map(columns_of, lines)) <= 80
    assert not any(character in line for line in lines for character in "\x1b\n\t\u202e")
    assert len(lines) < 40, "lines below a row are bounded"
    if labelled and domains > 1:
        assert any("by target domain (oracle)" in line for line in lines)


class Terminal:
    """A terminal's stdout."""

    def isatty(self):
        return True


@pytest.mark.parametrize("width", [60, 100, 300])
def test_a_terminal_has_its_own_width_and_log_txt_80(make_run, tmp_path, monkeypatch, width):
    monkeypatch.setattr("sys.stdout", Terminal())
    monkeypatch.setenv("COLUMNS", str(width))
    shown, narrow = [], make_run(classes=NAMES[345], images=800, page=False)
    narrow.begin(1)
    run = make_run(classes=NAMES[345], images=800, page=False)
    run.records.__init__(run.folder)
    log = RunLog(show=shown.append)
    log.open(tmp_path / "log.txt")
    report = run.report()
    report.log = log
    run.source(report, 20.0)
    report.round(run.record(0))
    written = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line[21:] for line in written] == narrow.lines
    assert max(map(len, shown)) <= min(width, 140)
    assert ("confidence" in shown[1]) == (width > 90)
    assert (len(shown) < len(narrow.lines)) or width < 80


def test_the_time_left_is_told_in_every_row(make_run):
    """Ten rounds: 12.5 s each, by the steps of `steps_of_rounds`; the source's pace before them is only an order."""
    run = make_run(page=False)
    report = run.report()
    assert report.seconds_left is None
    run.source(report, 20.0)
    assert report.seconds_left is None, "a source model that was not trained says nothing of training"
    rounds = run.config.self_training.rounds
    for index in range(3):
        report.round(run.record(index))
    rows = [line.split() for line in run.lines if line.split()[0] in ("0", "1", "2")]
    assert all(row[-1] in ("s", "min") for row in rows)
    assert 12.5 <= report.seconds_left / (rounds - 3) < 40
    assert run.report().seconds_left == report.seconds_left, "the same after a resume"


def test_the_time_left_ends_at_zero(make_run):
    run = make_run(page=False)
    rounds = run.config.self_training.rounds
    left = []
    report = run.report()
    run.source(report, 20.0)
    for index in range(rounds):
        report.round(run.record(index, portion=0.2))
        left.append(report.seconds_left)
    assert left == sorted(left, reverse=True) and left[-1] == 0
    assert run.lines[-1].endswith(" 0 s") or any(line.endswith(" 0 s") for line in run.lines)
