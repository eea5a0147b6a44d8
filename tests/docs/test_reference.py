"""docs/settings.md and docs/methods.md are what the code says; the drawing shows the numbers of its page."""

import re
import runpy

import pytest

from uda.core.resources import CHECKOUT

REFERENCE = runpy.run_path(str(CHECKOUT / "docs" / "reference.py"))
PAGES = {name: (CHECKOUT / "docs" / name).read_text(encoding="utf-8") for name in ("settings.md", "methods.md")}


def test_pages_are_up_to_date():
    assert REFERENCE["main"](["--check"]) == 0, "python docs/reference.py"


def test_every_setting_is_explained():
    rows = [line for page in PAGES.values() for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert [row for row in rows if re.search(r"\|\s*\|$", row)] == []


def test_every_method_cites_its_paper():
    """But for the two baselines, which have none."""
    parts = re.split(r"^### ", PAGES["methods.md"].partition("## Classification losses")[0], flags=re.MULTILINE)[1:]
    without = [part.split("\n")[0] for part in parts if not re.search(r"(19|20)\d\d\)", part)]
    assert sorted(without) == ["erm", "source_only"]


@pytest.mark.parametrize("block", [block for texts in REFERENCE["blocks"]().values() for block in texts.items()])
def test_tables_have_as_many_cells_in_every_row(block):
    for lines in re.findall(r"(?:^\|.*\n)+", block[1], flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1


def test_the_drawing_shows_the_numbers_of_the_page(tmp_path):
    """Angles of 25, 45 and 115 degrees: AVC of the first class is 155 / 355, AVH 25 / 185."""
    drawing = runpy.run_path(str(CHECKOUT / "docs" / "drawing.py"))
    figures = drawing["figures"]()
    assert figures["angle"][0] == pytest.approx([25, 45, 115])
    assert figures["avc"][0][0] == figures["avc"][1][0] == pytest.approx(155 / 355)
    page = (CHECKOUT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert f"{figures['softmax'][1][0]:.2f} for `car`, against {figures['softmax'][0][0]:.2f} for a" in page
    assert f"AVC is {figures['avc'][0][0]:.2f} for both" in page and f"= {figures['avh'][0][0]:.2f} for both" in page
    drawing["draw"](tmp_path / "angles.svg")
    assert "image a" in (tmp_path / "angles.svg").read_text(encoding="utf-8")
