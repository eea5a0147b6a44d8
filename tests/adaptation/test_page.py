import html
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from uda.report import figures
from uda.report.html import duration


class Document(HTMLParser):
    """Tags with their attributes, ids, and whether every element is closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "input"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def page_of(run, rounds=3):
    run.play(rounds)
    return (run.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(played_run):
    return (played_run.folder / "report.html").read_text(encoding="utf-8")


def text_of(page):
    shown = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())


def test_the_page_is_well_formed_and_asks_nothing_of_the_network(page):
    document = Document(page)
    assert document.open == []
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", page))
    assert not document.all("script")
    assert not document.all("link")
    for image in document.all("img"):
        assert image["src"].startswith("data:image/jpeg;base64,")
    for _, attributes in document.tags:
        assert attributes.get("xlink:href", "#").startswith(("#", "data:"))


def test_ids_are_unique_and_references_find_them(page):
    ids = [attributes["id"] for _, attributes in Document(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_every_picture_has_an_alternative_text(page):
    document = Document(page)
    assert all(image["alt"] for image in document.all("img"))
    drawings = document.all("svg")
    assert len(drawings) >= 10
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)


def test_the_page_shows_the_numbers_of_the_results(page, played_run):
    run, text = played_run, text_of(page)
    before, after = run.accuracy(0).class_mean, run.accuracy(3).class_mean
    assert f"went from {100 * before:.2f} %" in text
    assert f"{100 * after:.2f} % after 3 rounds" in text
    assert f"({100 * (after - before):+.2f} points)" in text
    for index in range(3):
        metrics = run.record(index).labels.metrics
        both = metrics["overlap"]["both"]
        row = f"{metrics['selected']} {both} {metrics['tp_rate']:.3f} {metrics['avc']:.3f} {metrics['avh']:.3f}"
        assert row in text
    for name, share in run.accuracy(3).per_class.items():
        assert re.search(rf"{name} [\d.]+ {100 * share:.2f} ", text)


def test_the_gallery_tells_right_from_wrong_by_more_than_colour(page, played_run):
    run = played_run
    overlap = run.record(2).labels.metrics["overlap"]
    text = text_of(page)
    assert f"Selected by avc, not by softmax: {overlap['only_selector']} images" in text
    assert f"Selected by softmax, not by avc: {overlap['only_softmax']} images" in text
    items = re.findall(r'<li class="(right|wrong|unknown)">(.*?)</li>', page, re.DOTALL)
    verdicts = {verdict for verdict, _ in items}
    assert verdicts == {"right", "wrong"}
    for verdict, item in items:
        label = re.search(r"label <strong>(\w+)</strong>", item)[1]
        truth = re.search(r"<div>is (\w+)", item)[1]
        assert (label == truth) == (verdict == "right")
        assert ("✓ right" if verdict == "right" else "✗ wrong") in item
        index = int(re.search(r'title="img/(\d+)\.png"', item)[1])
        assert run.classes[run.labels[index]] == truth
    assert "dashed" in page


def test_figures_that_need_labels_are_marked(page):
    titles = ["TP rate", "mean, %", "overall, %", "source", "ECE", "source, %", "final, %", "Oracle best", "Final"]
    for title in titles:
        assert re.search(rf'{re.escape(title)} <abbr class="oracle"', page), title


def test_without_labels_the_page_says_so_and_judges_no_image(make_run):
    page = page_of(make_run(labelled=False))
    text = text_of(page)
    assert "The target has no labels" in text
    assert "✓" not in text
    assert "went from" not in text
    assert 'class="unknown"' in page
    assert Document(page).open == []


def test_softmax_beside_softmax_coincide(make_run):
    text = text_of(page_of(make_run(selector="softmax")))
    assert "The selector of this run is softmax, so there is no difference to show" in text
    assert "not by avc" not in text


def test_a_source_model_alone_has_a_page(make_run):
    run = make_run(method="source_only")
    page = page_of(run, 0)
    assert f"is {100 * run.accuracy(0).class_mean:.2f} %" in text_of(page)
    assert "Over the rounds" not in page
    assert Document(page).open == []


@pytest.mark.parametrize("count", [2, 60])
def test_few_and_many_classes(make_run, count):
    run = make_run(classes=[f"name{index}" for index in range(count)], images=900)
    page = page_of(run, 1)
    rows = re.search(r'aria-label="Table of the classes".*?</table>', page, re.DOTALL)[0]
    assert len(re.findall(r"<th scope=.row.>name\d+</th>", rows)) == count
    assert ("classes that changed most" in page) == (count == 60)


def test_names_are_escaped(make_run):
    page = page_of(make_run(classes=("a<b>", 'say "hi"', "c&d")), 1)
    assert "<b>" not in page
    assert "a&lt;b&gt;" in page
    assert Document(page).open == []


def test_gallery_of_none_is_said(make_run):
    page = page_of(make_run(gallery=0), 1)
    assert "Galleries are switched off" in page
    assert "<img" not in page


def test_figures_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    figure = figures.curves_figure([0, 1], {"one": [0.1, None]}, "share", 0.05)
    figures.to_svg(figure, "curve", "a curve")
    assert dict(matplotlib.rcParams) == before


def test_a_figure_as_pixels_is_not_blank():
    pixels = figures.to_rgb(figures.confusion_figure([[9, 1], [0, 5]], ["ape", "bee"]))
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 20


def test_the_same_figure_gives_the_same_svg():
    draw = lambda: figures.to_svg(figures.counts_figure([0, 1], [5, 7], [1, 0], "avc"), "counts", "counts")  # noqa: E731
    assert draw() == draw()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (None, "-")]
)
def test_durations_are_written_for_readers(seconds, words):
    assert duration(seconds) == words
