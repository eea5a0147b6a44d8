"""Pages that compare runs: groups, means, differences and disagreements with figures worked by hand."""

import html
import json
import re

import numpy as np
import pytest

from tests.adaptation.test_page import Document
from tests.report.runs import adaptation_run, generalization_run, supervised_run
from uda.cli.main import main
from uda.core.errors import UserError
from uda.report import figures
from uda.report.comparison import difference, disagreement, estimate, grouped, setting_rows, singly
from uda.report.comparison_page import MOST_PICTURES, comparison_page
from uda.report.run_record import read_run_record
from uda.run_pages import compare, compared

#: Students's t for 95 % and two degrees of freedom.
T2 = 4.302652729696142


def read(folder):
    return compared(read_run_record(folder, only_last=True))


def groups_of(*folders):
    return grouped([read(folder) for folder in folders])


def final(run):
    return (run.final or {}).get("class_mean")


def page_of(*folders, links=()):
    return comparison_page([read(folder) for folder in folders], dict(links))


def text_of(page):
    shown = re.sub(r"<(style|svg|script).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", shown)).split())


@pytest.fixture
def drawn():
    """Asks for figures."""


@pytest.fixture(autouse=True)
def without_figures(request, monkeypatch):
    """Only tests that ask for figures get them, because drawing takes most of the time of a page."""
    if "drawn" in request.fixturenames:
        return
    monkeypatch.setattr(figures, "to_svg", lambda *_: "<svg></svg>")
    for name in ("compared_figure", "estimates_figure"):
        monkeypatch.setattr(figures, name, lambda *_: None)


@pytest.fixture
def two_methods(tmp_path):
    """avc with seeds 0, 1, 2 and softmax with seeds 1, 2, 3."""
    avc = [adaptation_run(tmp_path / f"avc{s}", s, finals=(0.5, f)) for s, f in ((0, 0.6), (1, 0.7), (2, 0.8))]
    softmax = [
        adaptation_run(tmp_path / f"max{s}", s, finals=(0.5, f), self_training={"selector": "softmax"})
        for s, f in ((1, 0.65), (2, 0.71), (3, 0.9))
    ]
    return avc, softmax


def test_runs_that_differ_only_in_the_seed_are_a_group(two_methods):
    avc, softmax = two_methods
    first, second = groups_of(avc[2], softmax[0], avc[0], *softmax[1:], avc[1])
    assert first.seeds == [0, 1, 2] and second.seeds == [1, 2, 3]
    assert (first.title, first.label) == ("A toy, self_training.selector avc", "A selector avc")
    assert second.title == "B toy, self_training.selector softmax"
    assert setting_rows([first, second]) == [("self_training.selector", ["avc", "softmax"])]


def test_groups_of_different_names_are_called_by_them(tmp_path):
    """Where a run is computed, and with how many workers, does not matter to what it is."""
    runs = [
        adaptation_run(tmp_path / "a", 0, name="one"),
        adaptation_run(tmp_path / "b", 1, name="one", output="elsewhere", runtime={"workers": 3}),
        adaptation_run(tmp_path / "c", 0, name="two_seed0"),
        adaptation_run(tmp_path / "d", 1, name="two_seed1", source={"checkpoint": "x/seed1/final.safetensors"}),
        adaptation_run(tmp_path / "e", 2, name="two_seed2", source={"checkpoint": "x/seed2/final.safetensors"}),
    ]
    groups = groups_of(*runs)
    assert [len(group.runs) for group in groups] == [2, 1, 2]
    assert groups[0].name == "one"
    assert groups[2].name == "two_seed{seed}, source.checkpoint x/seed{seed}/final.safetensors"
    assert dict(setting_rows(groups))["runtime.workers"] == ["none, 3", "none", "none"]


def test_many_differing_settings_are_counted_in_a_name(tmp_path):
    settings = {"epochs": 9, "steps": 3, "batch_size": 5, "label_smoothing": 0.5, "adapt_batch_norm": True}
    first, second = groups_of(adaptation_run(tmp_path / "a"), adaptation_run(tmp_path / "b", source=settings))
    assert second.name == "toy, source.epochs 9, source.steps 3, source.batch_size 5, and 2 more settings"
    assert len(setting_rows([first, second])) == 5


def test_letters_go_on_after_z(tmp_path):
    group = groups_of(adaptation_run(tmp_path / "a"))[0]
    letters = []
    for place in (0, 25, 26, 27, 51, 52, 701, 702):
        group.place = place
        letters.append(group.letter)
    assert letters == ["A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA"]


def test_means_have_students_interval(two_methods):
    """Mean of .6, .7, .8 is .7; its standard deviation is .1, so the interval reaches t * .1 / sqrt(3)."""
    found = groups_of(*two_methods[0])[0].estimate(final)
    assert found.mean == pytest.approx(0.7) and found.count == 3
    assert found.interval == pytest.approx((0.7 - T2 * 0.1 / 3**0.5, 0.7 + T2 * 0.1 / 3**0.5))


def test_one_seed_has_no_interval_and_the_same_seed_counts_once(tmp_path):
    """Two runs of seed 0 (.6 and .7) are one value, .65."""
    runs = [adaptation_run(tmp_path / name, 0, finals=(f,)) for name, f in (("a", 0.6), ("b", 0.7))]
    found = groups_of(*runs)[0].estimate(final)
    assert found.mean == pytest.approx(0.65) and (found.count, found.interval) == (1, None)
    assert "toy has 2 runs of seed 0. Their mean counts as one." in text_of(page_of(*runs))
    assert estimate({}) is None


def test_differences_are_paired_by_seed(two_methods):
    """Seeds 1 and 2 are in both: .65 - .7 and .71 - .8, mean -.07. Two pairs are too few for an interval."""
    found = difference(*reversed(groups_of(*two_methods[0], *two_methods[1])), final)
    assert found.mean == pytest.approx(-0.07) and (found.count, found.interval) == (2, None)


def test_five_pairs_have_an_interval_around_the_mean(tmp_path):
    avc = [adaptation_run(tmp_path / f"a{s}", s, finals=(0.5,)) for s in range(5)]
    other = [
        adaptation_run(tmp_path / f"b{s}", s, finals=(0.5 + gain,), self_training={"selector": "softmax"})
        for s, gain in enumerate((0.01, 0.02, 0.03, 0.04, 0.05))
    ]
    first, second = groups_of(*avc, *other)
    found = difference(second, first, final)
    assert found.mean == pytest.approx(0.03) and found.count == 5
    assert 0.01 <= found.interval[0] < 0.03 < found.interval[1] <= 0.05
    text = text_of(page_of(*avc, *other))
    assert "3.00 points higher. The 95 % interval over 5 shared seeds is" in text
    assert "It contains 0" not in text


def test_the_table_of_groups_has_these_figures(two_methods):
    """Gains: .6, .7, .8 minus .4; the choice is the last report, whose score is highest."""
    text = text_of(page_of(*two_methods[0], *two_methods[1]))
    reach = 100 * T2 * 0.1 / 3**0.5
    interval = f"70.00 {70 - reach:.2f} to {70 + reach:.2f}"
    gain = f"+30.00 {30 - reach:+.2f} to {30 + reach:+.2f}"
    assert f"A toy, self_training.selector avc 3 40.00 40.00 to 40.00 {interval} {gain} {interval} –" in text
    assert re.search(r"B toy, self_training.selector softmax 3 40.00 .* -7.00 2 ", text)
    assert (
        "B toy, self_training.selector softmax against A toy, self_training.selector avc: after the last report the"
        in text
    )
    assert "7.00 points lower. With 2 shared seeds the page cannot say how sure this is: an interval needs 5." in text


def test_the_label_free_choice_follows_the_validator(tmp_path):
    runs = [adaptation_run(tmp_path / "a", finals=(0.9, 0.3), scores=(5.0, 1.0)), adaptation_run(tmp_path / "b", 1)]
    found = groups_of(*runs)[0]
    assert found.runs[0].choice["round"] == 0
    assert "40.00 30.00 90.00 0 12 s" in text_of(page_of(*runs))


def test_runs_of_one_group_are_compared_with_each_other(tmp_path):
    runs = [adaptation_run(tmp_path / f"a{s}", s, finals=(f,)) for s, f in ((0, 0.5), (1, 0.7))]
    assert [side.title for side in singly(groups_of(*runs)[0])] == ["A seed 0", "B seed 1"]
    page = page_of(*runs)
    assert "over 2 seeds, from 50.00 to 70.00 %" in text_of(page)
    assert "difference to A oracle" not in text_of(page)
    assert [series["name"] for series in curves_of(page)["class-mean"]["series"]] == ["A seed 0", "B seed 1"]
    assert "ape 50.00 70.00 +20.00" in text_of(page)


def curves_of(page):
    data = json.loads(re.search(r'id="page-data">(.*?)</script>', page)[1])
    return {curve["id"]: curve for curve in data["curves"]}


def test_curves_show_means_and_the_single_runs(two_methods):
    curve = curves_of(page_of(*two_methods[0], *two_methods[1]))["class-mean"]
    first = curve["series"][0]
    assert (curve["x"], curve["xlabel"], curve["joined"]) == ([0, 1], "round", False)
    assert first["name"] == "A selector avc"
    assert first["values"] == [50, 70]
    assert first["runs"] == [[50, 60], [50, 70], [50, 80]]


def test_a_mean_goes_as_far_as_all_runs(tmp_path):
    runs = [
        adaptation_run(tmp_path / "a", 0, finals=(0.2, 0.4, 0.6)),
        adaptation_run(tmp_path / "b", 1, finals=(0.4, 0.6), finished=False),
        adaptation_run(tmp_path / "c", 0, name="other", finals=(0.1,)),
    ]
    page = page_of(*runs)
    first, other = curves_of(page)["class-mean"]["series"]
    assert first["values"] == [30, 50, None] and first["runs"] == [[20, 40, 60], [40, 60, None]]
    assert (other["values"], other["runs"]) == ([10, None, None], [])
    text = text_of(page)
    assert "A toy: 1 of 2 runs is not finished, and takes part with the newest report." in text
    assert "not finished, 2 rounds so far" in text
    assert "60.00 60.00 to 60.00" in text  # both ended at 60 %


def test_runs_with_and_without_rounds_are_drawn_by_steps(tmp_path):
    runs = [
        adaptation_run(tmp_path / "a", finals=(0.2, 0.4, 0.6)),
        adaptation_run(tmp_path / "b", finals=(0.3, 0.5), rounds=False, name="mcd", method="mcd"),
    ]
    found = curves_of(page_of(*runs))
    assert (found["class-mean"]["x"], found["class-mean"]["xlabel"]) == ([50, 100, 150], "step")
    assert found["class-mean"]["joined"]
    assert "Not all runs have rounds" in text_of(page_of(*runs))
    assert found["selected"]["series"][1]["values"] == [None] * 3


# Classes and images


def test_classes_are_in_the_order_of_their_differences(tmp_path):
    """ape: .9 - .8 = +10; bee: .2 - .5 = -30, the largest, first."""
    runs = [
        adaptation_run(tmp_path / "a", per_class={"ape": 0.8, "bee": 0.5}),
        adaptation_run(tmp_path / "b", per_class={"ape": 0.9, "bee": 0.2}, name="other"),
    ]
    text = text_of(page_of(*runs))
    assert "bee 50.00 20.00 -30.00 ape 80.00 90.00 +10.00" in text


def test_disagreements_are_counted_and_judged(tmp_path):
    """Truth 0 0 1 1 1 and one image without a label.

    A says 0 1 1 0 0 0, B says 0 0 0 1 0 1. They differ at 1, 2, 3 and 5: B is right at 1 and 3, A at 2, and 5 has no
    label. C differs from A at 0 alone, where A is right.
    """
    truth = [0, 0, 1, 1, 1, -1]
    runs = [
        adaptation_run(tmp_path / name, predictions=labels, truth=truth, name=name)
        for name, labels in (("a", [0, 1, 1, 0, 0, 0]), ("b", [0, 0, 0, 1, 0, 1]), ("c", [1, 1, 1, 0, 0, 0]))
    ]
    found = disagreement(groups_of(*runs))
    assert found.against_first(1) == {"differ": 4, "only_first_right": 1, "only_this_right": 2, "both_wrong": 0}
    assert found.against_first(2) == {"differ": 1, "only_first_right": 1, "only_this_right": 0, "both_wrong": 0}
    assert found.differ.tolist() == [True, True, True, True, False, True]
    assert found.decided.tolist() == [True, True, True, True, False, False]
    assert found.pairs(2) == [
        {"group": 1, "first": 0, "other": 1, "images": 2, "first_right": 0, "other_right": 1},
        {"group": 1, "first": 1, "other": 0, "images": 2, "first_right": 1, "other_right": 1},
    ]
    text = text_of(page_of(*runs))
    assert "do not all predict the same class for 5 of 6 target images (83.33 %)" in text
    assert "On 4 of them one model is right and another is wrong" in text
    assert "B b 3 4 66.67 1 2 0" in text


def test_both_may_be_wrong(tmp_path):
    runs = [
        adaptation_run(tmp_path / name, predictions=labels, truth=[2, 2], classes=("ape", "bee", "cat"), name=name)
        for name, labels in (("a", [0, 2]), ("b", [1, 2]))
    ]
    found = disagreement(groups_of(*runs))
    assert found.against_first(1) == {"differ": 1, "only_first_right": 0, "only_this_right": 0, "both_wrong": 1}
    page = page_of(*runs)
    assert "is cat oracle" in text_of(page)


def test_the_gallery_begins_with_decided_images_and_classes_take_turns(tmp_path):
    """Rows 0, 1, 2 of class ape and 3 of bee are decided; at row 4 (cat) both are wrong. Sure images come first."""
    truth, classes = [0, 0, 0, 1, 2, 2], ("ape", "bee", "cat", "dog")
    runs = [
        adaptation_run(tmp_path / name, predictions=labels, truth=truth, classes=classes, name=name)
        for name, labels in (("a", [0, 0, 0, 1, 0, 2]), ("b", [1, 1, 1, 0, 1, 2]))
    ]
    found = disagreement(groups_of(*runs))
    assert found.notable(range(6), 9) == [2, 3, 1, 0, 4]
    assert found.notable([4, 0, 5], 9) == [0, 4]
    assert found.notable(range(6), 2) == [2, 3]


def test_without_labels_only_the_classes_are_told(tmp_path):
    runs = [
        adaptation_run(tmp_path / name, finals=(None,), before=None, predictions=labels, truth=None, name=name)
        for name, labels in (("a", [0, 1, 1]), ("b", [0, 0, 0]))
    ]
    page = page_of(*runs)
    text = text_of(page)
    assert (
        "No run has target labels" in text and "The target has no labels, so the page does not say who is right" in text
    )
    assert "2 of 3 target images (66.67 %)" in text
    assert page.count("<li>\n<img") == 2
    for word in ("✓", "✗", "oracle", "points higher"):
        assert word not in text


def test_the_same_classes_in_another_order_are_compared(tmp_path):
    """A numbers bee 1, B numbers it 0: they agree on the first image and differ on the second."""
    runs = [
        adaptation_run(tmp_path / "a", predictions=[1, 1], truth=[1, 1]),
        adaptation_run(tmp_path / "b", predictions=[0, 1], truth=[0, 0], classes=("bee", "ape"), name="other"),
    ]
    found = disagreement(groups_of(*runs))
    assert found.predictions.tolist() == [[1, 1], [1, 0]]
    assert found.truth.tolist() == [1, 1]
    assert found.against_first(1)["only_first_right"] == 1


def test_runs_on_other_images_or_classes_are_left_out_and_told(tmp_path):
    runs = [
        adaptation_run(tmp_path / "a", predictions=[0, 0]),
        adaptation_run(tmp_path / "b", predictions=[0, 1], name="other"),
        adaptation_run(tmp_path / "c", predictions=[0, 1], name="images", paths=["x", "y"]),
        adaptation_run(tmp_path / "d", predictions=[0, 1], name="classes", classes=("ape", "cow")),
        adaptation_run(tmp_path / "e", name="none", predictions=None),
        adaptation_run(tmp_path / "f", name="target", predictions=None, data={"source": "drawn", "target": "spoken"}),
    ]
    groups = groups_of(*runs)
    found = disagreement(groups)
    assert [group.name for group in found.groups] == ["toy", "other"]
    assert [(group.letter, why) for group, why in found.left_out] == [
        ("C", "it has other images"), ("D", "it has other classes"), ("E", "it has no images.parquet"),
        ("F", "it has no images.parquet"),
    ]  # fmt: skip
    assert difference(groups[3], groups[0], final) is None and difference(groups[5], groups[0], final) is None
    text = text_of(page_of(*runs))
    assert "D classes is not compared with A: it has 2 classes, of which 1 are among the 2 of A." in text
    assert "F target is not compared with A: its target is spoken, not written." in text


def test_the_images_are_those_of_a_shared_seed(tmp_path):
    runs = [
        *(adaptation_run(tmp_path / f"a{s}", s, predictions=[0, 0]) for s in (0, 2)),
        *(adaptation_run(tmp_path / f"b{s}", s, predictions=[0, 1], name="other") for s in (1, 2)),
    ]
    found = disagreement(groups_of(*runs))
    assert [run.seed for run in found.runs] == [2, 2]
    assert "They are the runs of seed 2." in text_of(page_of(*runs))
    runs[3] = adaptation_run(tmp_path / "b3", 3, predictions=[1, 1], name="other")
    assert "The seeds differ (A: 0, B: 1), because no seed is in all groups." in text_of(page_of(*runs))


def test_a_gallery_is_bounded(tmp_path):
    many = 3 * MOST_PICTURES
    runs = [
        adaptation_run(tmp_path / name, predictions=[label] * many, truth=[0] * many, name=name)
        for name, label in (("a", 0), ("b", 1))
    ]
    assert page_of(*runs).count("<li>\n<img") == MOST_PICTURES


# All kinds


def test_generalisation_is_compared_by_accuracy(tmp_path):
    """The validation choice is the first report, whose held-out accuracy is highest: 30 %."""
    runs = [generalization_run(tmp_path / "a"), generalization_run(tmp_path / "b", finals=(0.3, 0.75), name="other")]
    text = text_of(page_of(*runs))
    assert "other against A erm: after the last report the accuracy is 5.00 points higher." in text
    assert "B other 1 75.00 30.00 +5.00 1" in text
    assert "source only" not in text and "Not all runs have rounds" not in text


def test_different_kinds_are_compared_by_class_mean(tmp_path):
    runs = [adaptation_run(tmp_path / "a", finals=(0.5,)), generalization_run(tmp_path / "b", finals=(0.7,))]
    text = text_of(page_of(*runs))
    assert "The runs are of different kinds (A: adaptation; B: domain generalisation)." in text
    assert "the class mean is 15.00 points lower." in text  # .35 - .5


def test_a_supervised_training_is_listed_without_figures(tmp_path):
    text = text_of(page_of(adaptation_run(tmp_path / "a"), supervised_run(tmp_path / "b")))
    assert "The runs are of different kinds (A: adaptation; B: supervised training)." in text
    assert "B cnn has no target, so it has no figures here." in text
    assert re.search(r"B cnn 1 – – – – –", text)
    assert "90.00" not in text


def test_a_run_without_config_takes_part(tmp_path):
    runs = [adaptation_run(tmp_path / "a"), adaptation_run(tmp_path / "b")]
    (runs[1] / "config.yaml").unlink()
    text = text_of(page_of(*runs))
    assert f"What is wrong with {runs[1]}" in text and "config.yaml is missing" in text
    assert "B b is not compared with A" in text


def test_contradictory_records_have_no_figures(tmp_path):
    runs = [adaptation_run(tmp_path / "a", finals=(0.5,)), adaptation_run(tmp_path / "b", 1, finals=(0.9,))]
    record = json.loads((runs[1] / "results.json").read_text())
    (runs[1] / "results.json").write_text(json.dumps(record | {"final": {"class_mean": 0.1}}))
    group = groups_of(*runs)[0]
    assert group.by_seed(final) == {0: 0.5}
    text = text_of(page_of(*runs))
    assert f"{runs[1]} has no figures here, because its records contradict one another." in text
    assert f"{runs[1]} B 1 contradictory – – –" in text
    assert "90.00" not in text


def test_a_source_model_alone_has_a_final_and_no_gain(tmp_path):
    runs = [adaptation_run(tmp_path / "a", finals=()), adaptation_run(tmp_path / "b", finals=(0.6,), name="other")]
    text = text_of(page_of(*runs))
    assert "A toy 1 40.00 40.00 – – –" in text
    assert "+20.00" in text


# Any names, many groups


def test_hostile_names_stay_text(tmp_path, drawn):
    name, classes = "</script><b>x</b>\x00", ("<img src=x onerror=alert(1)>", "ל" * 300)
    images = {"classes": classes, "paths": ["<u>", "a\nb"], "name": name}
    first = adaptation_run(tmp_path / "<i>first", predictions=[0, 1], truth=[0, 1], **images)
    selects = {"self_training": {"selector": "softmax"}}
    other = adaptation_run(tmp_path / "other", predictions=[1, 0], truth=[0, 1], **images, **selects)
    page = page_of(first, other, links={str(other): "a'\"><b>/report.html"})
    page = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert Document(page).open == []
    for tag in ("<b>", "<i>", "<u>", "<img src=x"):
        assert tag not in page
    assert "\x00" not in page


def test_of_more_than_eight_groups_the_first_are_drawn(tmp_path, drawn):
    runs = [adaptation_run(tmp_path / f"r{n}", name=f"run{n}", predictions=[n % 2, 0]) for n in range(11)]
    page = page_of(*runs)
    assert len(curves_of(page)["class-mean"]["series"]) == 8
    text = text_of(page)
    assert "The first 8 of 11 groups are drawn here and compared below." in text
    assert text.count("run10") >= 2
    curve = re.search(r'data-curve="class-mean".*?</figure>', page, re.DOTALL)[0]
    assert "H run7" in curve and "I run8" not in curve
    assert re.findall(r">([A-Z])</text>", curve) == list("ABCDEFGH")
    means = re.search(r"<h3>Last reports.*?</figure>", page, re.DOTALL)[0]
    assert "K run10" in means and 'aria-label="Last reports: A run0 60.00; B run1 60.00;' in means


def test_many_classes_stay_readable(tmp_path):
    names = tuple(f"class {n}" for n in range(345))
    rng = np.random.default_rng(0)
    runs = [
        adaptation_run(
            tmp_path / name, classes=names, name=name, per_class=dict(zip(names, rng.random(345), strict=True))
        )
        for name in ("a", "b")
    ]
    page = page_of(*runs)
    assert "Paper has the first 40 of 345 classes." in text_of(page)
    assert len(page) < 2_000_000


# The command


def test_the_command_writes_one_page_and_changes_no_run(two_methods, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "avc0", "max1", "--out", "out/page.html"]) == 0
    assert capsys.readouterr().out == "report: out/page.html\n"
    assert "2 runs compared" in (tmp_path / "out/page.html").read_text(encoding="utf-8")
    assert not (tmp_path / "avc0/report.html").exists()
    assert main(["report", "avc*", "max1"]) == 0
    assert "4 runs compared" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_pages_of_the_runs_are_linked(tmp_path):
    runs = [adaptation_run(tmp_path / "runs" / name, name=name) for name in ("a b", "c")]
    (runs[0] / "report.html").write_text("x")
    compare(runs, tmp_path / "pages" / "comparison.html")
    page = (tmp_path / "pages" / "comparison.html").read_text(encoding="utf-8")
    assert re.findall(r'href="([^"#]+)"', page) == ["../runs/a%20b/report.html"]


def test_a_pattern_is_in_the_order_of_numbers(tmp_path, monkeypatch):
    from uda.cli.commands.report import _folders

    for seed in (10, 2):
        adaptation_run(tmp_path / f"seed{seed}", seed)
    (tmp_path / "seed_notes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in _folders([tmp_path / "seed*"])] == [str(tmp_path / "seed2"), str(tmp_path / "seed10")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "missing"], "missing is not a folder"),
        (["a", "empty"], "empty is not a run folder"),
        (["a", "a"], "a comparison needs two different run folders"),
        (["a", "./a/"], "a comparison needs two different run folders"),
        (["b*"], "no run folder matches 'b*'"),
        (["emp*"], "no run folder matches 'emp*'; it matches 1 other files and folders"),
    ],
)
def test_wrong_folders_are_told(tmp_path, monkeypatch, capsys, words, message):
    adaptation_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "comparison.html").exists()


def test_out_needs_two_runs(tmp_path, monkeypatch, capsys):
    adaptation_run(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["report", "a", "--out", "x.html"])
    assert stopped.value.code == 2
    assert "--out is for a comparison, which needs two runs; there is one: a" in capsys.readouterr().err


def test_a_run_named_twice_counts_once(tmp_path):
    runs = [adaptation_run(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 1))]
    records = compare([runs[0], runs[1], runs[0]], tmp_path / "page.html")
    assert [record.folder for record in records] == runs


def test_problems_are_printed_and_end_with_code_1(tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        adaptation_run(tmp_path / name, name=name, predictions=[0, 1])
    (tmp_path / "a/rounds/01/images.parquet").write_bytes(b"broken")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", "b"]) == 1
    assert "a: rounds/01/images.parquet is broken" in capsys.readouterr().err


def test_only_the_newest_table_is_read(tmp_path, monkeypatch):
    folder = adaptation_run(tmp_path / "a", predictions=[0, 1])
    (folder / "rounds/00/images.parquet").write_bytes(b"not looked at")
    record = read_run_record(folder, only_last=True)
    assert list(record.tables) == [1] and record.problems == []
    assert read_run_record(folder).problems != []
    with pytest.raises(UserError):
        compare([folder], tmp_path / "page.html")
