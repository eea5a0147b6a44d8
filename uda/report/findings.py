"""Findings of the study: figures as PNG and SVG, their data as CSV, tables, and one page."""

import base64
import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uda.core.errors import UserError
from uda.core.files import write_bytes, write_text
from uda.report import figures
from uda.report.html import template

#: A row of a table: cells by column. A cell is a number, a text, or None if unknown.
Row = Mapping[str, Any]

PNG_DPI = 150
#: Width in inches above which a figure takes the whole width of the page.
WIDEST_NARROW = 7


class Findings:
    """A folder of findings, and a page that shows them in the order in which they were added.

    Args:
        folder: the folder for all files.
        title: title of the page.
        intro: one or two sentences below the title.
    """

    def __init__(self, folder: Path, title: str, intro: str = ""):
        self.folder = folder
        self.title = title
        self.intro = intro
        self._parts: list[dict[str, Any]] = []

    def section(self, title: str, text: str = "") -> None:
        """Add a heading to the page."""
        self._parts.append({"kind": "section", "title": title, "text": text})

    def figure(
        self, name: str, figure, title: str, description: str, data: Sequence[Row], raster: bool = False
    ) -> None:
        """Add a figure. Writes `<name>.png`, `<name>.svg`, and `<name>.csv` with its data.

        Args:
            name: file name without ending, unique in the folder. Characters that do not fit in a file name or link
                become `-`.
            figure: a figure of matplotlib.
            title: title on the page.
            description: one or two sentences on what the figure shows, also for screen readers.
            data: the numbers that are drawn.
            raster: show the figure as pixels on the page, for photos and for thousands of points.
        """
        name = self._new(name)
        png = _encoded(figure, "png")
        figure.set_layout_engine("none")  # to find places for labels takes as long as to draw: they stay where they are
        svg = _encoded(figure, "svg")
        write_bytes(self.folder / f"{name}.png", png)
        write_bytes(self.folder / f"{name}.svg", svg)
        write_rows(self.folder / f"{name}.csv", data)
        own = raster
        if raster:
            shown = {"png": base64.b64encode(png).decode()}
        else:
            drawn = figures.to_svg(figure, name, description, themed=False)
            themed = figures.with_variables(drawn)
            own = figures.has_own_colours(themed)
            shown = {"svg": drawn if own else themed}
        wide = figure.get_figwidth() > WIDEST_NARROW
        about = {"kind": "figure", "name": name, "title": title, "description": description}
        self._parts.append({**about, "wide": wide, "on_white": own, **shown})

    def table(self, name: str, title: str, rows: Sequence[Row], description: str = "", first: bool = False) -> None:
        """Add a table, and write it to `<name>.csv`. `first`: show it above everything else."""
        name = self._new(name)
        write_rows(self.folder / f"{name}.csv", rows)
        head = list(rows[0]) if rows else []
        body = [[(_cell(row[key]), _number(row[key])) for key in head] for row in rows]
        longest = [max(len(text) for text, _ in column) for column in zip(*body, strict=True)] or [0] * len(head)
        part = {
            "kind": "table", "name": name, "title": title, "description": description,
            "head": head, "rows": body, "longest": longest,
        }  # fmt: skip
        self._parts.insert(0 if first else len(self._parts), part)

    def write(self, facts: Sequence[tuple[str, str]] = ()) -> Path:
        """Write `index.html`, a page that needs no other files. Returns its path. `facts` describe what was run.

        A former page with the same title is replaced, and figures and data that only that page had are deleted.
        """
        page = template("hardness.html").render(title=self.title, intro=self.intro, parts=self._parts, facts=facts)
        path = self.folder / "index.html"
        former = path.read_text(encoding="utf-8") if path.is_file() else ""
        write_text(path, page)
        if _title(former) == _title(page):
            for name in _files(former) - _files(page):
                (self.folder / name).unlink(missing_ok=True)
        return path

    def _new(self, name: str) -> str:
        name = re.sub(r"[^\w.,=+-]+", "-", name)
        if any(part.get("name") == name for part in self._parts):
            raise UserError(f"{self.folder}: two figures or tables would be called '{name}'")
        return name


def _title(page: str) -> str | None:
    found = re.search(r"<title>(.*?)</title>", page, flags=re.DOTALL)
    return found and found[1]


def _files(page: str) -> set[str]:
    """The files of figures and tables that a page links to, all in its folder."""
    return set(re.findall(r'href="([\w.,=+-]+\.(?:png|svg|csv))"', page))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV. All rows have the same columns. An unknown cell is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _number(value: Any) -> float | int | None:
    """The number that a cell is sorted by; None if it is no number."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _cell(value: Any) -> str:
    """Text of a cell, with four significant digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _encoded(figure, kind: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "uda"}):
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(buffer, format=kind, dpi=PNG_DPI, metadata=metadata)
    return buffer.getvalue()
