"""Tables and figures as text: as wide as the terminal, or 80 columns wide."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from uda.core.plain_text import WIDTH, beginning, columns_of, harmless, short_name

#: Most lines with the figures of classes below a row, and most columns of one name in them.
MOST_LINES, MOST_OF_NAME = 4, 24
HEADER_EVERY = 10
#: Name of the untouched network with the class vectors of `model.classifier`, for readers.
ZERO_SHOT_NAME = "zero-shot"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    """The title; cells are found by it."""
    width: int
    """Width with the space before it."""
    oracle: bool = False
    """Whether the figure needs target labels."""
    rank: int = 0
    """Columns with the highest rank are left out first where the table is too wide. Rank 0 is never left out."""


def with_zero_shot(columns: Sequence[Column]) -> list[Column]:
    """The columns with room for the name of the untouched network's row."""
    return [replace(columns[0], width=1 + len(ZERO_SHOT_NAME)), *columns[1:]]


def fitting(columns: Sequence[Column], width: int = WIDTH, labelled: bool = True) -> list[Column]:
    """The columns of a table that fit into a width, in their order.

    `labelled`: whether there are target labels. Without them the table has no oracle columns.
    """
    left = [column for column in columns if labelled or not column.oracle]
    while sum(column.width for column in left) > width and any(column.rank for column in left):
        left.remove(max(left, key=lambda column: column.rank))
    return left


def header(columns: Sequence[Column]) -> list[str]:
    """A table's head: a line that marks oracle figures, if there are any, the titles, and a rule."""
    oracle = "".join(f"{'oracle' if column.oracle else '':>{column.width}}" for column in columns)
    titles = "".join(f"{column.title:>{column.width}}" for column in columns)
    return [*([oracle.rstrip()] if oracle.strip() else []), titles, "-" * len(titles)]


def row(columns: Sequence[Column], cells: Mapping[str, str]) -> str:
    """A row of a table from its cells by title. A missing cell is empty."""
    return "".join(f"{cells.get(column.title, ''):>{column.width}}" for column in columns).rstrip()


def result_lines(rows: Iterable[tuple[str, float | None, str]]) -> list[str]:
    """The figures of a run's result, one line each: name, per cent, note."""
    return [f"  {name:<18}{percent(share):>7}  {note}".rstrip() for name, share, note in rows]


def zero_shot_lines(share: float | None) -> list[tuple[str, float | None, str]]:
    """The row of `result_lines` of the untouched network; none if its accuracy is not known."""
    return [] if share is None else [(ZERO_SHOT_NAME, share, "the network before any training")]


def class_lines(per_class: Mapping[str, float | None], width: int = WIDTH) -> list[str]:
    """Lines with the accuracy by class in per cent. If there are too many classes, only the lowest are shown."""
    known = [(name, share) for name, share in per_class.items() if share is not None]
    if not known:
        return []
    whole = _class_lines("% by class (oracle)", known, width)
    if len(whole) <= MOST_LINES:
        return whole
    lowest = sorted(known, key=lambda entry: entry[1])
    few, many = 1, len(known)  # bisection: `few` classes fit, `many` do not
    lines = _class_lines(_of_lowest(1, per_class), lowest[:1], width)
    while many - few > 1:
        count = (few + many) // 2
        tried = _class_lines(_of_lowest(count, per_class), lowest[:count], width)
        few, many, lines = (count, many, tried) if len(tried) <= MOST_LINES else (few, count, lines)
    return lines


def _of_lowest(count: int, per_class: Mapping[str, float | None]) -> str:
    return f"% of the lowest {count} of {len(per_class)} classes (oracle)"


def _class_lines(title: str, shares: Sequence[tuple[str, float]], width: int) -> list[str]:
    figures = [f"{short_name(name, MOST_OF_NAME)}: {100 * share:.1f}" for name, share in shares]
    words = [*title.split(), *(figure + "," for figure in figures[:-1]), *figures[-1:]]
    return _wrapped(words, width)


def indented(texts: Iterable[str], width: int = WIDTH) -> list[str]:
    """Texts as lines below a row: indented and wrapped."""
    return [line for text in texts for line in _wrapped(harmless(text).split(), width)]


def _wrapped(words: Iterable[str], width: int) -> list[str]:
    """Words as lines, indented. `textwrap` counts characters, not columns, and would break a class from its figure."""
    lines, line = [], " " * 7
    for word in (part for whole in words for part in _parts(whole, width - 10)):
        if columns_of(line) + 1 + columns_of(word) > width and line.strip():
            lines.append(line)
            line = " " * 9
        line += f" {word}"
    return [*lines, line]


def _parts(word: str, most: int) -> Iterator[str]:
    """A word in parts of at most so many columns."""
    while columns_of(word) > max(most, 2):
        part = beginning(word, max(most, 2))  # a wide character has two columns
        yield part
        word = word[len(part) :]
    yield word


def percent(share: float | None) -> str:
    """A fraction in per cent with two decimals; a dash if it is unknown."""
    return "-" if share is None else f"{100 * share:.2f}"


def fraction(value: float | None, digits: int = 3) -> str:
    """A figure with three decimals; a dash if it is unknown."""
    return "-" if value is None else f"{value:.{digits}f}"


def difference(share: float | None, reference: float | None) -> str:
    """Percentage points from `reference` to `share`, with a sign; a dash if one is unknown."""
    return "-" if share is None or reference is None else f"{100 * (share - reference):+.2f}"
