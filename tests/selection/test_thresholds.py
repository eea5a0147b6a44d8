"""Class-balanced thresholds and pseudo-labels against a slow reference in plain Python."""

import math
from decimal import Decimal

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uda.selection import thresholds as module
from uda.selection.thresholds import class_balanced_thresholds, portion_schedule, select


def slow_thresholds(scores, portion):
    """Steps 1 to 3, one loop each; the floor is taken in decimal arithmetic."""
    num_classes = len(scores[0])
    best_of_class = [[] for _ in range(num_classes)]
    for row in scores:
        winner = 0
        for k in range(num_classes):
            if row[k] > row[winner]:
                winner = k
        best_of_class[winner].append(row[winner])
    lambdas = []
    for best in best_of_class:
        keep = math.floor(Decimal(repr(portion)) * len(best))
        lambdas.append(sorted(best, reverse=True)[keep - 1] if keep > 0 else math.inf)
    return lambdas


def slow_select(scores, lambdas):
    """Step 4: label, ratio and decision of every row."""
    labels, ratios, selected = [], [], []
    for row in scores:
        label, ratio = None, None
        for k, value in enumerate(row):
            if not math.isinf(lambdas[k]) and (label is None or value / lambdas[k] > ratio):
                label, ratio = k, value / lambdas[k]
        if label is None:
            label, ratio = row.index(max(row)), 0.0
        labels.append(label)
        ratios.append(ratio)
        selected.append(not math.isinf(lambdas[label]) and row[label] >= lambdas[label])
    return labels, ratios, selected


def assert_like_the_reference(scores, portion):
    rows = scores.astype(np.float64).tolist()
    lambdas = class_balanced_thresholds(scores, portion)
    assert lambdas.dtype == np.float64
    assert lambdas.tolist() == slow_thresholds(rows, portion)
    chosen = select(scores, lambdas)
    labels, ratios, selected = slow_select(rows, lambdas.tolist())
    assert chosen.labels.tolist() == labels
    assert chosen.ratios.tolist() == ratios
    assert chosen.selected.tolist() == selected
    assert chosen.scores.tolist() == [row[label] for row, label in zip(rows, labels, strict=True)]
    assert chosen.thresholds.tolist() == lambdas.tolist()
    assert chosen.count == sum(selected)
    assert chosen.indices.tolist() == [i for i, keep in enumerate(selected) if keep]
    kept = [label for label, keep in zip(labels, selected, strict=True) if keep]
    assert chosen.counts_per_class().tolist() == [kept.count(k) for k in range(scores.shape[1])]
    largest = [row.index(max(row)) for row in rows]
    assert chosen.flipped.tolist() == [label != best for label, best in zip(labels, largest, strict=True)]
    assert_own_class_like_the_reference(scores, rows, lambdas, largest)


def assert_own_class_like_the_reference(scores, rows, lambdas, largest):
    chosen = select(scores, lambdas, "own")
    assert chosen.labels.tolist() == largest
    assert chosen.scores.tolist() == [max(row) for row in rows]
    assert chosen.selected.tolist() == [max(row) >= lambdas[label] for row, label in zip(rows, largest, strict=True)]
    assert chosen.ratios.tolist() == [max(row) / lambdas[label] for row, label in zip(rows, largest, strict=True)]
    assert not chosen.flipped.any()


def softmax_scores(seed, n, k, dtype=np.float64):
    z = 2 * np.random.default_rng(seed).standard_normal((n, k))
    p = np.exp(z)
    return (p / p.sum(axis=1, keepdims=True)).astype(dtype)


portions = st.integers(0, 100).map(lambda percent: percent / 100)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 60), k=st.integers(1, 7), portion=portions, single=st.booleans())
@example(seed=0, n=1, k=3, portion=0.5, single=True)
@example(seed=0, n=1, k=3, portion=1.0, single=False)
def test_random_scores(seed, n, k, portion, single):
    assert_like_the_reference(softmax_scores(seed, n, k, np.float32 if single else np.float64), portion)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), n=st.integers(1, 30), k=st.integers(1, 4), portion=portions)
def test_tied_scores(data, n, k, portion):
    """Three values only: ties within a row, within a class, at the threshold and between ratios."""
    entries = data.draw(st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=n * k, max_size=n * k))
    assert_like_the_reference(np.array(entries).reshape(n, k), portion)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), portion=portions, empty=st.integers(0, 4))
def test_an_empty_class(seed, portion, empty):
    """A class that no image prefers has lambda = inf, and nothing may be labelled with it."""
    scores = softmax_scores(seed, 40, 5)
    scores[:, empty] = 1e-3 * scores.min()
    assert_like_the_reference(scores, portion)
    lambdas = class_balanced_thresholds(scores, portion)
    assert np.isinf(lambdas[empty])
    if np.isfinite(lambdas).any():
        assert empty not in select(scores, lambdas).labels


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), portion=portions, winner=st.integers(0, 4))
def test_all_of_one_class(seed, portion, winner):
    scores = softmax_scores(seed, 30, 5)
    scores[:, winner] += 1
    assert_like_the_reference(scores, portion)
    chosen = select(scores, class_balanced_thresholds(scores, portion))
    assert chosen.count == chosen.counts_per_class()[winner] == math.floor(Decimal(repr(portion)) * 30)


@pytest.mark.parametrize("portion", [0.0, 0.5, 1.0])
def test_one_sample(portion):
    scores = np.array([[0.1, 0.7, 0.2]])
    assert_like_the_reference(scores, portion)
    assert select(scores, class_balanced_thresholds(scores, portion)).count == int(portion)


def test_worked_by_hand():
    """Class 0 wins .9 .8 .6 .5, class 1 wins .7 .6: half of each is lambda = (.8, .7).

    Row 4 (.5, .4) has ratios .625 and .571; row 5 (.45, .6) has .5625 and .857; row 2 (.6, .59) is the telling
    one: its best score is for class 0, its best ratio for class 1 (.75 against .843).
    """
    scores = np.array([[0.9, 0.1], [0.8, 0.1], [0.6, 0.59], [0.2, 0.7], [0.5, 0.4], [0.45, 0.6]])
    lambdas = class_balanced_thresholds(scores, 0.5)
    assert lambdas.tolist() == [0.8, 0.7]
    chosen = select(scores, lambdas)
    assert chosen.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert chosen.selected.tolist() == [True, True, False, True, False, False]
    assert chosen.ratios.tolist() == pytest.approx([1.125, 1.0, 0.59 / 0.7, 1.0, 0.625, 0.6 / 0.7])
    assert chosen.scores.tolist() == [0.9, 0.8, 0.59, 0.7, 0.5, 0.6]
    assert chosen.counts_per_class().tolist() == [2, 1]
    assert chosen.indices.tolist() == [0, 1, 3]


@pytest.mark.parametrize("portion", [0.1, 0.29, 0.5, 1.0])
def test_own_class_selects_exactly_the_portion_of_each_class(portion):
    scores = softmax_scores(3, 700, 5)
    chosen = select(scores, class_balanced_thresholds(scores, portion), "own")
    counts = np.bincount(scores.argmax(1), minlength=5)
    assert chosen.counts_per_class().tolist() == [math.floor(Decimal(repr(portion)) * int(n)) for n in counts]


def test_an_image_can_be_kept_for_a_class_it_does_not_prefer():
    """(.5, .45) prefers class 0, yet lambda = (.9, .4) makes its ratios .556 and 1.125: kept as class 1."""
    chosen = select(np.array([[0.5, 0.45]]), np.array([0.9, 0.4]))
    assert (chosen.labels[0], chosen.selected[0]) == (1, True)
    assert chosen.scores[0] == 0.45


@pytest.mark.parametrize("n", [1, 2, 4])
def test_minus_zero_index_bug(n):
    """floor(.2 * n) = 0 images of class 0: sorted[-0] is the LOWEST score, which would keep every one of them."""
    scores = np.column_stack([np.linspace(0.9, 0.6, n), np.full(n, 0.05)])
    lambdas = class_balanced_thresholds(scores, 0.2)
    assert lambdas.tolist() == [math.inf, math.inf]
    assert select(scores, lambdas).count == 0


def test_portion_that_selects_nothing():
    """Labels by the largest score, ratios 0, none selected."""
    scores = softmax_scores(3, 20, 4)
    chosen = select(scores, class_balanced_thresholds(scores, 0.0))
    assert np.isinf(chosen.thresholds).all()
    assert np.array_equal(chosen.labels, scores.argmax(axis=1))
    assert not chosen.ratios.any()
    assert chosen.count == 0
    assert chosen.indices.tolist() == []
    assert chosen.counts_per_class().tolist() == [0, 0, 0, 0]


def test_a_closed_class_is_no_label_even_where_the_open_ones_score_nothing():
    chosen = select(np.array([[0.9, 0.0], [0.0, 0.5]]), np.array([np.inf, 0.5]))
    assert chosen.labels.tolist() == [1, 1]
    assert chosen.ratios.tolist() == [0.0, 1.0]
    assert chosen.selected.tolist() == [False, True]


def test_whole_portion_keeps_everything():
    scores = softmax_scores(4, 200, 4)
    assert select(scores, class_balanced_thresholds(scores, 1.0)).count == 200


@pytest.mark.parametrize(("portion", "n", "keep"), [(0.29, 100, 29), (0.57, 100, 57), (0.7, 10, 7), (0.1, 30, 3)])
@pytest.mark.parametrize("kind", [float, np.float64, np.float32])
def test_floor_is_that_of_the_decimal_number(portion, n, keep, kind):
    """0.29 * 100 is 28.999999999999996 in floating point."""
    scores = np.arange(1, n + 1, dtype=np.float64)[:, None]
    assert class_balanced_thresholds(scores, kind(portion)).tolist() == [n - keep + 1]


def test_ties_at_the_threshold_are_all_kept():
    """Half of (.9, .5, .5, .5) is two images; the second has the score .5, which two more share."""
    scores = np.array([[0.9], [0.5], [0.5], [0.5]])
    assert class_balanced_thresholds(scores, 0.5).tolist() == [0.5]
    assert select(scores, class_balanced_thresholds(scores, 0.5)).count == 4


@settings(max_examples=200, deadline=None)
@given(score=st.floats(1e-30, 1e30))
def test_ratio_reaches_one_exactly_where_the_score_reaches_lambda(score):
    scores = np.array([[np.nextafter(score, 0)], [score], [np.nextafter(score, np.inf)]])
    assert select(scores, np.array([score])).selected.tolist() == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_in_numpy_out(dtype):
    scores = torch.from_numpy(softmax_scores(5, 50, 3)).to(dtype).requires_grad_()
    plain = scores.detach().double().numpy()
    lambdas = class_balanced_thresholds(scores, 0.4)
    chosen = select(scores, torch.from_numpy(lambdas))
    expected = select(plain, class_balanced_thresholds(plain, 0.4))
    assert np.array_equal(lambdas, expected.thresholds)
    assert np.array_equal(chosen.labels, expected.labels)
    assert np.array_equal(chosen.ratios, expected.ratios)
    assert chosen.labels.dtype == np.int64
    assert chosen.scores.dtype == (np.float64 if dtype == torch.float64 else np.float32)


def test_arguments_are_left_alone_and_may_be_read_only():
    scores, lambdas = softmax_scores(6, 30, 3), np.array([0.5, np.inf, 0.4])
    kept = scores.copy(), lambdas.copy()
    scores.flags.writeable = lambdas.flags.writeable = False
    class_balanced_thresholds(scores, 0.3)
    chosen = select(scores[::-1], lambdas)
    chosen.thresholds[0] = chosen.scores[0] = 7
    assert np.array_equal(scores, kept[0])
    assert np.array_equal(lambdas, kept[1])


def test_chunks_and_many_classes(monkeypatch):
    """More classes than rows and a chunk of two rows give the reference's answer all the same."""
    monkeypatch.setattr(module, "_CHUNK_ENTRIES", 80)
    assert_like_the_reference(softmax_scores(7, 30, 40, np.float32), 0.5)
    assert_like_the_reference(softmax_scores(8, 30, 200), 0.5)


def test_more_classes_than_sixteen_bits_hold():
    scores = np.full((3, 40000), 0.1, dtype=np.float32)
    scores[0, 39999], scores[1, 39999], scores[2, 5] = 0.9, 0.8, 0.7
    lambdas = class_balanced_thresholds(scores, 1.0)
    assert lambdas[[5, 39999]].tolist() == [np.float32(0.7), np.float32(0.8)]
    assert select(scores, lambdas).labels.tolist() == [39999, 39999, 5]


def test_no_images():
    lambdas = class_balanced_thresholds(np.zeros((0, 3)), 0.5)
    assert np.isinf(lambdas).all()
    assert select(np.zeros((0, 3)), lambdas).count == 0


@pytest.mark.parametrize("row", [[0.5, np.nan], [np.nan, np.nan], [0.0, 0.0], [-1.0, -2.0], [np.inf, 0.5]], ids=str)
def test_scores_that_cannot_be_divided_by_are_refused(row):
    scores = np.array([[0.6, 0.4], row, row])
    for attempt in (lambda: class_balanced_thresholds(scores, 0.5), lambda: select(scores, np.array([0.5, 0.5]))):
        with pytest.raises(ValueError, match=r"2 of 3 rows of scores .*first is row 1"):
            attempt()


@pytest.mark.parametrize("portion", [-0.1, 1.01, math.nan, math.inf])
def test_portion_outside_of_its_range_is_refused(portion):
    with pytest.raises(ValueError, match="portion must lie in"):
        class_balanced_thresholds(np.ones((2, 2)), portion)


@pytest.mark.parametrize(
    ("scores", "lambdas", "message"),
    [
        (np.ones(3), np.ones(3), "scores must be"),
        (np.ones((3, 0)), np.ones(0), "scores must be"),
        (np.ones((3, 2)), np.ones(3), "thresholds must have shape"),
        (np.ones((3, 2)), np.ones((2, 1)), "thresholds must have shape"),
        (np.ones((3, 2)), np.array([1.0, 0.0]), "thresholds must be above 0"),
        (np.ones((3, 2)), np.array([1.0, np.nan]), "thresholds must be above 0"),
    ],
)
def test_shapes_and_thresholds_that_do_not_fit_are_refused(scores, lambdas, message):
    with pytest.raises(ValueError, match=message):
        select(scores, lambdas)


def test_portion_schedule_of_visda():
    """0.20, +0.05 a round, up to 0.50, without float drift (0.2 + 2 * 0.05 is 0.30000000000000004)."""
    expected = [0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.5, 0.5]
    assert [portion_schedule(r, 0.2, 0.05, 0.5) for r in range(9)] == expected


def test_portion_schedule_refuses_what_is_no_portion():
    with pytest.raises(ValueError, match="rounds count from 0"):
        portion_schedule(-1, 0.2, 0.05, 0.5)
    with pytest.raises(ValueError, match=r"portion of 1\.2"):
        portion_schedule(2, 0.2, 0.5, 2.0)
    with pytest.raises(ValueError, match="not in"):
        portion_schedule(9, 0.2, -0.1, 1.0)
