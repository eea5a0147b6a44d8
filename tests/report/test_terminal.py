"""Tables in the terminal: the columns that fit, lines of classes, names from outside."""

import itertools
import unicodedata

import numpy as np
import pytest

from uda.core.plain_text import WIDTH, columns_of, harmless, short_name
from uda.report import terminal
from uda.report.terminal import MOST_LINES, MOST_OF_NAME, Column, class_lines, fitting, header, indented, row

HOSTILE = {
    "long": "x" * 300,
    "many words": "word " * 60,
    "chinese": "蝴蝶" * 40,
    "hebrew": "פרפר",
    "arabic": "فراشة طويلة جدا " * 10,
    "escape": "\x1b[31mred\x1b[2J",
    "newline": "one\nround 9\r\ntwo",
    "override": "a\u202egpj.exe",
    "tab": "a\tb",
    "separator": "a\u2028b",
    "surrogate": "bad\udce4name",
    "combining": "e\u0301" * 60,
    "empty": "",
}


def acts(line):
    """Characters that a terminal or an editor would obey."""
    return [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\u202e\u2066\u2067\u200f"]


def test_columns_are_left_out_by_rank_and_oracle_ones_without_labels():
    """8 + 8 + 8 + 8 = 32 columns: from 31 on, rank 2 goes first, then rank 1; rank 0 stays even in 5 columns."""
    table = [Column("a", 8), Column("b", 8, rank=2), Column("c", 8, oracle=True), Column("d", 8, rank=1)]
    titles = {width: [column.title for column in fitting(table, width)] for width in (32, 31, 24, 23, 16, 5)}
    assert titles == {32: [*"abcd"], 31: [*"acd"], 24: [*"acd"], 23: [*"ac"], 16: [*"ac"], 5: [*"ac"]}
    assert [column.title for column in fitting(table, 31, labelled=False)] == [*"abd"]


def test_a_table_by_hand():
    table = [Column("round", 6), Column("mean", 8, oracle=True)]
    assert header(table) == ["        oracle", " round    mean", "--------------"]
    assert header(table[:1]) == [" round", "------"]
    assert row(table, {"round": "3", "mean": "80.06", "other": "1"}) == "     3   80.06"
    assert row(table, {"round": "3"}) == "     3"


@pytest.mark.parametrize(
    ("text", "columns"), [("ape", 3), ("蝶", 2), ("ﾁ", 1), ("e\u0301", 1), ("פרפר", 4), ("a\u200eb", 2), ("😀", 2)]
)
def test_columns_of_a_text(text, columns):
    assert columns_of(text) == columns


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_a_name_is_harmless_and_bounded(name):
    shown = short_name(name, 24)
    assert columns_of(shown) <= 24 and not acts(shown)
    assert shown == name or len(name) > 10 or harmless(name) != name or shown == f"{name}\u200e"


def test_names_by_hand():
    assert short_name("a" * 12 + "b" * 13, 24) == "a" * 11 + "..." + "b" * 10
    assert short_name("蝶" * 13, 24) == "蝶" * 5 + "..." + "蝶" * 5
    assert short_name("\x1b[2J", 24) == "\\x1b[2J"
    assert short_name("פרפר", 24) == "פרפר\u200e"
    assert harmless("a\nb\x07", keep="\n") == "a\nb\\x07"


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize("count", [1, 12, 24, 345, 1000])
def test_class_lines_are_bounded(count, width):
    names = [f"class {index}" for index in range(count)]
    shares = np.random.default_rng(0).permutation(count) / count
    lines = class_lines(dict(zip(names, shares, strict=True)), width)
    assert 1 <= len(lines) <= MOST_LINES and max(map(columns_of, lines)) <= width
    text = " ".join(" ".join(lines).split())
    if text.startswith("% by class (oracle) "):
        assert all(f"{name}: " in text for name in names)
    else:
        shown = int(text.split()[4])
        assert text.startswith(f"% of the lowest {shown} of {count} classes (oracle) class ")
        lowest = [names[place] for place in np.argsort(shares)[:shown]]
        assert [part.partition(":")[0] for part in text.partition("(oracle) ")[2].split(", ")] == lowest
        assert len(lines) == MOST_LINES, "as many as fit"


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize("several", [1, 3])
def test_class_lines_of_hostile_names_fit_and_are_harmless(several, width):
    names = [f"{name}{number or ''}" for number, name in itertools.product(range(several), HOSTILE.values())]
    lines = class_lines(dict.fromkeys(names, 0.5), width)
    assert len(lines) <= MOST_LINES and max(map(columns_of, lines)) <= width
    assert not any(map(acts, lines))


def test_a_class_and_its_figure_stay_on_one_line():
    lines = class_lines({f"a name of words {index}": 0.5 for index in range(8)}, 60)
    assert len(lines) == 4 and all(line.rstrip(",").endswith(": 50.0") for line in lines[1:]), lines


def test_the_lines_of_twelve_classes_by_hand():
    names = ["aeroplane", "bicycle", "bus", "car", "horse", "knife", "motorcycle", "person", "plant", "skateboard"]
    lines = class_lines({name: 0.9 + index / 100 for index, name in enumerate([*names, "train", "truck"])})
    assert lines == [
        "        % by class (oracle) aeroplane: 90.0, bicycle: 91.0, bus: 92.0,",
        "          car: 93.0, horse: 94.0, knife: 95.0, motorcycle: 96.0, person: 97.0,",
        "          plant: 98.0, skateboard: 99.0, train: 100.0, truck: 101.0",
    ]


def test_classes_without_labels_have_no_line():
    assert class_lines({"ape": None, "bee": None}) == []


@pytest.mark.parametrize("width", [40, 80])
def test_wrapped_texts_fit(width):
    texts = ["warning: a sentence of some words " * 5, f"warning: {'蝶' * 100} and {'x' * 200}", "one\x1b[2J\ntwo"]
    lines = indented(texts, width)
    assert max(map(columns_of, lines)) <= width and not any(map(acts, lines))
    assert lines[0].startswith(" " * 8 + "warning:") and lines[1].startswith(" " * 10)
    assert "".join("".join(lines).split()).count("蝶") == 100


def test_many_names_of_the_same_beginning_differ():
    """A long name loses its middle and not its end."""
    names = [f"a very long prefix of every class, number {index}" for index in range(3)]
    assert len({short_name(name, MOST_OF_NAME) for name in names}) == 3
    assert terminal.WIDTH == WIDTH == 80
