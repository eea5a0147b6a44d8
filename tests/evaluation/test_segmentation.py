"""Accuracy of label maps and quality of pseudo-labels, by hand and against plain definitions."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score, precision_score, recall_score

from uda.core.errors import UserError
from uda.data.label_coding import VOID
from uda.evaluation.segmentation import (
    SYNTHIA_13,
    SYNTHIA_16,
    PixelCounts,
    label_quality,
    segmentation_accuracy,
)

ABC = ("ape", "bee", "cat")


def counted(predicted, truth, num_classes=3):
    counts = PixelCounts(num_classes)
    counts.add(np.array(predicted, np.uint8), None if truth is None else np.array(truth, np.uint8))
    return counts


def random_maps(seed, num_classes, void=0.2, unlabelled=0.0, shape=(4, 9, 11)):
    """Predictions, about half of them right, and truth."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, num_classes, shape).astype(np.uint8)
    predicted = np.where(rng.random(shape) < 0.5, truth, rng.integers(0, num_classes, shape)).astype(np.uint8)
    truth[rng.random(shape) < void] = VOID
    predicted[rng.random(shape) < unlabelled] = VOID
    return predicted, truth


def test_accuracy_worked_by_hand():
    """Of three pixels of ape two are right and one is predicted as bee; both of bee are right; one void pixel.

    Intersections 2 and 2, unions 3 and 3: IoU 2/3 each; 4 of 5 pixels.
    """
    found = segmentation_accuracy(counted([[0, 0, 1], [1, 1, 2]], [[0, 0, 0], [1, 1, VOID]]), ABC)
    assert found.confusion.tolist() == [[2, 1, 0], [0, 2, 0], [0, 0, 0]] and found.confusion.dtype == np.int64
    assert found.iou == {"ape": pytest.approx(2 / 3), "bee": pytest.approx(2 / 3), "cat": None}
    assert found.absent == ("cat",) and found.mean_iou == pytest.approx(2 / 3), "an absent class is not counted as 0"
    assert found.pixel_accuracy == 0.8


def test_predictions_of_an_absent_class_lower_that_of_the_true_class_only():
    """One of four pixels of ape is predicted as cat: ape has 3/4. Cat stays out of the mean."""
    found = segmentation_accuracy(counted([0, 0, 0, 2], [0, 0, 0, 0]), ABC)
    assert (found.mean_iou, found.iou["cat"], found.absent) == (0.75, None, ("bee", "cat"))


def test_a_class_that_is_never_predicted_counts_as_0():
    found = segmentation_accuracy(counted([0, 0], [0, 1]), ABC)
    assert found.iou == {"ape": 0.5, "bee": 0.0, "cat": None} and found.mean_iou == 0.25


def test_a_pixel_without_a_prediction_is_wrong():
    """It is in the union of its class: 1 of 2."""
    found = segmentation_accuracy(counted([0, VOID], [0, 0]), ABC)
    assert found.iou["ape"] == 0.5 and found.pixel_accuracy == 0.5


@pytest.mark.parametrize("seed", range(3))
def test_as_scikit_learn_has_it(seed):
    predicted, truth = random_maps(seed, 7)
    known = truth != VOID
    y, p = truth[known], predicted[known]
    found = segmentation_accuracy(counted(predicted, truth, 7), "abcdefg")
    assert np.array_equal(found.confusion, confusion_matrix(y, p, labels=range(7)))
    assert list(found.iou.values()) == pytest.approx(jaccard_score(y, p, average=None).tolist())
    assert found.mean_iou == pytest.approx(jaccard_score(y, p, average="macro"))
    assert found.pixel_accuracy == pytest.approx((y == p).mean())


@pytest.mark.parametrize("seed", range(3))
def test_pseudo_labels_as_scikit_learn_has_them(seed):
    """Recall counts pixels without a pseudo-label as missed, precision leaves them out."""
    pseudo, truth = random_maps(seed, 5, unlabelled=0.6)
    found = label_quality(counted(pseudo, truth, 5), "abcde")
    known, given = truth != VOID, pseudo != VOID
    each = {"labels": range(5), "average": None, "zero_division": 0}
    y, p = truth[known], np.where(given, pseudo, 5)[known]
    assert list(found.precision_per_class.values()) == pytest.approx(precision_score(y, p, **each).tolist())
    assert list(found.recall_per_class.values()) == pytest.approx(recall_score(y, p, **each).tolist())
    assert found.precision == pytest.approx((truth == pseudo)[known & given].mean())
    assert found.recall == pytest.approx((truth == pseudo)[known].mean())
    assert found.kept == pytest.approx(given.mean())
    assert list(found.kept_per_class.values()) == pytest.approx([given[truth == k].mean() for k in range(5)])
    assert list(found.pixels_per_class.values()) == [(pseudo == k).sum() for k in range(5)]


def test_pseudo_labels_worked_by_hand():
    """Truth: four of ape, one of bee, one void. Ape keeps three, one of them as bee; the void pixel's label is neither.

    Four of six pixels have a label; of the three whose truth is known two are right; two of five are found.
    """
    found = label_quality(counted([0, 0, 1, VOID, VOID, 1], [0, 0, 0, 0, 1, VOID]), ABC)
    assert (found.kept, found.precision, found.recall) == (4 / 6, 2 / 3, 2 / 5)
    assert found.pixels_per_class == {"ape": 2, "bee": 2, "cat": 0}
    assert found.precision_per_class == {"ape": 1.0, "bee": 0.0, "cat": None}
    assert found.recall_per_class == {"ape": 0.5, "bee": 0.0, "cat": None}
    assert found.kept_per_class == {"ape": 0.75, "bee": 0.0, "cat": None}


def test_without_truth_only_the_shares_kept_are_known():
    found = label_quality(counted([0, 1, VOID, VOID], None), ABC)
    assert found.kept == 0.5 and found.pixels_per_class == {"ape": 1, "bee": 1, "cat": 0}
    assert found.precision is found.recall is None
    none = dict.fromkeys(ABC)
    assert found.precision_per_class == found.recall_per_class == found.kept_per_class == none


def test_nothing_kept():
    found = label_quality(counted([VOID, VOID], [0, 1]), ABC)
    assert (found.kept, found.precision, found.recall) == (0.0, None, 0.0)


def test_counts_add_up_over_images_of_any_size_in_any_order():
    predicted, truth = random_maps(5, 6, unlabelled=0.3, shape=(600,))
    whole, parts = counted(predicted, truth, 6), PixelCounts(6)
    for rows in (slice(400, 600), slice(0, 100), slice(100, 400)):
        parts.add(torch.from_numpy(predicted[rows]).view(10, -1), torch.from_numpy(truth[rows]).view(10, -1))
    assert np.array_equal(parts.counts, whole.counts) and whole.counts.sum() == 600


def test_means_over_subsets():
    """IoU 1/2, 0 and none: over ape and cat 1/2, over cat none."""
    counts = counted([0, 0], [0, 1])
    found = segmentation_accuracy(counts, ABC, {"both": ("ape", "cat"), "last": ("cat",), "first": ("bee", "ape")})
    assert found.subsets == {"both": 0.5, "last": None, "first": 0.25}
    with pytest.raises(UserError, match="subset 'x': there is no class 'bea', did you mean 'bee'"):
        segmentation_accuracy(counts, ABC, {"x": ("bea",)})


def test_subsets_of_synthia():
    """The 16 lack terrain, truck and train of Cityscapes, the 13 also wall, fence and pole."""
    assert len(set(SYNTHIA_16)) == 16 and len(set(SYNTHIA_13)) == 13
    assert set(SYNTHIA_16) - set(SYNTHIA_13) == {"wall", "fence", "pole"}


def test_figures_are_plain_values():
    counts = counted([[0, 0, 1], [1, 1, 2]], [[0, 0, 0], [1, 1, VOID]])
    for found in (segmentation_accuracy(counts, ABC, {"one": ("ape",)}), label_quality(counts, ABC)):
        plain = found.to_dict()
        assert plain.keys() == vars(found).keys() and json.loads(json.dumps(plain, allow_nan=False)) == plain


@pytest.mark.parametrize(
    ("predicted", "truth", "message"),
    [
        (
            np.zeros((2, 3), np.uint8),
            np.zeros((3, 2), np.uint8),
            r"prediction of \(2, 3\) pixels for a truth of \(3, 2\)",
        ),
        (
            np.array([0, 3], np.uint8),
            np.array([0, 1], np.uint8),
            r"prediction has the values \[3\].*neither 0..2 nor void",
        ),
        (np.array([0, 2], np.uint8), np.array([0, 254], np.uint8), r"truth has the values \[254\]"),
        (np.array([0, 1]), np.array([0, 1], np.uint8), "prediction must be uint8, got int64"),
    ],
)
def test_maps_that_are_none_are_refused(predicted, truth, message):
    counts = PixelCounts(3)
    with pytest.raises(ValueError, match=message):
        counts.add(predicted, truth)
    assert not counts.counts.any()


def test_no_pixels_are_refused():
    with pytest.raises(ValueError, match="no pixel has a class"):
        segmentation_accuracy(counted([0], [VOID]), ABC)
    with pytest.raises(ValueError, match="there are no pixels"):
        label_quality(PixelCounts(3), ABC)


def test_255_classes():
    every = np.arange(255, dtype=np.uint8)
    counts = counted(every, every, 255)
    assert segmentation_accuracy(counts, [str(k) for k in every]).mean_iou == 1
