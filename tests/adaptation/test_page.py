"""The page of a run as it is written, without a script: what it says, marks and leaves out."""

import functools
import html
import json
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.page import adaptation_page
from uda.report import figures, page_data
from uda.report.html import duration
from uda.report.image_table import ImageTable
from uda.report.pictures import notable_rows
from uda.report.run_record import RunRecord

#: What a script would need to ask a server for something, or to run text as code.
NETWORK_OR_EVAL = (
    r"\b(fetch|eval|import|importScripts)\s*\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|new Function"
)


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


@pytest.fixture
def make_run(make_run):
    """Runs of these tests write their page."""
    return functools.partial(make_run, page=True)


def page_of(run, rounds=3):
    run.play(rounds)
    return (run.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(played_run):
    return (played_run.folder / "report.html").read_text(encoding="utf-8")


def markup_of(page):
    """The page without styles and scripts."""
    return re.sub(r"<(style|script).*?</\1>", " ", page, flags=re.DOTALL)


def text_of(page):
    shown = re.sub(r"<svg.*?</svg>", " ", markup_of(page), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())


def data_of(page):
    """What the page's script gets."""
    return json.loads(re.search(r'<script type="application/json" id="page-data">(.*?)</script>', page, re.DOTALL)[1])


def table_of(page, label):
    """The rows of a table by the label of its region: lists of texts, the head first."""
    region = page.partition(f'aria-label="{label}"')[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", region, re.DOTALL)
    return [[text_of(cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in rows]


# Form


def test_the_page_is_well_formed_and_asks_nothing_of_the_network(page):
    document = Document(page)
    assert document.open == []
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", markup_of(page)))
    assert [script for script in document.all("script") if "src" in script] == []
    assert not document.all("link") and not document.all("iframe")
    for image in document.all("img"):
        assert image["src"].startswith("data:image/jpeg;base64,")
    for _, attributes in document.tags:
        assert attributes.get("xlink:href", "#").startswith(("#", "data:"))
    styles = "".join(re.findall(r"<style>.*?</style>", page, re.DOTALL))
    assert len(styles) > 1000 and not re.search(r"@import|url\((?!#)", styles)


def test_its_scripts_ask_nothing_of_the_network_and_run_no_text(page):
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2 and all(len(script) > 1000 for script in scripts)
    for script in scripts:
        assert not re.search(NETWORK_OR_EVAL, script)
        assert set(re.findall(r"https?:[^\s\"')]+", script)) <= {
            "http://www.w3.org/2000/svg",
            "https://github.com/leeoniya/uPlot",
        }


def test_ids_are_unique_and_references_find_them(page):
    ids = [attributes["id"] for _, attributes in Document(page).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", markup_of(page))) <= set(ids)
    assert set(re.findall(r'href="#([^"]+)"', markup_of(page))) <= set(ids)


def test_every_picture_has_an_alternative_text(page):
    document = Document(page)
    assert all(image["alt"] for image in document.all("img"))
    drawings = document.all("svg")
    assert len(drawings) >= 10
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)


# Figures


def test_the_page_shows_the_numbers_of_the_results(page, played_run):
    run, text = played_run, text_of(page)
    before, after = run.accuracy(0).class_mean, run.accuracy(3).class_mean
    change = f"{100 * (after - before):+.2f}"
    assert f"from {100 * before:.2f} % with the source model to {100 * after:.2f} % after 3 rounds ({change} po" in text
    assert f"<title>toy: {100 * after:.2f}" in page
    head, source, *rounds = table_of(page, "Table of the rounds")
    columns = {title.removesuffix(" oracle"): place for place, title in enumerate(head)}
    assert source[: columns["gain"]] == ["source", f"{100 * before:.2f}"]
    for index, row in enumerate(rounds):
        metrics, accuracy = run.record(index).labels.metrics, run.accuracy(index + 1)
        assert {name: row[columns[name]] for name in columns} == {
            "round": str(index),
            "class mean, %": f"{100 * accuracy.class_mean:.2f}",
            "gain": f"{100 * (accuracy.class_mean - before):+.2f}",
            "overall, %": f"{100 * accuracy.overall:.2f}",
            "ECE": f"{accuracy.ece:.3f}",
            "portion": f"{0.2 + 0.05 * index:.3g}",
            "selected": str(metrics["selected"]),
            "softmax too": str(metrics["overlap"]["both"]),
            "TP rate, %": f"{100 * metrics['tp_rate']:.2f}",
            "AVC": f"{metrics['avc']:.3f}",
            "AVH": f"{metrics['avh']:.3f}",
            "confidence": f"{metrics['confidence']:.3f}",
            "norm": f"{metrics['feature_norm']:.2f}",
            "time": "12 s",
        }


def test_the_table_of_classes_shows_the_last_round(page, played_run):
    run = played_run
    head, *rows = table_of(page, "Table of the classes")
    titles = [title.removesuffix(" oracle") for title in head]
    metrics, last = run.record(2).labels.metrics, run.prediction(3)
    counts = np.bincount(last.logits.argmax(1), minlength=4)
    assert [row[0] for row in rows] == list(run.classes)
    for number, (name, row) in enumerate(zip(run.classes, rows, strict=True)):
        cells = dict(zip(titles, row, strict=True))
        before, after = (run.accuracy(step).per_class[name] for step in (0, 3))
        assert cells["source, %"] == f"{100 * before:.2f}" and cells["now, %"] == f"{100 * after:.2f}"
        assert cells["change"] == f"{100 * (after - before):+.2f}"
        assert cells["predicted"] == str(counts[number])
        assert cells["selected"] == str(metrics["selected_per_class"][name])
        rate, threshold = metrics["tp_rate_per_class"][name], metrics["lambda"][name]
        assert cells["TP rate, %"] == ("-" if rate is None else f"{100 * rate:.2f}")
        assert cells["lambda"] == ("-" if threshold is None else f"{threshold:.4f}")


def test_cells_are_sorted_by_their_numbers_and_not_by_their_texts(page, played_run):
    rows = re.findall(
        r"<tr>(.*?)</tr>", page.partition('aria-label="Table of the classes"')[2].partition("</table>")[0]
    )
    shares = [float(re.search(r'data-value="([^"]+)"', row)[1]) for row in rows]
    assert shares == [played_run.accuracy(0).per_class[name] for name in played_run.classes]


def test_the_confusion_matrix_is_in_per_cent_of_the_true_class(page, played_run):
    confusion = played_run.accuracy(3).confusion
    cells = re.findall(r'<td data-truth="(\d+)" data-label="(\d+)"([^>]*)>([^<]*)</td>', page)
    assert len(cells) == 16
    for row, column, attributes, text in cells:
        count = confusion[int(row), int(column)]
        share = 100 * count / confusion[int(row)].sum()
        assert text == ("" if count == 0 else f"{share:.0f}" if share >= 9.5 else f"{share:.1f}")
        assert (f'title="{count} images"' in attributes) == (count > 0)
        assert ('class="wrong"' in attributes) == (count > 0 and row != column)


def test_heat_maps_have_a_number_for_each_class_and_round(page, played_run):
    for label, value in (
        ("Accuracy, % (oracle)", lambda index, name: played_run.accuracy(index + 1).per_class[name]),
        ("TP rate, % (oracle)", lambda index, name: played_run.record(index).labels.metrics["tp_rate_per_class"][name]),
    ):
        head, *rows = table_of(page, f"{label} by class and round")
        assert head == ["class", "0", "1", "2"]
        for name, *cells in rows:
            known = [value(index, name) for index in range(3)]
            assert cells == ["" if share is None else f"{100 * share:.0f}" for share in known]


def test_the_script_gets_the_counts_of_what_the_last_round_chose(page, played_run):
    """Those who choose and the images that only one of them chose, from the cube; and a state per round."""
    data, overlap = data_of(page), played_run.record(2).labels.metrics["overlap"]
    assert [state["name"] for state in data["states"]] == ["round 0", "round 1", "round 2", "final"]
    assert [state["chooses"] for state in data["states"]] == [True, True, True, False]
    cube = np.array(data["states"][2]["cube"]).reshape(-1, 2)
    chosen = np.bincount(cube[:, 0] // 2 % 4, cube[:, 1], 4)
    assert chosen[1:].tolist() == [overlap["only_softmax"], overlap["only_selector"], overlap["both"]]
    assert chosen.sum() == len(played_run.labels)
    assert data["confusion"] == {"state": 3, "counts": played_run.accuracy(3).confusion.tolist()}
    assert data["running"] is None and data["labelled"] is True and data["selector"] == "avc"


# Images


def test_the_gallery_tells_right_from_wrong_by_more_than_colour(page, played_run):
    run, final = played_run, played_run.prediction(3).logits.argmax(1)
    items = re.findall(r'<li class="(right|wrong|unknown)">(.*?)</li>', page, re.DOTALL)
    assert {verdict for verdict, _ in items} == {"right", "wrong"} and len(items) == 24
    for verdict, item in items:
        label = re.search(r"label <strong><bdi>(\w+)</bdi></strong>", item)[1]
        truth = re.search(r"<div>is <bdi>(\w+)", item)[1]
        assert (label == truth) == (verdict == "right")
        assert ("✓ right" if verdict == "right" else "✗ wrong") in text_of(item)
        index = int(re.search(r'<div class="path"><bdi dir="ltr">img/(\d+)\.png', item)[1])
        assert (run.classes[run.labels[index]], run.classes[final[index]]) == (truth, label)
        assert f'alt="Image predicted as {label}: {verdict}"' in item
    assert "24 of 240 images shown" in text_of(page)
    assert re.search(r"\.gallery \.wrong img {[^}]*dashed", page)


def test_the_pictures_are_the_notable_ones_and_the_script_gets_them_all(make_run):
    run = make_run(gallery=40)
    page = page_of(run, 2)
    tables = [ImageTable.read(path) for path in sorted(run.folder.glob("rounds/*/images.parquet"))]
    tables = [tables[-1], *tables[:-1]]  # "source" comes last by name
    pictures = data_of(page)["pictures"]
    assert pictures["rows"] == notable_rows(tables, 40) and len(pictures["jpegs"]) == 40
    assert pictures["paths"] == [run.images.ids[row] for row in pictures["rows"]]
    assert pictures["truth"] == run.labels[pictures["rows"]].tolist()
    assert len(re.findall("<li class=.(?:right|wrong)", page)) == 24, "without a script there are fewer"


def test_gallery_of_none_is_said(make_run):
    page = page_of(make_run(gallery=0), 1)
    assert "This page has no pictures, because report.gallery is 0" in text_of(page)
    assert "<img" not in markup_of(page) and data_of(page)["pictures"]["jpegs"] == []


# Labels of the target


def test_figures_that_need_labels_are_marked(page):
    marked = [f"{title},\u00a0%" for title in ("TP rate", "class mean", "overall")]
    marked += ["gain", "ECE", "source, %", "now, %", "change", "TP rate, %"]
    marked += ["Source only", "Final", "Label-free choice", "Oracle best", "Confusion"]
    for title in marked:
        assert re.search(rf'{re.escape(title)} <abbr class="oracle"', page), title
    for title in ("selected", "softmax too", "AVC", "AVH", "confidence", "norm", "portion", "predicted", "lambda"):
        assert not re.search(rf'>{re.escape(title)} <abbr class="oracle"', page), title
    titles = re.findall(r"<h[23]>(.*?)</h[23]>", page)
    of_truth = [title for title in titles if re.search("Accuracy|TP rate|Reliability|Risk", title)]
    assert len(of_truth) == 4 and all("(oracle)" in title for title in of_truth)


def test_without_labels_the_page_says_so_and_judges_no_image(make_run):
    run = make_run(labelled=False)
    page = page_of(run)
    text, data = text_of(page), data_of(page)
    best = max(range(3), key=lambda index: run.validators(index + 1)["im"])
    assert re.search(rf"accuracy is unknown. (Recommended|Best by score): round {best} ", text)
    assert "✓" not in text and "✗" not in text
    assert "went from" not in text
    for word in ("oracle", "class mean", "TP rate", "Confusion", "Reliability", "mistakes"):
        assert word not in text, word
    assert 'class="oracle"' not in markup_of(page)
    assert Document(page).open == []
    assert data["labelled"] is False and data["truths"] == ["not labelled"] and data["confusion"] is None
    classes = [one for entry in data["selection"]["rounds"] for one in entry["classes"]]
    assert {one[name] for one in classes for name in ("right", "wrong", "tp_rate")} == {None}
    assert sum(sum(one["unknown"]) for one in classes) == 3 * len(run.labels)
    assert table_of(page, "Table of the rounds")[0][:3] == ["round", "im", "classes in use"]


@pytest.mark.parametrize(
    ("scores", "finished", "told"),
    [
        ((0.1, 0.3), True, "round 1 (weights checkpoints/final.safetensors), where the label-free score 'im' is hi"),
        ((0.3, 0.1), True, "round 0 (weights checkpoints/label_free.safetensors), where the label-free score 'im' "),
        ((0.1, 0.3), False, "round 1 (weights checkpoints/label_free.safetensors), where the label-free score"),
        ((None, None), True, "round 1 (weights checkpoints/final.safetensors), the newest one, because the label-fre"),
    ],
)
def test_without_labels_the_page_names_weights_that_are_there_and_why(tmp_path, scores, finished, told):
    """A run that goes on has no final weights yet. Where no score is known, none is said to be the highest."""
    record, config = big_record(tmp_path, 3, 20, 2)
    for report, score in zip(record.reports, scores, strict=True):
        report |= {"class_mean": None, "overall": None, "accuracy": None, "validators": {"im": score}}
    record.source |= {"class_mean": None, "overall": None, "accuracy": None}
    for table in (record.source_table, *record.tables.values()):
        del table.columns["label"]
    record.finished, record.running, record.pictures = finished, not finished, {}
    assert f"Recommended: {told}" in text_of(adaptation_page(record, config).render())


def test_a_source_model_without_target_labels_is_not_said_to_be_trained_so_far(make_run):
    text = text_of(page_of(make_run(method="source_only", labelled=False), 0))
    assert "accuracy is unknown. The source model was not adapted." in text and "so far" not in text


def test_a_cut_off_run_says_how_far_it_is(make_run):
    """The page of a run that goes on; only the first figure is drawn, the others are told in words."""
    run = make_run()
    run.begin(2)
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert re.search(r"This run goes on: round 2 of 20 done(, about [^.]+ left)?\.", text_of(page))
    assert data_of(page)["running"] == {"reload_seconds": 20}
    assert "again after every round. If that was long ago, the run has stopped." in text_of(page), "a killed run's, too"
    assert page.count('role="img"') < 8 and "TP rate (oracle) by round: all selected from" in text_of(page)
    assert "Now" in [text_of(title) for title in re.findall(r"<div>(\w+) <abbr", page)]


# Kinds of run and sizes


def test_softmax_beside_softmax_coincide(make_run):
    page = page_of(make_run(selector="softmax"), 2)
    assert "softmax too" not in text_of(page) and "softmax only" not in markup_of(page)
    cube = np.array(data_of(page)["states"][0]["cube"])[::2]
    assert set(cube // 2 % 4) == {0, 3}


def test_a_source_model_alone_has_a_page(make_run):
    run = make_run(method="source_only")
    page = page_of(run, 0)
    assert f"The class mean on the target is {100 * run.accuracy(0).class_mean:.2f} %" in text_of(page)
    assert "Over the" not in text_of(page) and "What each round selects" not in page
    assert Document(page).open == []


@pytest.mark.parametrize("count", [2, 60])
def test_few_and_many_classes(make_run, count):
    run = make_run(classes=[f"name{index}" for index in range(count)], images=900)
    page = page_of(run, 1)
    assert [row[0] for row in table_of(page, "Table of the classes")[1:]] == list(run.classes)
    many = count == 60
    assert ("The 40 of 60 classes that vary most." in page) == many
    assert ("The 20 of 60 classes whose shares differ most." in page) == many
    assert ('data-part="confusion"' in markup_of(page)) != many and ("Most confused classes" in page) == many
    assert data_of(page)["truth_is_class"] != many
    assert Document(page).open == []


HOSTILE = (
    "a<b>",
    'say "hi"',
    "c&d",
    "</script><img src=x onerror=alert(1)>",
    "é" * 200,
    "\u202eright to left",
    "$x$ \x07",
    "{{ page }}",
)


def test_names_are_escaped(make_run):
    page = page_of(make_run(classes=HOSTILE, images=400), 1)
    markup = markup_of(page)
    assert "<b>" not in markup and "a&lt;b&gt;" in markup
    assert "<img src=x" not in page and "\x07" not in page
    assert Document(page).open == []
    assert data_of(page)["classes"] == [name.replace("\x07", " ") for name in HOSTILE]
    shown = [html.unescape(name) for name in re.findall(r'<tr><th scope="row" title="([^"]*)"><bdi>', page)]
    assert shown[: len(HOSTILE)] == data_of(page)["classes"]


def big_record(folder, classes, images, rounds, path="img/{:06d}.png"):
    """The record of a run of many classes and images, from random numbers: a model that is right half of the time."""
    rng = np.random.default_rng(0)
    names = tuple(f"class {number}" for number in range(classes))
    truth = rng.integers(classes, size=images)
    paths = [path.format(row) for row in range(images)]
    share = {name: round(float(rng.random()), 4) for name in names}

    def table(chooses):
        prediction = np.where(rng.random(images) < 0.5, truth, rng.integers(classes, size=images))
        columns = {"label": truth, "prediction": prediction}
        columns |= {name: rng.random(images, np.float32) for name in ("probability", "avc", "avh")}
        if chooses:
            columns |= {"pseudo_label": prediction, "softmax_label": prediction}
            columns |= {name: rng.random(images) < 0.5 for name in ("selected", "softmax_selected")}
            columns |= {name: rng.random(images, np.float32) for name in ("score", "ratio")}
        return ImageTable(names, paths, np.zeros(images, int), ("photos",), columns)

    def report(number):
        confusion = rng.integers(3, size=(classes, classes)).tolist()
        accuracy = {"per_class": share, "confusion": confusion, "ece": 0.1, "domains": {}, "unknown": None}
        of_round = {
            "round": number, "portion": 0.2, "selected": images // 2, "tp_rate": 0.5, "avc": 0.1, "avh": 0.1,
            "confidence": 0.9, "feature_norm": 3.0, "loss": 1.0, "steps": 10, "lambda": share,
            "selected_per_class": dict.fromkeys(names, 80), "tp_rate_per_class": share, "avc_per_class": share,
            "overlap": {"both": 10, "only_selector": 5, "only_softmax": 5, "both_other_label": 0, "jaccard": 0.5,
                        "tp_rate_only_selector": 0.5, "tp_rate_only_softmax": 0.5},
        }  # fmt: skip
        common = {"class_mean": 0.5, "overall": 0.5, "accuracy": accuracy, "validators": {"im": 1.0}, "seconds": 9.0}
        common |= {"predicted_per_class": dict.fromkeys(names, 1), "effective_classes": 9.0, "warnings": []}
        return common if number is None else common | of_round

    config = AdaptationConfig.model_validate({"name": "big", "data": {"source": "drawn", "target": "photos"}})
    record = RunRecord(folder, config.model_dump(mode="json"), source=report(None), finished=True)
    record.reports = [report(number) for number in range(rounds)]
    record.source_table = table(False)
    record.tables = {number: table(True) for number in range(rounds)}
    record.pictures = dict.fromkeys(range(400), b"\xff" * 3000)
    return record, config


def test_345_classes_and_55_000_images_make_a_page_below_5_mb_with_bounded_lists(tmp_path):
    """As many classes as DomainNet has, as many images as VisDA-2017's target, 20 rounds, pictures of 5 kB."""
    record, config = big_record(tmp_path, 345, 55_000, 20)
    record.pictures = dict.fromkeys(range(400), b"\xff" * 5000)
    page = adaptation_page(record, config).render()
    assert len(page.encode()) < 5_000_000
    data = data_of(page)
    assert len(data["states"]) <= page_data.MOST_STATES
    numbers = [len(one[name]) for entry in data["selection"]["rounds"] for one in entry["classes"] for name in one
               if isinstance(one[name], list)]  # fmt: skip
    assert sum(numbers) <= 2 * page_data.MOST_NUMBERS
    for state in data["states"]:
        assert sum(state["cube"][1::2]) == 55_000
    text = text_of(page)
    assert "The 40 of 345 classes that vary most." in text
    pairs = table_of(page, "Most confused pairs of classes")
    assert len(pairs) == 21
    assert len(table_of(page, "Table of the classes")) == 346
    for item in re.findall(
        r"<li>(.*?)</li>", page.partition("Look at this first")[2].partition("</div>")[0], re.DOTALL
    ):
        assert len(text_of(item)) < 300


# Parts


def test_a_page_that_is_too_large_shows_fewer_pictures(tmp_path, monkeypatch):
    record, config = big_record(tmp_path, 60, 500, 2)
    whole = adaptation_page(record, config).render()
    most = len(whole.encode()) - 300_000
    monkeypatch.setattr("uda.report.page.MOST_PAGE_BYTES", most)
    page = adaptation_page(record, config).render()
    assert most - 300_000 < len(page.encode()) <= most
    kept = data_of(page)["pictures"]
    assert kept["rows"] == data_of(whole)["pictures"]["rows"][: len(kept["rows"])], "the most notable ones stay"


def test_figures_leave_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    figure = figures.curves_figure([0, 1], {"one": [0.1, None]}, "share", [("source", 0.05)])
    figures.to_svg(figure, "curve", "a curve")
    assert dict(matplotlib.rcParams) == before


def test_the_confusion_matrix_as_pixels_shows_shares_of_the_true_class():
    """Two apes in three and all bees are right. The cells have matplotlib's blues of 67, 33, 0 and 100 %."""
    pixels = figures.confusion_pixels([[6, 3], [0, 5]], ["ape", "a class with a long name"])
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    blues = matplotlib.colormaps["Blues"]
    side, (height, width) = 40, pixels.shape[:2]
    left = next(x for x in range(width) if tuple(pixels[28, x]) != (255, 255, 255))
    assert left > 100, "the long name has room beside the cells, and below them"
    assert height > 28 + 2 * side + 100
    for (row, column), share in np.ndenumerate(np.array([[6 / 9, 3 / 9], [0, 1]])):
        corner = pixels[28 + row * side + 2, left + column * side + 2]
        np.testing.assert_allclose(corner, 255 * np.array(blues(share)[:3]), atol=8)


@pytest.mark.parametrize("count", [1, 15, 41, 345])
def test_confusion_matrices_of_any_size_are_drawn(count):
    pixels = figures.confusion_pixels(np.eye(count, dtype=int), [f"class {k}" for k in range(count)])
    assert max(pixels.shape) < 2000


def test_the_same_figure_gives_the_same_svg():
    draw = lambda: figures.to_svg(figures.bars_figure({"now": {"a": 0.5}}, ["a"], "share"), "shares", "shares")  # noqa: E731
    assert draw() == draw()


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (None, "-")]
)
def test_durations_are_written_for_readers(seconds, words):
    assert duration(seconds) == words


def test_without_labels_suspicious_predictions_are_not_recommended(tmp_path):
    record, config = big_record(tmp_path, 3, 20, 2)
    for report in record.reports:
        report |= {"class_mean": None, "overall": None, "accuracy": None, "warnings": ["1 of 3 classes is lost"]}
    record.source |= {"class_mean": None, "overall": None, "accuracy": None}
    for table in (record.source_table, *record.tables.values()):
        del table.columns["label"]
    record.pictures = {}
    text = text_of(adaptation_page(record, config).render())
    assert "Best by score: round" in text and "Look at the warnings before you use it." in text
    assert "Recommended" not in text
