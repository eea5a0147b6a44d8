"""Two rows of a table compared pair by pair."""

import csv
import io

import numpy as np
import pytest

from uda.adaptation.table import COLUMNS
from uda.core.statistics import mean_interval
from uda.tables.contrast import contrasts_markdown
from uda.tables.ledger import to_csv


def records(figures):
    """Records that went through a CSV. `figures`: by row and target, class means by seed and other columns."""
    made = [
        {**dict.fromkeys(COLUMNS), "row": row, "source": "drawn", "target": target, "seed": seed, "class_mean": value}
        | columns
        for (row, target), (values, columns) in figures.items()
        for seed, value in enumerate(values)
    ]
    return list(csv.DictReader(io.StringIO(to_csv(made, COLUMNS))))


@pytest.fixture
def three_pairs():
    rates = {"tp_rate_round0": 0.9, "tp_rate": 0.8}
    return records(
        {
            ("A", "easy"): ([0.8, 0.9], {"flipped": 0.0, "tp_rate_round0": 0.95, "tp_rate": 0.9}),
            ("B", "easy"): ([0.7, 0.7], {"source_only": 0.6, **rates}),
            ("A", "hard"): ([0.3, 0.3], {"flipped": 0.2, "tp_rate_round0": 0.8, "tp_rate": 0.7}),
            ("B", "hard"): ([0.4, 0.3], {"source_only": 0.2, **rates}),
            ("A", "middle"): ([0.5, 0.5], {"flipped": 0.1, "tp_rate_round0": 0.9, "tp_rate": 0.8}),
            ("B", "middle"): ([0.5, 0.5], {"source_only": 0.4, **rates}),
        }
    )


def test_pairs_by_hand(three_pairs):
    lines = contrasts_markdown(three_pairs, [("A", "B")], "class_mean").splitlines()
    assert lines[0].startswith("A minus B, by pair, sorted by the class mean of the source model.")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| drawn")]
    assert cells == [
        ["drawn to hard", "20.0", "80.0 / 90.0", "70.0 / 80.0", "20.0", "-5.0, n = 2"],
        ["drawn to middle", "40.0", "90.0 / 90.0", "80.0 / 80.0", "10.0", "+0.0, n = 2"],
        ["drawn to easy", "60.0", "95.0 / 90.0", "90.0 / 80.0", "0.0", "+15.0, n = 2"],
    ]


def test_a_seed_that_one_row_lacks_has_no_part(three_pairs):
    more = [
        {**run, "seed": "2", "class_mean": "0.1", "source_only": "0.9", "tp_rate": "0.1"}
        for run in three_pairs
        if run["row"] == "B" and run["seed"] == "0"
    ]
    alone, with_more = (
        contrasts_markdown(runs, [("A", "B")], "class_mean") for runs in (three_pairs, three_pairs + more)
    )
    assert alone == with_more


def test_the_interval_is_over_pairs_and_the_correlations_too(three_pairs):
    text = contrasts_markdown(three_pairs, [("A", "B")], "class_mean")
    low, high = mean_interval(np.array([15.0, -5.0, 0.0]))
    assert f"Mean over the 3 pairs: +3.3 points, 95 % interval {low:+.1f} to {high:+.1f}" in text
    assert "1 of 3 pairs are above 0" in text
    assert "accuracy of the source model +1.00" in text
    assert "share of flipped labels -1.00" in text
    assert "in the first round: " not in text and "TP rate of B" not in text  # constant, so it has no correlation


def test_rows_without_runs_are_left_out(three_pairs):
    assert contrasts_markdown(three_pairs, [("A", "C")], "class_mean") == ""
    one = [record for record in three_pairs if record["target"] == "easy"]
    assert contrasts_markdown(one, [("A", "B")], "class_mean") == ""
