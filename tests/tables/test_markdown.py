"""Tables as readers see them: means, deviations, paired differences, validators, LaTeX, published figures."""

import csv
import json
import re

import numpy as np
import pytest

from uda.adaptation.table import COLUMNS
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT
from uda.core.statistics import paired_bootstrap
from uda.tables import (
    classes_markdown,
    differences_markdown,
    inner_markdown,
    published_latex,
    published_markdown,
    read_csv,
    scores_markdown,
    to_csv,
    to_latex,
    to_markdown,
    validator_markdown,
    write_published,
)
from uda.tables.comparison import rank_correlation


def record(row, seed, class_mean, target="photos", **values):
    """A made-up finished run; what is not given is empty, as for a run without rounds."""
    empty = dict.fromkeys(COLUMNS)
    return {
        **empty, "row": row, "config": "made_up", "source": "drawn", "target": target, "seed": seed,
        "class_mean": class_mean, **values,
    }  # fmt: skip


def columns_of(block, row):
    return dict(zip(block["head"], block[row], strict=True))


@pytest.fixture
def markdown_of(tmp_path):
    """Markdown of records that went through the CSV, as they always do; its table lines as lists of cells by method."""

    def make(records):
        path = tmp_path / "made_up.csv"
        path.write_text(to_csv(records, COLUMNS), encoding="utf-8")
        blocks = []
        written = read_csv(path)
        for line in (to_markdown(written, "CBST") + inner_markdown(written)).splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("| Method "):
                blocks.append({"head": cells[1:]})
            elif line.startswith("| "):
                blocks[-1][cells[0]] = cells[1:]
        return blocks

    return make


def test_mean_and_standard_deviation_by_hand(markdown_of):
    """90, 92, 97: mean 93, deviations -3, -1, 4, squares 26 over n - 1 = 2 is 13, root 3.606.

    TP rates .5, .6, .7: mean .6, deviations -.1, 0, .1, squares .02 over 2, root .1. A single run has no deviation.
    """
    shared = {"overall": 0.5, "oracle_best": 0.97, "tp_rate_round0": 0.25}
    records = [
        record("CBST", seed, accuracy, label_free=accuracy, tp_rate=rate, **shared)
        for seed, (accuracy, rate) in enumerate([(0.90, 0.5), (0.92, 0.6), (0.97, 0.7)])
    ]
    accuracy, inner = markdown_of([record("Source", 0, 0.5), *records])
    columns = dict(zip(accuracy["head"], accuracy["CBST"], strict=True))
    assert columns["drawn to photos"] == columns["label-free choice"] == "93.0 ± 3.6"
    assert columns["overall"] == "50.0 ± 0.0" and columns["oracle best"] == "97.0 ± 0.0"
    source = dict(zip(accuracy["head"], accuracy["Source"], strict=True))
    assert source["drawn to photos"] == "50.0" and source["overall"] == source["oracle best"] == ""
    columns = dict(zip(inner["head"], inner["CBST"], strict=True))
    assert columns["TP rate"] == "0.600 ± 0.100" and columns["TP rate, first round"] == "0.250 ± 0.000"
    assert columns["AVH"] == "" and "Source" not in inner


def test_several_pairs_have_a_column_each_and_their_mean(markdown_of):
    """Seed 0: 80 and 60, mean 70; seed 1: 90 and 70, mean 80; over seeds 75 ± 10 / sqrt 2 = 7.07."""
    records = [
        record("CBST", seed, accuracy, target)
        for seed, target, accuracy in [(0, "photos", 0.8), (0, "art", 0.6), (1, "photos", 0.9), (1, "art", 0.7)]
    ]
    (accuracy,) = markdown_of(records)
    columns = dict(zip(accuracy["head"], accuracy["CBST"], strict=True))
    assert columns["drawn to photos"] == "85.0 ± 7.1"
    assert columns["drawn to art"] == "65.0 ± 7.1"
    assert columns["mean"] == "75.0 ± 7.1"


def test_missing_runs_leave_the_cells_of_what_is_there(markdown_of):
    """AVH lacks seed 1 on art: its mean is seed 0's alone, (80 + 60) / 2. CRST has one run: no mean over the pairs."""
    records = [
        *(record("CBST", seed, 0.5, target) for seed in (0, 1) for target in ("photos", "art")),
        record("AVH", 0, 0.8, "photos"),
        record("AVH", 1, 0.9, "photos"),
        record("AVH", 0, 0.6, "art"),
        record("CRST", 1, 0.7, "art"),
    ]
    (accuracy,) = markdown_of(records)
    rows = {name: dict(zip(accuracy["head"], accuracy[name], strict=True)) for name in ("CBST", "AVH", "CRST")}
    assert [rows[name]["seeds"] for name in ("CBST", "AVH", "CRST")] == ["2", "2", "1"]
    assert rows["CBST"]["mean"] == "50.0 ± 0.0"
    assert [rows["AVH"][key] for key in ("drawn to photos", "drawn to art", "mean")] == ["85.0 ± 7.1", "60.0", "70.0"]
    assert [rows["CRST"][key] for key in ("drawn to photos", "drawn to art", "mean")] == ["", "70.0", ""]


def test_difference_to_cbst_is_paired_by_hand(markdown_of):
    """AVH - CBST: +10 on seed 0, 0 on four others, mean +2. Of five drawn, 0, 3 and 4 or more are +10 with a chance of
    33, 5 and 1 %: 2.5 % below is 0, above is 3 of five, +6.

    Seed 5 has no CBST, and so no pair. Fewer than five have no interval; CBST is not compared with itself.
    """
    records = [record("CBST", seed, 0.80) for seed in range(5)]
    records += [record("AVH", seed, accuracy) for seed, accuracy in enumerate([0.9, 0.8, 0.8, 0.8, 0.8, 0.1])]
    records += [record("MCD", seed, 0.75) for seed in range(4)]
    (accuracy,) = markdown_of(records)
    assert columns_of(accuracy, "AVH")["minus CBST"] == "+2.0 [+0.0, +6.0], n = 5"
    assert columns_of(accuracy, "MCD")["minus CBST"] == "-5.0, n = 4"
    assert columns_of(accuracy, "CBST")["minus CBST"] == ""
    (without,) = markdown_of([record("AVH", 0, 0.92)])
    assert "minus CBST" not in without["head"]


def test_pairs_of_domains_are_not_mixed_in_the_difference(markdown_of):
    """photos +10, art +10, five times each: no spread. Crossed pairs would give +50 and -30."""
    records = [
        made for seed in range(5) for made in [
            record("CBST", seed, 0.40, "photos"), record("CBST", seed, 0.80, "art"),
            record("AVH", seed, 0.50, "photos"), record("AVH", seed, 0.90, "art"),
        ]
    ]  # fmt: skip
    (accuracy,) = markdown_of(records)
    assert columns_of(accuracy, "AVH")["minus CBST"] == "+10.0 [+10.0, +10.0], n = 10"


def test_seeds_are_drawn_within_each_pair(markdown_of):
    """photos +30, art -10, whatever the seed: their mean is +10 without doubt. With four seeds of a pair none."""
    records = [
        made for seed in range(5) for made in [
            record("CBST", seed, 0.40, "photos"), record("CBST", seed, 0.80, "art"),
            record("AVH", seed, 0.70, "photos"), record("AVH", seed, 0.70, "art"),
            record("MCD", seed, 0.70, "photos"), *[record("MCD", seed, 0.70, "art")] * (seed < 4),
        ]
    ]  # fmt: skip
    (accuracy,) = markdown_of(records)
    assert columns_of(accuracy, "AVH")["minus CBST"] == "+10.0 [+10.0, +10.0], n = 10"
    assert columns_of(accuracy, "MCD")["minus CBST"] == "+12.2, n = 9"


def test_bootstrap_interval_is_that_of_normal_theory_for_many():
    """400 differences of mean .1 and deviation 1: mean ± 1.96 / 20, within the draws' noise; same bits each time."""
    values = np.random.default_rng(3).normal(size=400)
    values = (values - values.mean()) / values.std() + 0.1
    found = paired_bootstrap({"pair": values})
    assert found.mean == pytest.approx(0.1) and found.count == 400
    assert found.interval == pytest.approx((0.1 - 0.098, 0.1 + 0.098), abs=0.005)
    assert found == paired_bootstrap({"pair": values})
    assert paired_bootstrap({}) is paired_bootstrap({"pair": []}) is None
    # Half of them a pair, whose means are far apart: the width is that of the halves' own deviations.
    apart = paired_bootstrap({"one": values[:200] - 50, "other": values[200:] + 50})
    assert apart.interval == pytest.approx((0.1 - 0.098, 0.1 + 0.098), abs=0.01)


def test_steps_are_shown_as_one_figure_or_as_a_range(markdown_of):
    steps = [("A", 0, 1816), ("B", 0, 400), ("B", 1, 402), ("C", 0, None)]
    (accuracy,) = markdown_of([record(row, seed, 0.5, steps=count) for row, seed, count in steps])
    assert [columns_of(accuracy, row)["steps"] for row in "ABC"] == ["1,816", "400 to 402", ""]


def test_rank_correlation_by_hand():
    """Ranks 1 2 3 4 and 1 3 2 4: d^2 = 0 1 1 0, rho = 1 - 6 * 2 / (4 * 15) = .8. Constant or too few: not known."""
    assert rank_correlation([0.1, 0.2, 0.3, 0.9], [5, 7, 6, 8]) == pytest.approx(0.8)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) is rank_correlation([1, 2, 3], [1, 1, 1]) is None
    assert rank_correlation([1, 2], [1, 2]) is None


def report(row, seed, index, class_mean, im, snd=1.0):
    return {
        "row": row, "source": "drawn", "target": "photos", "seed": seed, "report": index,
        "class_mean": class_mean, "im": im, "snd": snd,
    }  # fmt: skip


@pytest.fixture
def judged(tmp_path):
    """Validator tables of reports that went through the CSV, as lists of cells by row."""

    def make(reports):
        path = tmp_path / "reports.csv"
        path.write_text(to_csv(reports, tuple(reports[0])), encoding="utf-8")
        blocks = []
        for line in validator_markdown(read_csv(path)).splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith(("| Validator", "| Method")):
                blocks.append({"head": cells[1:]})
            elif line.startswith("| "):
                blocks[-1][cells[0]] = cells[1:]
        return blocks

    return make


def test_validators_are_judged_by_hand(judged):
    """Run A: class means 50 60 70, im 1 3 2: ranks 1 2 3 and 1 3 2, rho = 1 - 6 * 2 / 24 = .5; it chooses 60, loses 10.

    Run B: 80 90 85, im 1 2 3: rho .5 as well; it chooses 85, loses 5: mean 7.5. The last report loses 0 and 5: 2.5.
    Methods, at the last report: A 70, B 85, C 40 with im 2, 3, 9: ranks 2 3 1 and 1 2 3, squares 1 + 1 + 4,
    rho = 1 - 6 * 6 / 24 = -.5; it chooses C, loses 45. C has one report: no epochs to rank. snd is constant: n/a, and
    the first is its choice: 50 of A, 80 of B (losing 20 and 10), A among the methods (losing 15).
    """
    reports = [report("A", 0, index, *pair) for index, pair in enumerate([(0.5, 1.0), (0.6, 3.0), (0.7, 2.0)])]
    reports += [report("B", 0, index, *pair) for index, pair in enumerate([(0.8, 1.0), (0.9, 2.0), (0.85, 3.0)])]
    reports += [report("C", 0, "source", 0.4, 9.0)]
    ranks, choices = judged(reports)
    assert ranks["im"] == ["+0.50, n = 2", "7.5, n = 2", "-0.50, n = 1", "45.0, n = 1"]
    assert ranks["snd"] == ["n/a", "15.0, n = 2", "n/a", "15.0, n = 1"]
    assert ranks["the last report"] == ["", "2.5, n = 2", "", ""]
    assert choices["head"] == ["runs", "last", "im", "snd", "oracle best"]
    assert choices["A"] == ["1", "70.0", "60.0", "50.0", "70.0"]
    assert choices["B"] == ["1", "85.0", "85.0", "80.0", "90.0"] and "C" not in choices


def test_seeds_are_groups_of_their_own_and_unknown_figures_count_nowhere(judged):
    """Seed 1: A .5, B .8, D .7, im 2, 1, 1.5: rho -1, A is chosen, 30 lost. Seed 2: A .6, B .7, E .9: rho 1, 0 lost.

    E of seed 1 has no class mean, D of seed 2 no im; seeds 3 and 4 have two methods, which are too few to rank.
    """
    reports = [report("A", 1, 0, 0.5, 2.0), report("B", 1, 0, 0.8, 1.0), report("D", 1, 0, 0.7, 1.5)]
    reports += [report("E", 1, 0, None, 5.0)]
    reports += [report("A", 2, 0, 0.6, 2.0), report("B", 2, 0, 0.7, 3.0), report("D", 2, 0, 0.9, None)]
    reports += [report("E", 2, 0, 0.9, 4.0)]
    reports += [report(row, seed, 0, 0.5, 2.0) for seed in (3, 4) for row in "AB"]
    (ranks,) = judged(reports)
    assert ranks["im"] == ["n/a", "n/a", "+0.00, n = 2", "15.0, n = 2"]
    assert judged(reports[:1] + reports[-1:]) == []


def test_each_validator_judges_the_reports_that_it_scores(judged):
    """im scores all four, and chooses the untrained first one (20), losing 60; snd has none for the first: 80."""
    run = zip((0.2, 0.6, 0.7, 0.8), (9.0, 1.0, 2.0, 3.0), (None, 1.0, 2.0, 3.0), strict=True)
    ranks, choices = judged([report("A", 0, index, *values) for index, values in enumerate(run)])
    assert ranks["im"][:2] == ["-0.20, n = 1", "60.0, n = 1"] and ranks["snd"][:2] == ["+1.00, n = 1", "0.0, n = 1"]
    assert choices["A"] == ["1", "80.0", "20.0", "80.0", "80.0"]


def test_several_pairs_show_what_other_choices_come_to_where_that_is_known():
    rows = [record("CBST", 0, 0.6, t, label_free=0.5, oracle_best=0.7) for t in ("photos", "art")]
    head, *_, line = to_markdown(list(csv.DictReader(to_csv(rows, COLUMNS).splitlines()))).splitlines()[2:]
    assert "| mean | mean, label-free choice | mean, oracle best | steps |" in head
    assert "| 60.0 | 50.0 | 70.0 |" in line


def test_accuracy_by_class_stands_in_a_table_a_pair():
    """ant .5 and .7 over two seeds: 60.0; bee known once, 90.0."""
    rows = [
        record("CBST", 0, 0.6, per_class=json.dumps({"ant": 0.5, "bee": None})),
        record("CBST", 1, 0.8, per_class=json.dumps({"ant": 0.7, "bee": 0.9})),
        record("AVH", 0, 0.5, "art", per_class=json.dumps({"ant": 0.25, "bee": 0.75})),
    ]
    markdown = classes_markdown(list(csv.DictReader(to_csv(rows, COLUMNS).splitlines())))
    first, second = markdown.split("\n\ndrawn to art")
    assert first.startswith("drawn to photos, %") and "| CBST | 60.0 | 90.0 | 70.0 |" in first
    assert "| AVH | 25.0 | 75.0 | 50.0 |" in second and "CBST" not in second


def test_differences_stand_pair_by_pair_and_over_all():
    """Photos: AVH .70 .80 to CBST's .60 .60: +10 and +20, mean 15; art: .50 to .60; MCC has no art."""
    rows = [record("CBST", seed, 0.6, target) for seed in (0, 1) for target in ("photos", "art")]
    rows += [record("AVH", 0, 0.7), record("AVH", 1, 0.8), record("AVH", 0, 0.5, "art"), record("MCC", 1, 0.6)]
    written = list(csv.DictReader(to_csv(rows, COLUMNS).splitlines()))
    table = [line.strip("| ").split(" | ") for line in differences_markdown(written, "CBST").splitlines()[2:]]
    assert table[0] == ["Minus CBST", "drawn to photos", "drawn to art", "all"]
    assert table[2][:3] == ["AVH", "+15.0, n = 2", "-10.0, n = 1"]
    assert table[2][3] == "+6.7, n = 3" and table[3] == ["MCC", "+0.0, n = 1", "", "+0.0, n = 1"]
    assert differences_markdown(written, "Source") == differences_markdown(written[:1], "CBST") == ""


def test_scores_of_rows_are_means_over_runs_and_each_validator_has_its_choice():
    """A: im 2 and 4, mean 3; B: 2; so im chooses A, the worse one: 55 ± 7.1 against 80. snd ties: bold all."""
    reports = [report("A", 0, 0, 0.9, 9.0), report("A", 0, 1, 0.5, 2.0), report("A", 1, 0, 0.6, 4.0)]
    reports += [report("B", 0, 0, 0.8, 2.0), report("C", 0, 0, 0.7, None)]
    written = list(csv.DictReader(to_csv(reports, tuple(reports[0])).splitlines()))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in scores_markdown(written).splitlines()]
    assert ["Row", "runs", "im", "snd", "class mean (oracle)"] in rows
    assert rows[-3:] == [
        ["A", "2", "**3.000**", "**1.000**", "55.0 ± 7.1"],
        ["B", "1", "2.000", "**1.000**", "80.0"],
        ["C", "1", "n/a", "**1.000**", "70.0"],
    ]
    assert scores_markdown([]) == ""


def cells_of(latex, name):
    """Cells of the line of each tabular that begins with `name`."""
    lines = [line for line in latex.splitlines() if line.startswith(f"{name} &")]
    return [[cell.strip() for cell in line.removesuffix(r" \\").split(" & ")][1:] for line in lines]


def test_latex_has_a_tabular_a_pair_by_class_and_one_of_mean_and_deviation():
    """ant .5 and .7 over two seeds: 60.0; bee known once, 90.0. Class means 60 and 80: 70.0 ± 14.1."""
    rows = [
        record("CBST", 0, 0.6, "photos", per_class=json.dumps({"ant": 0.5, "bee_x": None}), steps=9),
        record("CBST", 1, 0.8, "photos", per_class=json.dumps({"ant": 0.7, "bee_x": 0.9}), steps=9),
        record("A & B_1 100%", 0, 0.5, "art", per_class=json.dumps({"ant": 0.25, "bee_x": 0.75}), steps=9),
    ]
    rows.append(record("CNN-9", 1, 0.7, "photos", steps=9))
    latex = to_latex(list(csv.DictReader(to_csv(rows, COLUMNS).splitlines())), "CBST")
    assert cells_of(latex, "CNN-9")[-1][-1] == "$-$10.0, n = 1"
    assert cells_of(latex, "CBST") == [["60.0", "90.0", "70.0"], ["2", r"70.0 $\pm$ 14.1", "", "", "9", ""]]
    assert cells_of(latex, r"A \& B\_1 100\%")[0] == ["25.0", "75.0", "50.0"]
    assert latex.count(r"\begin{tabular}") == latex.count(r"\toprule") == latex.count(r"\end{tabular}") == 3
    assert r"Method & ant & bee\_x & mean \\" in latex
    for block in re.findall(r"\\begin{tabular}{(l+r+)}(.*?)\\end", latex, flags=re.DOTALL):
        lines = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        assert {len(re.split(r" (?<!\\)& ", line)) for line in lines} == {len(block[0])}


@pytest.mark.parametrize("path", sorted((CHECKOUT / "results" / "published").glob("*.csv")), ids=lambda path: path.stem)
def test_published_figures_agree_with_their_own_means(path):
    """A slip of the pen in any class would move the mean of twelve by more than its rounding."""
    for row in read_csv(path):
        known = [float(value) for key, value in row.items() if key not in ("method", "mean", "published_in")]
        assert sum(known) / len(known) == pytest.approx(float(row["mean"]), abs=0.051), row["method"]
        assert row["published_in"]


def test_published_figures_are_a_table_of_their_own(tmp_path):
    (tmp_path / "paper.csv").write_text('method,ant,bee,mean,published_in\nX_1,50.0,60.0,55.0,"Doe, 2020"\n')
    document = tmp_path / "README.md"
    document.write_text("<!-- table paper_published -->\n<!-- end paper_published -->\n")
    markdown = write_published("paper", tmp_path, [document])
    assert markdown == published_markdown(read_csv(tmp_path / "paper.csv")) and markdown in document.read_text()
    assert "| X_1 | 50.0 | 60.0 | 55.0 |" in markdown and "not measured here" in markdown and "Doe, 2020" in markdown
    latex = (tmp_path / "paper.tex").read_text()
    assert latex == published_latex(read_csv(tmp_path / "paper.csv")) and r"X\_1 & 50.0 & 60.0 & 55.0 \\" in latex
    with pytest.raises(UserError, match=r"papers\.csv: no published figures of that name \(known: paper\)"):
        write_published("papers", tmp_path)
