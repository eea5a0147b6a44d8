"""What a part of the study leaves, and what it takes away."""

import re

from uda.report.figures import COLOURS, new_axes, styled
from uda.report.findings import Findings


def _page(folder, title, *names):
    findings = Findings(folder, title)
    for name in names:
        findings.figure(name, new_axes(2, 2).figure, name, "", [{"x": 1}])
    findings.table("numbers", "", [{"x": 2}])
    findings.write()


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_the_page_before_alone_had_goes_with_it(tmp_path):
    _page(tmp_path, "Scores & people", "histogram_avh", "histogram_norm")
    (tmp_path / "mine.csv").write_text("kept: no page names it")
    _page(tmp_path, "Scores & people", "histogram_avh")
    figure = ["histogram_avh.csv", "histogram_avh.png", "histogram_avh.svg"]
    assert _names(tmp_path) == [*figure, "index.html", "mine.csv", "numbers.csv"]


def test_another_part_of_the_study_takes_nothing_away(tmp_path):
    _page(tmp_path, "Scores and people", "histogram_avh")
    _page(tmp_path, "Degraded images", "curves")
    assert {"histogram_avh.png", "curves.png"} <= set(_names(tmp_path))


def test_a_figure_with_colours_of_its_own_stands_on_white(tmp_path):
    """The page's variables stand for the colours of the reports, and follow a dark screen. Other colours do not."""
    plain, own, pixels = (styled(new_axes)(2, 2) for _ in range(3))
    plain.plot([0, 1], [0, 1], color=COLOURS[0])
    own.plot([0, 1], [0, 1], color="#123456")
    pixels.imshow([[0, 1]])
    findings = Findings(tmp_path, "Figures")
    for name, axes in (("plain", plain), ("own", own), ("pixels", pixels)):
        styled(findings.figure)(name, axes.figure, name, "A figure.", [{"x": 1}])
    page = findings.write().read_text()
    kinds = dict(re.findall(r'<figure class="panel narrow" id="(\w+)">.*?<div class="(.*?)">', page, re.DOTALL))
    assert kinds == {"plain": "fit", "own": "fit on-white", "pixels": "fit on-white"}
    assert "stroke: var(--series-1)" in page and "stroke: #123456" in page


def test_tables_are_sorted_by_their_numbers_not_by_their_texts(tmp_path):
    findings = Findings(tmp_path, "Tables")
    findings.table(
        "t", "", [{"model": "a<b", "images": 12345, "share": 0.123456789, "word": None, "odd": float("nan")}]
    )
    page = findings.write().read_text()
    cells = re.findall(r"<td(.*?)><bdi>(.*?)</bdi></td>", page)
    assert cells == [(' data-value="12345"', "12,345"), (' data-value="0.123456789"', "0.1235"), ("", "-"), ("", "nan")]
    assert "a&lt;b" in page and '<table class="names" data-sortable>' in page
