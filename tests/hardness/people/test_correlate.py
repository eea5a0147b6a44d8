"""Correlations of scores with people: rows by hand, what is drawn, and what a user can get wrong."""

import csv
import io
import math
import re

import numpy as np
import pytest

from tests.hardness.conftest import undrawn
from tests.in_process import hardness
from uda.core.errors import UserError
from uda.hardness.people.bins import BINS, bin_name, parse_bins
from uda.hardness.people.correlate import bin_rows, correlate, group_by_frequency, histogram_panels, overall_rows
from uda.hardness.people.correlate_figures import frequency_columns, histogram_figure, summary_figure
from uda.hardness.people.human import HumanFrequencies
from uda.hardness.people.join import Joined
from uda.hardness.scoring.score_table import ScoreTable, named_tables, write_scores
from uda.report.findings import Findings

COUNT = 600


def made(count=COUNT, seed=0):
    """Human frequencies of 50 votes over all bins, and scores that go with them more or less."""
    generator = np.random.default_rng(seed)
    ease = generator.uniform(0, 1, count)
    ids = tuple(f"test/cat/{i:04d}.jpg" for i in range(count))
    human = HumanFrequencies(ids, generator.binomial(50, ease) / 50, None, np.full(count, 50))
    scores = {
        "avh": 0.1 - 0.05 * ease + generator.normal(0, 0.01, count),
        "confidence": ease + generator.normal(0, 0.4, count),
        "norm": generator.gamma(9, 2, count),
        "own": ease**2,
    }
    return human, ScoreTable(ids, ("cat",) * count, ("cat",) * count, scores)


@pytest.fixture(scope="module")
def human():
    return made()[0]


@pytest.fixture(scope="module")
def table():
    return made()[1]


def joined_of(frequencies, annotators=None, **scores):
    ids = tuple(map(str, range(len(frequencies))))
    human = HumanFrequencies(ids, np.asarray(frequencies, dtype=float), None, annotators)
    return Joined("model", {name: np.asarray(values, dtype=float) for name, values in scores.items()}, human)


def test_bins_have_their_upper_edge_and_the_first_both():
    frequencies = np.repeat([0, 0.2, 10 / 50, 0.21, 20 / 50, 0.6, 30 / 50, 0.61, 0.8, 40 / 50, 0.81, 1], 10)
    group = group_by_frequency(joined_of(frequencies), BINS)
    assert group[::10].tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4]
    assert [bin_name(number, BINS) for number in (0, 1, 4)] == ["[0, 0.2]", "(0.2, 0.4]", "(0.8, 1]"]
    assert group_by_frequency(joined_of(frequencies), (0.2, 0.4))[::10].tolist() == [-1, 0, 0, 0, 0] + [-1] * 7


def test_a_bin_of_few_is_an_error_that_names_it():
    frequencies = [0.1] * 9 + [0.5] * 12 + [1.0] * 3
    message = "[0, 0.2] has 9, (0.2, 0.4] has 0, (0.6, 0.8] has 0, (0.8, 1] has 3; give wider bins in `bins`"
    with pytest.raises(UserError, match=re.escape(message)):
        group_by_frequency(joined_of(frequencies), BINS)


@pytest.mark.parametrize("text", ["0,1,0.5", "0", "0,0,1", "0,2", "0,half", "-1,1", ""])
def test_bins_that_are_none(text):
    assert parse_bins("0,.5,1") == (0, 0.5, 1)
    with pytest.raises(UserError, match="`bins`"):
        parse_bins(text)


def test_rows_by_hand():
    """HSF 0.1 0.2 0.2 0.3, AVH 4 2 3 3 (turned: -4 -2 -3 -3: ranks 1 4 2.5 2.5), confidence 1 2 3 4.

    Less 2.5, HSF (-1.5, 0, 0, 1.5), AVH (-1.5, 1.5, 0, 0): rho = 2.25 / 4.5 = 0.5. Confidence (-1.5, -.5, .5, 1.5):
    rho = 4.5 / sqrt(4.5 * 5) = 0.948683. Tau: 2 / 5 as in test_statistics, 5 / sqrt(5 * 6) = 0.912871.
    Ten times the four: the same rho and tau-b, whose pairs of equal rows are ties on both sides.
    """
    once = {"avh": [4, 2, 3, 3], "confidence": [1, 2, 3, 4]}
    frequencies = np.tile([0.1, 0.2, 0.2, 0.3], 10)
    joined = joined_of(frequencies, **{name: np.tile(values, 10) for name, values in once.items()})
    avh, confidence = overall_rows(joined, "confidence", resamples=200)
    assert (avh["score"], avh["n"], confidence["n"]) == ("avh", 40, 40)
    assert avh["rho"] == pytest.approx(0.5) and confidence["rho"] == pytest.approx(0.948683, abs=1e-6)
    assert avh["kendall"] == pytest.approx(0.4) and confidence["kendall"] == pytest.approx(0.912871, abs=1e-6)
    reach = 1.959964 * math.sqrt(1.125 / 37)
    assert avh["fisher_low"] == pytest.approx(math.tanh(math.atanh(0.5) - reach), abs=1e-6)
    assert avh["difference"] == pytest.approx(0.5 - 0.948683, abs=1e-6) and confidence["difference"] is None
    assert avh["difference_low"] < avh["difference"] < avh["difference_high"] < 0
    assert avh["z"] == pytest.approx(0.549306, abs=1e-6) and confidence["meng_z"] is None
    # Less 2.5 the two scores' ranks have the product 1.5: r_x = 1.5 / sqrt(4.5 * 5) = .316228. r^2 = (.25 + .9) / 2 =
    # .575, f = .683772 / .85 = .804438, h = (1 - .462552) / .425 = 1.264584, so that Z is
    # (.549306 - 1.818446) * sqrt(37 / (2 * .683772 * 1.264584)) = -5.870376.
    assert avh["meng_z"] == pytest.approx(-5.870376, abs=1e-5)
    assert avh["meng_p"] == pytest.approx(2 * 0.5 * math.erfc(5.870376 / math.sqrt(2)), rel=1e-4)


def test_differences_are_paired():
    """Two almost equal scores: each one's rho varies far more than their difference, which is not sure."""
    generator = np.random.default_rng(1)
    frequencies = generator.random(300)
    near = frequencies + generator.normal(0, 0.5, 300)
    other = near + generator.normal(0, 0.02, 300)
    avh = overall_rows(joined_of(frequencies, avh=-other, confidence=near), "confidence", resamples=500)[0]
    width = avh["difference_high"] - avh["difference_low"]
    assert avh["difference_p"] > 0.05 and width < (avh["bootstrap_high"] - avh["bootstrap_low"]) / 5


def test_rows_of_bins_by_hand():
    """Lower half: HSF 0 .. .45 against AVH that falls with it: rho is 1 when turned. Upper half: constant HSF."""
    frequencies = np.concatenate([np.arange(10) / 20, np.ones(10)])
    joined = joined_of(frequencies, avh=np.concatenate([10.0 - np.arange(10), np.arange(10)]))
    group = group_by_frequency(joined, (0, 0.5, 1))
    low, high = bin_rows(joined, group, (0, 0.5, 1), "avh", 50)
    assert (low["bin"], low["n"], low["rho"], low["mean_frequency"]) == ("[0, 0.5]", 10, pytest.approx(1), 0.225)
    assert low["kendall"] == pytest.approx(1) and high["kendall"] is None
    assert high["rho"] is None and high["fisher_low"] is None and high["mean"] == 4.5
    # t of 9 degrees of freedom is 2.262157, the standard deviation of 0..9 is 3.027650
    assert high["mean_high"] == pytest.approx(4.5 + 2.262157 * 3.027650 / math.sqrt(10), abs=1e-5)


def test_bins_have_all_that_is_known_of_all_images():
    """The bin of all images is what `overall_rows` says; a bin in which the reference is constant has no difference."""
    people, table = made()
    joined = Joined("net", table.scores, people)
    overall = overall_rows(joined, "confidence", 60, 3)
    whole = bin_rows(joined, np.zeros(COUNT, int), (0, 1), "confidence", 60, 3)
    for one, row in zip(overall, whole, strict=True):
        assert {key: row[key] for key in one} == one and row["bin"] == "[0, 1]"
    assert whole[0]["z"] == pytest.approx(math.atanh(whole[0]["rho"])) and abs(whole[0]["rho"]) < 1
    flat = joined_of(np.arange(20) / 20, avh=-(np.arange(20) ** 0.5), confidence=np.repeat([1, 2], 10))
    group = np.repeat([0, 1], 10)
    rows = {(row["score"], row["bin"]): row for row in bin_rows(flat, group, (0, 0.5, 1), "confidence", 20)}
    assert rows["avh", "(0.5, 1]"]["rho"] == pytest.approx(1) and rows["avh", "(0.5, 1]"]["difference"] is None
    assert rows["confidence", "[0, 0.5]"]["rho"] is None


def test_votes_are_spread_over_what_they_stand_for():
    """k of 50 for every k, as often: flat in bins of any width; each image counts once."""
    frequencies = np.arange(51) / 50
    edges, shares = frequency_columns(frequencies, np.full(51, 50))
    assert edges.tolist() == pytest.approx(np.linspace(0, 1, 21)) and shares.shape == (51, 20)
    assert shares.sum(1).tolist() == pytest.approx([1] * 51)
    assert shares.sum(0).tolist() == pytest.approx([51 / 20] * 20)
    plain = frequency_columns(frequencies, None)[1].sum(0)
    assert set(plain.tolist()) == {2.0, 3.0}, "which is why"
    edges, shares = frequency_columns(np.array([0.5, 1, 0.5, 0]), None)
    assert edges.tolist() == [0, 0.25, 0.75, 1] and shares.sum(0).tolist() == [1, 2, 1]


def test_the_histogram_draws_all_images_and_the_means(human, table):
    joined = Joined("small net", table.scores, human)
    by_bin = bin_rows(joined, group_by_frequency(joined, BINS), BINS, "confidence", 20)
    panels = histogram_panels([joined, joined], "avh", by_bin)
    assert panels[0].counts.sum() == pytest.approx(COUNT)
    assert sum(cell["images"] for cell in panels[0].cells()) == pytest.approx(COUNT)
    figure = histogram_figure(panels, "avh")
    first = figure.axes[0]
    mesh = first.collections[0].get_array()
    np.testing.assert_allclose(mesh.data.ravel(), panels[0].counts.T.ravel())
    assert mesh.mask.ravel().tolist() == (panels[0].counts.T.ravel() < 0.3).tolist()
    line = first.lines[0]
    own = [row for row in by_bin if row["score"] == "avh"]
    assert line.get_ydata().tolist() == pytest.approx([row["mean"] for row in own])
    assert line.get_xdata().tolist() == pytest.approx([row["mean_frequency"] for row in own])
    reach = first.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert reach.tolist() == pytest.approx([own[0]["mean_low"], own[0]["mean_high"]])
    assert (figure.get_supxlabel(), figure.get_supylabel()) == ("human selection frequency", "AVH")
    assert first.get_title() == "small net" and figure.axes[-1].get_ylabel() == "images"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["mean, 95 % interval"]


def test_the_summary_draws_every_rho_with_its_interval(human, table):
    rows = [
        row
        for model in ("one", "two")
        for row in overall_rows(Joined(model, table.scores, human), "confidence", resamples=100)
    ]
    figure = summary_figure(rows)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["own", "avh", "confidence", "norm"]
    for model, container in zip(("one", "two"), axes.containers, strict=True):
        own = [row for row in rows if row["model"] == model]
        assert container.lines[0].get_xdata().tolist() == [row["rho"] for row in own]
        drawn = [segment[:, 0].tolist() for segment in container.lines[2][0].get_segments()]
        assert drawn == [pytest.approx([row["bootstrap_low"], row["bootstrap_high"]]) for row in own]
        heights = container.lines[0].get_ydata()
        assert [names[round(height)] for height in heights] == [row["score"] for row in own]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    assert "rho" in axes.get_xlabel() and axes.get_ylabel() == "score"


def test_a_rho_of_1_can_be_drawn():
    """Rounding may leave rho a little outside of its own interval; matplotlib refuses an interval of such a length."""
    row = {"model": "m", "score": "avh", "rho": 1.0, "bootstrap_low": 1.0000000000000002, "bootstrap_high": 1 - 2e-16}
    (container,) = summary_figure([row]).axes[0].containers
    assert container.lines[2][0].get_segments()[0][:, 0].tolist() == [1, 1]


def test_long_names_of_models_fit_into_the_summary():
    numbers = dict.fromkeys(("rho", "bootstrap_low", "bootstrap_high"), 0.5)
    figure = summary_figure([{"model": f"cifar10_densenet_seed_{i}", "score": "avh", **numbers} for i in range(4)])
    figure.savefig(io.BytesIO(), format="png")
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width


def test_all_of_it_for_two_models(human, table, tmp_path):
    again = made(seed=4)[1]
    findings = Findings(tmp_path, "title")
    found = correlate(
        {"one": table, "two": ScoreTable(table.ids, table.labels, table.predicted, {**again.scores})},
        human, BINS, "confidence", findings, scores=["avh", "own"], resamples=300,
    )  # fmt: skip
    rows = found.overall
    assert [(row["model"], row["score"]) for row in rows] == [
        (model, score) for model in ("one", "two") for score in ("avh", "own", "confidence")
    ]
    avh, _, confidence = rows[:3]
    assert avh["rho"] > 0.7 > confidence["rho"] > 0.3, "turned: AVH falls with HSF here"
    assert avh["bootstrap_low"] < avh["rho"] < avh["bootstrap_high"]
    assert avh["difference_low"] > 0 and avh["meng_p"] < 1e-6
    assert abs(rows[3]["rho"]) < 0.15, "the second model's scores are of other images"
    page = findings.write().read_text()
    assert "spread evenly over the frequencies" in page
    alone = Findings(tmp_path / "alone", "")
    people = HumanFrequencies(human.ids, human.frequencies)
    with undrawn():
        correlate({"one": table}, people, BINS, "confidence", alone, scores=["avh"], resamples=20)
    assert "spread evenly" not in alone.write().read_text(), "how many were asked is not known"
    assert "The sign is reversed for avh; not for own, whose direction is unknown." in page
    with (tmp_path / "correlations.csv").open() as file:
        assert [float(row["rho"]) for row in csv.DictReader(file)] == [row["rho"] for row in rows]
    with (tmp_path / "correlations_by_bin.csv").open() as file:
        by_bin = list(csv.DictReader(file))
    assert len(by_bin) == len(found.by_bin) == 2 * 3 * 5 and {row["bin"] for row in by_bin} == {
        bin_name(i, BINS) for i in range(5)
    }
    with (tmp_path / "histogram_own.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert sum(float(cell["images"]) for cell in cells if cell["model"] == "two") == pytest.approx(COUNT)
    for ending in ("png", "svg"):
        assert (tmp_path / f"histogram_avh.{ending}").stat().st_size > 5000
    with undrawn():
        findings = Findings(tmp_path, "")
        same = correlate({"one": table}, human, BINS, "confidence", findings, scores=["avh"], resamples=300)
    assert same.overall[0] == rows[0], "the bootstrap has a seed, and other models and scores do not change its draws"


def changed(table, **scores):
    return ScoreTable(table.ids, table.labels, table.predicted, {**table.scores, **scores})


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({"norm": np.full(COUNT, 3.0)}, {}, "'norm' is 3 for all 600 images"),
        (
            {"norm": np.append(np.ones(COUNT - 1), np.nan)},
            {},
            "'norm' of test/cat/0599.jpg is nan; it must be a finite number",
        ),
        ({"confidence": np.full(COUNT, 3.0)}, {}, "so it has no correlation; name another score in `reference`"),
        ({}, {"reference": "confidense"}, "no score 'confidense', did you mean 'confidence'"),
        ({}, {"reference": "loss"}, "(has: avh, confidence, norm, own); name another score in `reference`"),
        ({}, {"scores": ["avx"]}, "no score 'avx', did you mean 'avh'"),
    ],
)
def test_scores_that_cannot_be_correlated(scores, options, message, human, table, tmp_path):
    arguments = {"reference": "confidence", **options}
    with pytest.raises(UserError, match=re.escape(message)):
        correlate({"m": changed(table, **scores)}, human, BINS, findings=Findings(tmp_path, ""), **arguments)


def test_people_who_all_agree_or_are_few(table, tmp_path):
    for count, message in (
        (COUNT, "human frequency is 1 for all images, so there is no correlation"),
        (9, "9 images are in the table and in the human file"),
    ):
        human = HumanFrequencies(table.ids[:count], np.ones(count))
        with pytest.raises(UserError, match=message):
            correlate({"m": table}, human, BINS, "avh", Findings(tmp_path, ""), allow_missing=True)


def test_names_of_tables(table, tmp_path):
    for path in ("a/scores.csv", "b/scores.csv", "c.csv"):
        write_scores(table, tmp_path / path)
    a, b, c = (str(tmp_path / path) for path in ("a/scores.csv", "b/scores.csv", "c.csv"))
    assert list(named_tables([a, b, c])) == ["a", "b", "c"]
    assert list(named_tables([a, f"net={b}"])) == ["a", "net"]
    assert list(named_tables([a])) == ["scores"]
    (tmp_path / "a" / "config.yaml").write_text("name: net\nseed: 3\n")
    (tmp_path / "b" / "config.yaml").write_text("name: net\n")
    assert list(named_tables([a, b])) == ["net, seed 3", "b"]
    assert list(named_tables([str(tmp_path / "a"), f"else={tmp_path / 'b'}"])) == ["net, seed 3", "else"]
    with pytest.raises(UserError, match=r"have the same name 'c'; give names: NAME=FILE"):
        named_tables([c, f"c={a}"])


def test_on_the_command_line(human, table, in_folder, capsys):
    write_scores(table, in_folder / "scores.csv")
    lines = [f"{name},{value}" for name, value in zip(human.ids, human.frequencies, strict=True)]
    (in_folder / "people.csv").write_text("\n".join(["image,hsf", *lines]))
    words = ["correlate", "--scores", "net=scores.csv", "--human", "people.csv"]
    with undrawn():
        assert hardness([*words, "--scores-columns", "avh, norm"]) == 0
    out = capsys.readouterr().out
    assert "people.csv: 600 images, read as 'csv'" in out and "a positive value is what the paper expects" in out
    assert re.search(r"net +avh +600 +0\.[78]", out) and (in_folder / "runs/hardness/correlate/index.html").is_file()
    assert hardness([*words, "--bins", "0,0.01,1"]) == 2
    error = capsys.readouterr().err
    assert "a bin needs at least 10 images, but [0, 0.01] has" in error and "wider bins in --bins" in error
    with undrawn():
        assert hardness([*words, "--reference", "own", "--scores-columns", "avh"]) == 0
    with pytest.raises(SystemExit):
        hardness([*words, "--seed", "-1"])
    assert "argument --seed: -1: must be at least 0" in capsys.readouterr().err
    (in_folder / "people.csv").write_text("\n".join(["image,hsf", *lines[5:]]))
    assert hardness(words) == 2
    assert "5 of 600 images of net are not in the human file: test/cat/0000.jpg" in capsys.readouterr().err
    capsys.readouterr()
    with undrawn():
        assert hardness([*words, "--allow-missing", "--scores-columns", "avh", "--out", "some", "--bins", "0.5,1"]) == 0
    out = capsys.readouterr().out
    left = (
        "net: 5 of 600 images are left out because people have not seen them, and 0 of 595 because they have no score"
    )
    outside = sum(value < 0.5 for value in human.frequencies[5:])
    assert left in out and f"net: {outside} of 595 images are in no bin; they count only among all images" in out
    page = (in_folder / "some" / "index.html").read_text()
    assert f"{left}." in page and "left out (--allow-missing)" in page
    assert hardness([*words, "--scores-columns", "avh,nrom"]) == 2
    assert "net has no score 'nrom', did you mean 'norm'? (has: avh, confidence, norm, own)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        hardness([*words, "runtime.device=cpu"])
    assert (
        "correlate: error: unrecognized arguments: runtime.device=cpu; uda hardness correlate takes no key=value words"
        in (capsys.readouterr().err)
    )
    with pytest.raises(SystemExit):
        hardness([*words, "--bin", "0,1"])
    assert "unrecognized arguments: --bin 0,1, did you mean '--bins'?" in capsys.readouterr().err
