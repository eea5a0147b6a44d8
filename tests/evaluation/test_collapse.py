"""Collapse of the predictions, found without a target label."""

import math

import numpy as np
import pytest

from uda.evaluation.collapse import (
    MOST_NAMES,
    classes_without_labels,
    effective_classes,
    predictions,
    signs_of_collapse,
    spread,
)
from uda.models.network import Prediction

ABC = ("ape", "bee", "cat")
EVEN = np.array([10, 10, 10])


def test_effective_number_by_hand():
    """Entropies: log 4 of four alike; of 1/2, 1/4, 1/4 it is 1.5 log 2, so 2^1.5; 0 of one class."""
    assert effective_classes(np.array([7, 7, 7, 7])) == pytest.approx(4)
    assert effective_classes(np.array([2, 1, 0, 1])) == pytest.approx(2**1.5)
    assert effective_classes(np.array([0, 9])) == 1 and effective_classes(np.array([0, 0])) == 0


def test_predictions_and_their_spread():
    logits = np.array([[1.0, 2, 0], [3, 2, 0], [0, 5, 1], [0, 1, 0]], np.float32)
    counts = predictions(Prediction(logits, logits, logits))
    assert counts.tolist() == [1, 3, 0]
    told = spread(counts, ABC)
    assert told["predicted_per_class"] == {"ape": 1, "bee": 3, "cat": 0} and told["largest_share"] == 0.75
    assert told["effective_classes"] == pytest.approx(math.exp(-0.25 * math.log(0.25) - 0.75 * math.log(0.75)))


def test_an_even_spread_is_no_sign():
    assert signs_of_collapse(ABC, np.array([10, 12, 8]), EVEN) == []


def test_all_images_of_one_class():
    """The source model had 9 of ape and none of bee."""
    few, without = signs_of_collapse(ABC, np.array([0, 0, 30]), EVEN, np.array([9, 0, 21]))
    assert few == (
        "the predictions fall onto few classes: 100 % of the target images are predicted as cat (effective number of "
        "classes 1.0; the source's labels have 3.0)"
    )
    assert without == "2 of 3 classes are never predicted on the target: ape (the source model predicted 9), bee"


@pytest.mark.parametrize(("share", "found"), [(0.95, True), (0.94, False)])
def test_two_classes(share, found):
    """exp(H(0.94)) = 1.255, a bit more than a quarter of the way from one class to two; exp(H(0.95)) = 1.220."""
    counts = np.array([round(100 * share), 100 - round(100 * share)])
    assert bool(signs_of_collapse(("no", "yes"), counts, np.array([50, 50]))) == found


def test_a_source_that_is_uneven_itself_expects_no_even_target():
    """With 96 % of the source in one class, 96 % of the target in it is no sign; 99.9 % is."""
    source = np.array([960, 40])
    assert signs_of_collapse(("no", "yes"), np.array([960, 40]), source) == []
    assert "few classes" in signs_of_collapse(("no", "yes"), np.array([9990, 10]), source)[0]


def test_many_classes():
    """345 classes: 120 predicted alike are a third of the way, no few; 80 are (79 < 86). Names are cut short."""
    names, source = [f"class{k}" for k in range(345)], np.full(345, 100)
    signs = [signs_of_collapse(names, np.where(np.arange(345) < k, 300, 0), source) for k in (120, 80)]
    assert [len(found) for found in signs] == [1, 2]
    assert signs[0][0].startswith("225 of 345 classes are never predicted on the target: class120, ")
    assert signs[0][0].endswith(f" and {225 - MOST_NAMES} more")


def test_a_class_that_a_small_target_need_not_have_is_not_missed():
    """Of 12 images with the source's shares 4 would be of each class; of 15 there would be 5."""
    assert signs_of_collapse(ABC, np.array([6, 6, 0]), EVEN) == []
    assert len(signs_of_collapse(ABC, np.array([8, 7, 0]), EVEN)) == 1
    assert classes_without_labels(ABC, np.array([3, 3, 0]), EVEN, 12) == []
    assert len(classes_without_labels(ABC, np.array([3, 3, 0]), EVEN, 15)) == 1


@pytest.mark.parametrize(("counts", "found"), [([1, 1, 1], False), ([3, 0, 0], False), ([20, 1, 0], True)])
def test_a_small_target_cannot_show_many_classes(counts, found):
    """Of 50 classes 3 images show 3 at most; 21 images may show 21 / 5 = 4.2 by five each: below 1.8 they are few."""
    predicted, source = np.array(counts + [0] * 47), np.full(50, 10)
    assert bool(signs_of_collapse([str(k) for k in range(50)], predicted, source)) == found


def test_a_partial_target_is_measured_by_the_source_models_predictions():
    """Ten classes of which the target has three: what has no image is not named, a fall from three to one is."""
    names, source = [str(k) for k in range(10)], np.full(10, 100)
    begun_with = np.array([30, 30, 30] + [1] * 7)
    three, one = np.array([33, 33, 31] + [0] * 7), np.array([97] + [0] * 9)
    assert signs_of_collapse(names, three, source, begun_with, partial=True) == []
    assert len(signs_of_collapse(names, three, source, begun_with)) == 2
    (few,) = signs_of_collapse(names, one, source, begun_with, partial=True)
    assert "100 % of the target images are predicted as 0" in few and "the source model's predictions have 4.1" in few
    assert signs_of_collapse(names, one, source, None, partial=True) == [], "there is nothing to compare with"
    assert classes_without_labels(names, three // 3, source, 97, three, partial=True) == []


def test_classes_without_a_pseudo_label_are_named_with_what_was_predicted():
    (told,) = classes_without_labels(ABC, np.array([4, 0, 0]), EVEN, 30, np.array([25, 5, 0]))
    assert told == "2 of 3 classes have no pseudo-label: bee (images predicted: 5), cat"
    assert classes_without_labels(ABC, np.array([4, 1, 1]), EVEN, 30) == []
    assert classes_without_labels(ABC, np.array([0, 0, 0]), EVEN, 30) == [], "a round without any says so itself"
