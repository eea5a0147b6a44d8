"""The page of a run and the summary of a study: every number on them is one of the records', or follows by hand."""

import contextlib
import html
import io
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from tests.adaptation.test_page import Document, data_of, text_of
from tests.in_process import generalize
from uda.cli.commands.generalize import LISTS
from uda.core.errors import UserError
from uda.data.domains import Source, Target, TargetLabels
from uda.data.images import ImageArray
from uda.evaluation.accuracy import HARDNESS_BINS, Accuracy
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import Seen, SeenAndUnseen
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.generalization.page import short_domains
from uda.generalization.report import DomainResult, GeneralizationReport
from uda.generalization.results import hardness_seen, seen_per_class
from uda.generalization.run import GeneralizationRun
from uda.generalization.summary import finished_runs, runs_lines, runs_of, summary_file, write_summary
from uda.models.network import Prediction
from uda.report import figures
from uda.report.image_table import ImageTable
from uda.run_pages import rebuild
from uda.training.records import Records

CLASSES = ("ape", "b<e", "cat")
DOMAINS = ("clay", "drawn", "photo")

#: Right ones of ten images per class on the unseen domain, by config and unseen domain, at each of three reports.
RIGHT = {
    "dg_plain": {
        "clay": ([1, 1, 1], [9, 6, 6], [6, 3, 3]),
        "drawn": ([2, 2, 2], [3, 3, 3], [9, 9, 9]),
        "photo": ([5, 1, 0], [0, 0, 0], [1, 2, 3]),
    },
    "dg_angular": {
        "clay": ([0, 0, 3], [0, 0, 6], [0, 0, 9]),
        "drawn": ([3, 3, 3], [6, 6, 6], [9, 9, 9]),
        "photo": ([2, 2, 2], [3, 3, 3], [4, 4, 4]),
    },
}
WITH_PAGE = ("dg_plain/clay", "dg_plain/drawn", "dg_angular/clay")
#: The same of each seen domain's held-out images: the second report is the best.
HELD_OUT = ([2, 2, 2], [8, 7, 9], [5, 5, 5])


def result(name, right, mean, first_bin, classes=CLASSES):
    """Ten images per class; the wrong ones are taken for the next class. All AVH lies in two neighbouring bins."""
    count = len(classes)
    predicted = np.concatenate([np.where(np.arange(10) < right[k], k, (k + 1) % count) for k in range(count)])
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (np.repeat(np.arange(count), 10), predicted), 1)
    shares = [number / 10 for number in right]
    reached = Accuracy(
        class_mean=float(np.mean(shares)) + 0.001,  # to be told from overall
        overall=sum(right) / (10 * count),
        per_class=dict(zip(classes, shares, strict=True)),
        confusion=confusion,
        ece=0.05,
        nll=1.0,
    )
    histogram = [0] * HARDNESS_BINS
    histogram[first_bin : first_bin + 2] = [20, 10]
    rng = np.random.default_rng(len(name))
    logits = (3 * np.eye(count)[predicted] + rng.random((len(predicted), count))).astype(np.float32)
    features, weight = (rng.normal(size=(rows, 5)).astype(np.float32) for rows in (len(predicted), count))
    return DomainResult(name, reached, {"mean": mean, "histogram": histogram}, Prediction(features, logits, weight))


def config_of(folder, name, target=None, **report):
    return GeneralizationConfig.model_validate(
        {
            "name": name,
            "target": target,
            "output": f"{folder}/{{name}}/{{target}}",
            "data": {"domains": list(DOMAINS)},
            "model": {"loss": "avh", "loss_options": {"scale": 12.5}} if name == "dg_angular" else {},
            "report": {"loggers": [], **report},
        }
    )


def make_run(config, reports=3, classes=CLASSES, finish=True):
    """A run's folder from reports with numbers known by hand; returns the results.

    Of each seen domain, 30 images are for training and 30 are held out.
    """
    labels = np.repeat(np.arange(len(classes)), 10)
    count = len(labels)
    pixels = np.random.default_rng(0).integers(0, 255, (2 * count, 1, 4, 4), np.uint8)
    others = [name for name in DOMAINS if name != config.target]
    seen = tuple(
        Seen(
            name,
            Source(ImageArray(pixels, [f"{name}/{index}.png" for index in range(2 * count)]), np.tile(labels, 2)),
            np.arange(count),
            np.arange(count, 2 * count),
        )
        for name in others
    )
    unseen = ImageArray(pixels[:count], [f"{config.target}/{index}.png" for index in range(count)])
    domains = SeenAndUnseen(seen, config.target, Target(unseen), TargetLabels(labels), tuple(classes))
    config.folder.mkdir(parents=True)
    (config.folder / "config.yaml").write_text(config.to_yaml())
    (config.folder / "environment.json").write_text("{}")
    report = GeneralizationReport(Records(config.folder), config, domains, log=lambda line: None)
    for index in range(reports):
        right = RIGHT[config.name][config.target][index] if len(classes) == 3 else [index % 10] * len(classes)
        held = HELD_OUT[index] if len(classes) == 3 else [9] * len(classes)
        results = [result(name, held, 0.5 + place, 10, classes) for place, name in enumerate(others)]
        results.append(result(config.target, right, 1.25 - index / 8, 20, classes))
        report.interval(index, 0, 100 * (index + 1), {"loss": 2.5 - index}, results, 61.0)
    if not finish:
        return None
    if config.report.page:
        report.write_map(results)
    return report.finish(200.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a study of two configs with three runs each, three of these with a page, and its summary."""
    folder = tmp_path_factory.mktemp("study")
    configs = [config_of(folder, name) for name in RIGHT]
    for run in runs_of(configs):
        make_run(config_of(folder, run.name, run.target, page=f"{run.name}/{run.target}" in WITH_PAGE))
    assert write_summary(configs, log=lambda line: None) == folder / "dg_plain_and_angular_seed0.json"
    return folder


@pytest.fixture(scope="module")
def page(made):
    return (made / "dg_plain" / "clay" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def summary_page(made):
    return (made / "dg_plain_and_angular_seed0.html").read_text(encoding="utf-8")


def table_of(page, label):
    """The cells of a table's body, row by row."""
    body = re.search(rf'aria-label="{re.escape(label)}".*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


def assert_whole(page):
    """The page is well-formed, asks nothing of the network, and tells in words what it draws."""
    document = Document(page)
    assert document.open == []
    for tag, attributes in document.tags:
        assert tag not in ("link", "base", "iframe", "object", "embed"), tag
        for name in ("src", "srcset", "href", "xlink:href", "action", "poster", "data"):
            value = attributes.get(name) or ""
            assert not re.match(r"\s*(\w+:)?//", value) and not value.startswith(("http", "ftp")), (tag, value)
    assert not re.search(r"url\(\s*[\"']?(https?:|//)|@import|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon", page)
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([\w-]+)\)", re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL))) <= set(
        ids
    )
    assert all(drawing["aria-label"] for drawing in document.all("svg"))
    assert all(picture["alt"] and picture["src"].startswith("data:image/") for picture in document.all("img"))


@pytest.mark.parametrize("name", ["page", "summary_page"])
def test_pages_are_well_formed_and_hold_all_they_show(name, request):
    page = request.getfixturevalue(name)
    assert_whole(page)
    shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "b<e" not in shown and "b&lt;e" in shown, "names are escaped"


def cards_of(page):
    """Value and note of each card by its title."""
    cards = re.findall(
        r'<div class="card.*?<div>(.*?)</div>\n<div class="value">(.*?) %</div>\n(.*?)</div>', page, re.DOTALL
    )
    return {title.split(" <abbr")[0]: (value, note) for title, value, note in cards}


def test_the_cards_are_the_three_figures_under_their_own_names(page):
    """Right of 30: 3, 21 and 12. The held-out images like the second report best, and so do the unseen labels."""
    text = text_of(page)
    assert "on the unseen domain clay is 40.00 % after 300 steps" in text
    assert "On the held-out images of the seen domains it is 50.00 %, as the mean of 2 domains" in text
    found = cards_of(page)
    assert {title: value for title, (value, _) in found.items()} == {
        "Final": "40.00",
        "Validation choice": "70.00",
        "Oracle best": "70.00",
    }
    assert "report 1" in found["Validation choice"][1] and "held-out" in found["Validation choice"][1]
    assert "a bound, not a result" in found["Oracle best"][1]
    assert "class mean 70.10" in found["Oracle best"][1]
    assert "After report 1, accuracy on the unseen domain fell by 30.0 points" in text


def test_validation_and_oracle_may_pick_different_reports(made):
    """On drawn the unseen labels like the last report best, the held-out images the second."""
    page = (made / "dg_plain" / "drawn" / "report.html").read_text(encoding="utf-8")
    rows = table_of(page, "Table of the reports")
    assert [row[9] for row in rows] == ["", "validation", "oracle"]
    assert [row[4] for row in rows] == ["20.00", "30.00", "90.00"]
    assert "accuracy on the unseen domain fell" not in page


def test_the_tables_are_the_records(page):
    """Held out: 6, 24 and 15 of 30, in either domain; mean AVH of the seen 0.5 and 1.5."""
    assert table_of(page, "Table of the reports") == [
        ["0", "100", "2.500", "20.00", "10.00", "10.10", "0.050", "1.000", "1.250", "", "1 min 01 s"],
        ["1", "200", "1.500", "80.00", "70.00", "70.10", "0.050", "1.000", "1.125", "validation, oracle", "1 min 01 s"],
        ["2", "300", "0.500", "50.00", "40.00", "40.10", "0.050", "1.000", "1.000", "", "1 min 01 s"],
    ]
    assert table_of(page, "Held-out images by domain")[1] == ["1", "80.00", "80.00", "80.00"]
    assert table_of(page, "Table of the classes") == [
        ["ape", "50.00", "60.00", "+10.00", "10", "13"],
        ["b<e", "50.00", "30.00", "-20.00", "10", "7"],
        ["cat", "50.00", "30.00", "-20.00", "10", "10"],
    ]
    assert table_of(page, "Unseen domain, % (oracle) by class and report") == [
        ["ape", "10", "90", "60"],
        ["b<e", "10", "60", "30"],
        ["cat", "10", "60", "30"],
    ]
    assert table_of(page, "Held-out images, % by class and report")[0] == ["ape", "20", "80", "50"]
    assert table_of(page, "Confusion matrix")[0] == ["ape", "60", "40", ""]


def test_the_figures_are_described_by_their_numbers(page):
    labels = [drawing["aria-label"] for drawing in Document(page).all("svg")]
    for told in (
        "Accuracy on seen and unseen images by steps: seen, held out from 20 to 50; unseen (oracle) from 10 to 40.",
        "Held-out images of each seen domain by steps: drawn from 20 to 50; photo from 20 to 50.",
        "The unseen domain (oracle) by steps: accuracy from 10 to 40; class mean from 10.1 to 40.1.",
        "Histograms of AVH: mean 1.000 on held-out images, 1.000 on the unseen domain.",
    ):
        assert told in labels
    (risk,) = (label for label in labels if label.startswith("Risk"))
    assert risk == "Risk: seen, held out 50.0 % wrong of all; unseen 60.0 % wrong of all; by AVC 60.0 % wrong of all."


def test_what_needs_the_unseen_labels_is_marked(page, summary_page):
    for title in ("Final", "Validation choice", "Oracle best"):
        assert re.search(rf'{title} <abbr class="oracle"', page), title
        assert re.search(rf'<h3>{title} <abbr class="oracle"', summary_page), title
    for title in ("unseen, %", "class mean, %", "ECE", "AVH, unseen", "Confusion"):
        assert re.search(rf'{title} <abbr class="oracle"', page), title
    assert re.search(r'<td class="text">unseen <abbr class="oracle"', summary_page)
    assert re.search(r'By class <abbr class="oracle"', summary_page)
    assert not re.search(r'held out(, %)? <abbr class="oracle"', page + summary_page), "seen images' labels are known"


def test_what_was_run_names_loss_and_images(made, page):
    facts = text_of(page).split("How it was made")[1]
    assert "drawn (30 + 30), photo (30 + 30)" in facts and "clay, 30 images" in facts
    assert "Loss cross_entropy" in facts
    other = text_of((made / "dg_angular" / "clay" / "report.html").read_text(encoding="utf-8"))
    assert "Loss avh, scale 12.5" in other


def test_what_got_worse_stands_at_the_top(page):
    """The classes had 90, 60 and 60 % at the validation choice, and 50 % of held-out images are right at the end."""
    first = text_of(page).split("Look at this first")[1].split("Figures marked")[0]
    assert "After report 1, accuracy on the unseen domain fell by 30.0 points (oracle)." in first
    assert "ape fell from 90.0 % at report 1, the validation choice, to 60.0 % (oracle)." in first
    assert "cat: 50.0 % of the held-out images are right, and 30.0 % of the unseen ones, 20.0 points less" in first


def test_the_images_are_those_of_the_unseen_domain(page):
    """18 of the 30 are wrong at the end. A picture tells its class; the cube counts all images."""
    data = data_of(page)
    assert [state["name"] for state in data["states"]] == ["report 0", "report 1", "final"]
    assert len(data["pictures"]["jpegs"]) == len(set(data["pictures"]["paths"])) == 30
    assert all(path.startswith("clay/") for path in data["pictures"]["paths"])
    final, truth = data["pictures"]["states"][-1]["label"], data["pictures"]["truth"]
    assert sum(label != own for label, own in zip(final, truth, strict=True)) == 18
    assert sum(data["states"][-1]["cube"][1::2]) == 30
    assert data["confusion"]["counts"][0] == [6, 4, 0] and data["unit"] == "report" and data["selection"] is None


def test_the_map_has_the_seen_domains_beside_the_unseen_one(made, page):
    table = ImageTable.read(made / "dg_plain" / "clay" / "map.parquet")
    assert table.domains == ("drawn", "photo", "clay")
    assert np.bincount(table.domain).tolist() == [30, 30, 30]
    assert table.get("row").tolist() == [-1] * 60 + list(range(30))
    assert table.paths[0] == "drawn/30.png" and table.paths[60] == "clay/0.png", "held-out images, not trained ones"
    found = data_of(page)["map"]
    assert data_of(page)["words"] == {"target": "unseen", "source": "seen"}
    assert found["count"] == 90 and [domain["target"] for domain in found["domains"]] == [False, False, True]
    assert "of 90 images by the final model: 60 seen images and 30 unseen images." in text_of(page)


def test_a_page_made_again_is_the_same(made, tmp_path):
    """From the folder alone, and results.json keeps its content."""
    shutil.copytree(made / "dg_plain" / "clay", tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("report.html", "results.json")}
    record = rebuild(tmp_path / "run")
    assert record.problems == []
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
    assert json.loads(before["results.json"])["problems"] == []


def test_an_unfinished_run_has_a_page_and_no_results(tmp_path):
    config = config_of(tmp_path, "dg_plain", "clay")
    make_run(config, reports=2, finish=False)
    page = (config.folder / "report.html").read_text(encoding="utf-8")
    assert_whole(page)
    assert "This run goes on: report 2 of 10 done" in text_of(page)
    assert cards_of(page)["Now"][0] == "70.00"
    rebuild(config.folder)
    again = (config.folder / "report.html").read_text(encoding="utf-8")
    assert "This run is not finished: report 2 of 10 done" in text_of(again)
    assert not (config.folder / "results.json").exists() and data_of(again)["running"] is None


@pytest.mark.parametrize("missing", ["rounds/02/held_out.parquet", "rounds/01/images.parquet", "map.parquet"])
def test_of_a_folder_that_lacks_a_table_the_page_shows_the_rest(made, tmp_path, missing):
    run = tmp_path / "run"
    shutil.copytree(made / "dg_plain" / "clay", run)
    (run / missing).write_text("damaged")
    record = rebuild(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert_whole(page)
    assert record.problems == [f"{missing} is broken. The page leaves out what came from it."]
    assert record.problems[0] in text_of(page) and cards_of(page)["Final"][0] == "40.00"
    assert json.loads((run / "results.json").read_text())["problems"] == record.problems
    assert ("seen, held out 50.0 % wrong" in page) == ("held_out" not in missing)


def test_records_that_contradict_one_another_give_no_headline(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "dg_plain" / "clay", run)
    record = json.loads((run / "rounds/02/report.json").read_text())
    (run / "rounds/02/report.json").write_text(json.dumps({**record, "overall": 0.99}))
    before = (run / "results.json").read_text()
    assert not rebuild(run).trusted and (run / "results.json").read_text() == before
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "There is no headline" in text_of(page) and not cards_of(page)


def test_without_a_readable_config_the_records_are_shown(made, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(made / "dg_plain" / "clay", run)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("method: erm", "method: of_a_later_version"))
    assert "This version of uda cannot read the config" in rebuild(run).problems[0]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert_whole(page)
    assert cards_of(page)["Final"][0] == "40.00" and len(table_of(page, "Table of the reports")) == 3


def test_the_page_of_a_run_on_a_bank_names_the_features_and_has_no_pictures(tiny, bank, tmp_path):
    words = [f"output={tmp_path / 'run'}", "report.page=true", f"data.features={bank}", "report.gallery=7"]
    GeneralizationRun(GeneralizationConfig.load(tiny, words)).execute()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert_whole(page)
    assert "features of digits_cnn (bank), head 16" in text_of(page)
    assert not data_of(page).get("pictures", {}).get("jpegs") and "clay" in text_of(page)
    rebuild(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").read_text(encoding="utf-8") == page


def test_a_run_that_is_stopped_before_its_map_makes_it_when_it_resumes(tiny, tmp_path, monkeypatch):
    """The features are predicted again."""
    words = ["report.page=true", "training.steps=2"]
    whole, cut = (GeneralizationConfig.load(tiny, [f"output={tmp_path / name}", *words]) for name in ("whole", "cut"))
    GeneralizationRun(whole).execute()
    stopped = GeneralizationRun(cut)
    with monkeypatch.context() as patch:
        patch.setattr(GeneralizationReport, "write_map", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            stopped.execute()
    assert not (cut.folder / "map.parquet").exists()
    GeneralizationRun(cut).execute()
    assert (cut.folder / "map.parquet").read_bytes() == (whole.folder / "map.parquet").read_bytes()


def test_many_classes_with_hostile_names_and_one_without_images(tmp_path):
    classes = [f"{'long ' * 12}{number}" for number in range(57)] + ["</script><b>", "\u05d0\u05d1", "\x00nul"]
    config = config_of(tmp_path, "dg_plain", "clay", gallery=5)
    lacking = result("clay", [5] * 60, 1.0, 20, classes)
    lacking.accuracy.per_class[classes[0]] = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "result", lambda name, *rest: replace(lacking, name=name))
        make_run(config, reports=2, classes=classes)
    page = (config.folder / "report.html").read_text(encoding="utf-8")
    assert_whole(page)
    assert data_of(page)["classes"][57] == "</script><b>" and "<b>" not in page
    assert table_of(page, "Table of the classes")[0][2:4] == ["-", "-"]
    assert len(table_of(page, "Table of the classes")) == 60 and data_of(page)["confusion"] is None
    assert len(table_of(page, "Most confused pairs of classes")) == 20


def test_domains_are_called_by_their_last_part_if_that_tells_them_apart():
    assert list(short_domains(["/data/a/clay", "photo"]).values()) == ["clay", "photo"]
    assert list(short_domains(["a/clay", "b/clay"]).values()) == ["a/clay", "b/clay"]


def test_hardness_of_several_domains_is_weighted_by_their_images():
    """(3 * 0.5 + 1 * 1.0) / 4 = 0.625."""
    record = {
        "seen": {
            "a": {"hardness": {"mean": 0.5, "histogram": [2, 1, 0]}},
            "b": {"hardness": {"mean": 1.0, "histogram": [0, 0, 1]}},
        }
    }
    assert hardness_seen(record) == {"mean": 0.625, "histogram": [2, 1, 1]}


def test_accuracy_by_class_of_several_domains_counts_images():
    """(1 + 3) of (2 + 3) are right; no image is a dog."""
    record = {
        "seen": {
            "a": {"accuracy": {"confusion": [[1, 1], [0, 0]]}},
            "b": {"accuracy": {"confusion": [[3, 0], [0, 0]]}},
        },
        "accuracy": {"per_class": {"cat": 0.1, "dog": None}},
    }
    assert seen_per_class(record) == {"cat": 0.8, "dog": None}


def test_a_histogram_shows_shares_and_leaves_out_what_is_empty():
    """3 of 4 images lie in [0.5, 1), 1 in [1, 1.5): 75 and 25 per cent; the five panels share their axes."""
    panels = {str(number): {"seen": [0, 3, 1, 0], "unseen": [0, 1, 1, 0]} for number in range(5)}
    figure = figures.hardness_figure(panels)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in drawn] == ["0", "1", "2", "3", "4"]
    for axes in drawn:
        assert axes.get_xlim() == (0.5, 1.5)
        seen, unseen = axes.patches
        np.testing.assert_allclose(seen.get_data().values, [0, 75, 25, 0])
        np.testing.assert_allclose(unseen.get_data().values, [0, 50, 50, 0])


def test_a_curve_for_each_of_many_domains():
    figure = figures.curves_figure([1, 2], {f"d{number}": [number, number] for number in range(9)}, "%")
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == list(range(9))


#: By hand from RIGHT: accuracy on clay, drawn, photo, and the average.
WANTED = {
    "final": {"dg_plain": [0.4, 0.9, 0.2, 0.5], "dg_angular": [0.3, 0.9, 0.4, 1.6 / 3]},
    "validation_choice": {"dg_plain": [0.7, 0.3, 0.0, 1 / 3], "dg_angular": [0.2, 0.6, 0.3, 1.1 / 3]},
    "oracle_best": {"dg_plain": [0.7, 0.9, 0.2, 0.6], "dg_angular": [0.3, 0.9, 0.4, 1.6 / 3]},
}
TITLES = {"final": "Final", "validation_choice": "Validation choice", "oracle_best": "Oracle best"}


def test_the_summary_has_each_average_by_hand(made):
    summary = json.loads((made / "dg_plain_and_angular_seed0.json").read_text())
    assert summary["targets"] == list(DOMAINS)
    for choice, rows in WANTED.items():
        for row in summary["rows"]:
            found = [*row[choice]["by_target"].values(), row[choice]["average"]]
            assert found == pytest.approx(rows[row["config"]])
    angular = summary["rows"][1]
    assert (angular["loss"], angular["loss_options"]) == ("avh", {"scale": 12.5})
    assert angular["per_class"]["clay"] == {"ape": 0.0, "b<e": 0.0, "cat": 0.9}
    assert angular["hardness"]["photo"]["seen"]["mean"] == 1.0
    assert angular["hardness"]["photo"]["seen"]["histogram"][10:12] == [40, 20]
    assert angular["hardness"]["photo"]["unseen"]["histogram"][20:22] == [20, 10]


def test_the_summary_page_puts_configs_side_by_side(summary_page):
    for choice, rows in WANTED.items():
        shown = [[name, *(f"{100 * share:.2f}" for share in shares)] for name, shares in rows.items()]
        assert table_of(summary_page, f"{TITLES[choice]}, methods by unseen domain") == shown
    assert table_of(summary_page, "Accuracy by class of dg_angular")[2] == ["cat", "90.00", "90.00", "40.00"]
    assert table_of(summary_page, "Mean AVH by unseen domain")[3] == ["dg_angular", "unseen oracle", *["1.000"] * 3]
    assert len(Document(summary_page).all("svg")) == 2
    assert "loss avh, scale 12.5" in text_of(summary_page)


def test_the_summary_leads_to_the_pages_of_the_runs(made, summary_page):
    """Where a run has a page, each of the three tables leads to it."""
    links = [attributes["href"] for attributes in Document(summary_page).all("a")]
    assert sorted(links) == sorted([f"{run}/report.html" for run in WITH_PAGE] * 3)
    assert all((made / link).is_file() for link in links)


def test_the_terminal_has_the_same_table(made):
    summary = json.loads((made / "dg_plain_and_angular_seed0.json").read_text())
    lines = list(runs_lines(summary))
    assert lines[0].endswith("(oracle):")
    rows = {TITLES[choice]: WANTED[choice] for choice in WANTED}
    for title, wanted in rows.items():
        start = next(index for index, line in enumerate(lines) if line.startswith(title))
        assert lines[start + 1].split() == [*DOMAINS, "average"]
        for offset, (name, shares) in enumerate(wanted.items(), start=2):
            assert lines[start + offset].split() == [name, *(f"{100 * share:.2f}" for share in shares)]


def test_commands_for_one_target_each_add_up_to_one_summary(tmp_path):
    """The first leaves none; the second two figures without an average; runs of another config do not count."""
    clay, drawn, photo = (config_of(tmp_path, "dg_plain", name, page=False) for name in DOMAINS)
    make_run(clay)
    assert write_summary([clay], log=lambda line: None) is None
    make_run(drawn)
    make_run(photo.model_copy(update={"seed": 5}))
    path = write_summary([config_of(tmp_path, "dg_plain", "drawn")], log=lambda line: None)
    assert path == tmp_path / "dg_plain" / "summary_seed0.json"
    final = json.loads(path.read_text())["rows"][0]["final"]
    assert final == {"by_target": {"clay": 0.4, "drawn": 0.9, "photo": None}, "average": None}
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert "no finished run yet for: photo" in page
    assert table_of(page, "Final, methods by unseen domain") == [["dg_plain", "40.00", "90.00", "-", "-"]]
    assert Document(page).open == []


def test_without_pages_there_are_figures_for_programs_alone(tmp_path):
    config = config_of(tmp_path, "dg_plain", page=False)
    for run in runs_of([config]):
        make_run(run)
        assert not (run.folder / "report.html").exists()
    path = write_summary([config], log=lambda line: None)
    assert path.is_file() and not path.with_suffix(".html").exists()


def test_a_run_that_is_not_finished_does_not_count(tmp_path):
    config = config_of(tmp_path, "dg_plain", page=False)
    for run in runs_of([config]):
        make_run(run)
    (tmp_path / "dg_plain" / "drawn" / "results.json").unlink()
    assert list(finished_runs(config)) == ["clay", "photo"]


@pytest.mark.parametrize("name", ["results.json", "rounds/00/report.json"])
def test_a_broken_run_is_not_left_out_in_silence(tmp_path, name):
    config = config_of(tmp_path, "dg_plain", page=False)
    for run in runs_of([config]):
        make_run(run)
    (tmp_path / "dg_plain" / "photo" / name).write_text("{")
    with pytest.raises(UserError, match=f"photo/{name} is broken; give the command of dg_plain with target=photo"):
        finished_runs(config)


def test_where_summaries_lie():
    def named(name, seed=0):
        return GeneralizationConfig(name=name, seed=seed, data={"domains": ["a", "b"]})

    def file_of(*names, seed=0):
        return summary_file([named(name, seed) for name in names]).relative_to(folder).as_posix()

    folder = summary_file([named("x")]).parents[2]
    assert file_of("pacs_erm", seed=3) == "runs/pacs_erm/summary_seed3"
    assert file_of("pacs_erm", "pacs_avh_loss") == "runs/pacs_erm_and_avh_loss_seed0"
    assert file_of("pacs", "pacs_avh") == "runs/pacs_and_pacs_avh_seed0"
    assert file_of("mine", "yours") == "runs/mine_and_yours_seed0"
    many = [f"pacs_{'long' * 9}_{number}" for number in range(5)]
    assert len(file_of(*many)) < 150
    assert file_of(*many) != file_of(*reversed(many))


def test_runs_that_would_share_a_folder_are_refused():
    def named(name, output, domains=("a", "b")):
        return GeneralizationConfig(name=name, output=output, data={"domains": list(domains)})

    assert len(runs_of([named("x", "o/{name}/{target}"), named("y", "o/{name}/{target}")])) == 4
    with pytest.raises(UserError, match=r"share the folder o; put \{target\}"):
        runs_of([named("x", "o")])
    with pytest.raises(UserError, match=r"share the folder o/a; put \{name\}"):
        runs_of([named("x", "o/{target}"), named("y", "o/{target}")])
    with pytest.raises(UserError, match="different domains"):
        runs_of([named("x", None), named("y", None, "bc")])


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Two configs on two angles by the command line: the exit code, what it printed, the folder, the command."""
    folder = tmp_path_factory.mktemp("played")
    words = ["--cfg", "rotated_digits_erm.yaml", "data.domains=[m0,m30]", "--cfg", "rotated_digits_avh_loss"]
    words += ["training.steps=4", "training.evaluate_every=2", "training.batch_size=4", "report.loggers=[]"]
    words += [f"output={folder}/{{name}}/{{target}}", "runtime.device=cpu"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = generalize(words)
    return code, printed.getvalue(), folder, words


def test_two_configs_by_the_command_line(played):
    code, printed, folder, _ = played
    assert code == 0
    file = folder / "rotated_digits_erm_and_avh_loss_seed0"
    rows = json.loads(file.with_suffix(".json").read_text())["rows"]
    page = file.with_suffix(".html").read_text(encoding="utf-8")
    for row, shown in zip(rows, table_of(page, "Final, methods by unseen domain"), strict=True):
        results = [json.loads((folder / row["config"] / name / "results.json").read_text()) for name in row["folders"]]
        reached = [result["final"]["overall"] for result in results]
        assert shown == [row["config"], *(f"{100 * share:.2f}" for share in [*reached, sum(reached) / 2])]
        assert f"  {' '.join(shown)}" in re.sub(" +", " ", printed).replace("\n ", "\n  ")
        for result in results:
            own = (folder / row["config"] / result["target"] / "report.html").read_text(encoding="utf-8")
            assert len(table_of(own, "Table of the reports")) == 2
            assert f"is {100 * result['final']['overall']:.2f} % after 4 steps" in text_of(own)


def test_a_study_that_is_finished_says_the_same_again(played, capsys):
    _, _, folder, words = played
    file = folder / "rotated_digits_erm_and_avh_loss_seed0.html"
    before = file.read_text()
    file.unlink()
    assert generalize(words) == 0
    assert capsys.readouterr().out.count("is finished") == 4
    assert file.read_text() == before


def test_a_dry_run_says_plan_and_cost_and_writes_nothing(in_folder, capsys):
    """MetaReg has two stages, of half the steps each: 8 reports on 5 x 170 held-out images and 833 unseen ones."""
    words = ["target=m30", "training.steps=8", "training.evaluate_every=1", "training.batch_size=4"]
    assert generalize(["--cfg", "rotated_digits_metareg.yaml", "--dry-run", *words]) == 0
    printed = capsys.readouterr().out
    assert "unseen   m30" in printed and "trains   8 steps" in printed and "nothing was written" in printed
    assert f"cost     8 training steps, {8 * (5 * 170 + 833):,} images predicted: about" in printed
    assert [line.split()[1] for line in printed.split("\n") if line.startswith("pace")] == ["stage", "stage", "predict"]
    assert list(in_folder.iterdir()) == []


def test_mistakes_in_all_configs_are_said_once_each(capsys):
    words = ["--cfg", "rotated_digits_erm.yaml", "--cfg", "rotated_digits_avh_loss.yaml", "--cfg", "rotated_digits_avg"]
    assert generalize([*words, "traning.steps=4"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "did you mean 'training'" in errors[0] and "no such config" in errors[1]


@pytest.mark.parametrize("what", LISTS)
def test_lists(what, capsys):
    assert generalize(["--list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]  # a long line continues on an indented line
    if what == "methods":
        assert names == [name for name, _ in GENERALIZATION_METHODS.describe()]
    if what == "configs":
        assert "rotated_digits_erm.yaml" in names and "digits_avh.yaml" not in names
    assert {"losses": "avh", "datasets": "rotated_digits", "backbones": "digits_cnn"}.get(what, names[0]) in names
