"""What a part of the study leaves: figures as PNG and SVG, the data behind each as CSV, tables, and one page."""

import base64
import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uda.core.errors import UserError
from uda.core.files import write_bytes, write_text
from uda.report import figures
from uda.report.html import template

#: A line of a table: cells by column, numbers or texts, None where nothing is known.
Row = Mapping[str, Any]

PNG_DPI = 150
#: Inches; a wider figure takes the page's whole width.
WIDEST_NARROW = 7


class Findings:
    """A folder of findings, and the page that shows them in the order in which they were added.

    Args:
        folder: where everything goes.
        title: of the page.
        intro: a sentence or two below it.
    """

    def __init__(self, folder: Path, title: str, intro: str = ""):
        self.folder = folder
        self.title = title
        self.intro = intro
        self._parts: list[dict[str, Any]] = []

    def section(self, title: str, text: str = "") -> None:
        """A heading of the page."""
        self._parts.append({"kind": "section", "title": title, "text": text})

    def figure(
        self, name: str, figure, title: str, description: str, data: Sequence[Row], raster: bool = False
    ) -> None:
        """A figure: `<name>.png`, `<name>.svg`, and `<name>.csv` with what is drawn in it.

        Args:
            name: file name without ending, different from all others of the folder; what no file can be called, or
                no link lead to, becomes `-`.
            figure: matplotlib's.
            title: for the page.
            description: what is to be seen in it, for those who cannot and for those who look; a sentence or two.
            data: the numbers that are drawn.
            raster: show it as pixels on the page: for photos, and for clouds of thousands of points.
        """
        name = self._new(name)
        png, svg = _encoded(figure, "png"), _encoded(figure, "svg")
        write_bytes(self.folder / f"{name}.png", png)
        write_bytes(self.folder / f"{name}.svg", svg)
        write_rows(self.folder / f"{name}.csv", data)
        shown = (
            {"png": base64.b64encode(png).decode()} if raster else {"svg": figures.to_svg(figure, name, description)}
        )
        wide = figure.get_figwidth() > WIDEST_NARROW
        self._parts.append(
            {"kind": "figure", "name": name, "title": title, "description": description, "wide": wide, **shown}
        )

    def table(self, name: str, title: str, rows: Sequence[Row], description: str = "", first: bool = False) -> None:
        """A table, which goes to `<name>.csv` too; `first`: above all that is there already."""
        name = self._new(name)
        write_rows(self.folder / f"{name}.csv", rows)
        head = list(rows[0]) if rows else []
        body = [[_cell(row[key]) for key in head] for row in rows]
        longest = [max(map(len, column)) for column in zip(*body, strict=True)] or [0] * len(head)
        part = {
            "kind": "table", "name": name, "title": title, "description": description,
            "head": head, "rows": body, "longest": longest,
        }  # fmt: skip
        self._parts.insert(0 if first else len(self._parts), part)

    def write(self, facts: Sequence[tuple[str, str]] = ()) -> Path:
        """Write `index.html`, one file that holds all it shows; `facts` say what was run. Returns its path.

        A page of the same title that was there goes, and with it the figures and data that it alone had: what lies
        beside a page is that page's.
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
    """The files of figures and tables that a page leads to, all beside it."""
    return set(re.findall(r'href="([\w.,=+-]+\.(?:png|svg|csv))"', page))


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Rows of equal columns as CSV; an unknown cell is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _cell(value: Any) -> str:
    """A cell for readers: four significant digits."""
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
