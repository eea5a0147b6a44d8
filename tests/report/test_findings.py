"""What a part of the study leaves, and what it takes away."""

from uda.report.figures import new_axes
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
