"""The table in the terminal, at most 100 characters wide, and figures as text."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence

WIDTH = 100
MOST_CLASSES = 24
HEADER_EVERY = 10

#: Title, width, and whether the figure needs target labels.
Column = tuple[str, int, bool]


def header(columns: Sequence[Column]) -> list[str]:
    """A table's head: a line that marks oracle figures, the titles, and a rule."""
    oracle = "".join(f"{'oracle' if needs_labels else '':>{width}}" for _, width, needs_labels in columns)
    titles = "".join(f"{title:>{width}}" for title, width, _ in columns)
    return [oracle.rstrip(), titles, "-" * len(titles)]


def row(columns: Sequence[Column], cells: Mapping[str, str]) -> str:
    """A row of a table from its cells by title. A missing cell is empty."""
    return "".join(f"{cells.get(title, ''):>{width}}" for title, width, _ in columns).rstrip()


def result_lines(rows: Iterable[tuple[str, float | None, str]]) -> list[str]:
    """The figures of a run's result, one line each: name, per cent, note."""
    return [f"  {name:<18}{percent(share):>7}  {note}".rstrip() for name, share, note in rows]


def class_lines(per_class: Mapping[str, float | None]) -> list[str]:
    """Lines with the accuracy by class in per cent. With many classes only the lowest are shown."""
    known = [(name, share) for name, share in per_class.items() if share is not None]
    title = "% by class (oracle) "
    if len(known) > MOST_CLASSES:
        known = sorted(known, key=lambda entry: entry[1])[:MOST_CLASSES]
        title = f"% of the lowest {MOST_CLASSES} of {len(per_class)} classes (oracle) "
    # textwrap does not break at NO-BREAK SPACE, so a class and its figure stay on one line.
    words = title + ", ".join(f"{name}: {100 * share:.1f}".replace(" ", "\u00a0") for name, share in known)
    return [line.replace("\u00a0", " ") for line in indented([words])]


def indented(texts: Iterable[str]) -> list[str]:
    """Texts as lines below a row: indented and wrapped."""
    wrap = textwrap.TextWrapper(WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 10)
    return [line for text in texts for line in wrap.wrap(text)]


def percent(share: float | None) -> str:
    """A fraction in per cent with two decimals; a dash if it is unknown."""
    return "-" if share is None else f"{100 * share:.2f}"


def fraction(value: float | None, digits: int = 3) -> str:
    """A figure with three decimals; a dash if it is unknown."""
    return "-" if value is None else f"{value:.{digits}f}"


def difference(share: float | None, reference: float | None) -> str:
    """Percentage points from `reference` to `share`, with a sign; a dash if one is unknown."""
    return "-" if share is None or reference is None else f"{100 * (share - reference):+.2f}"
