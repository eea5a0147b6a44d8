"""A round's choice: what is chosen, and the labels that it trains with."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from tests.random_prediction import random_prediction
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.pseudo_labels import label_target
from uda.core.distributed import Ranks
from uda.selection.selectors import SELECTORS


def chosen(seed, selector, *overrides):
    """A prediction of random features, and what is chosen of it."""
    prediction = random_prediction(seed)
    words = [f"self_training.selector={selector}", *overrides]
    return prediction, label_target(
        prediction, AdaptationConfig.load("digits_avh", words), 0, len(prediction.logits), Ranks()
    )


@pytest.mark.parametrize("regularizer", ["lrent", "mrkld_lrent"])
@pytest.mark.parametrize("selector", sorted(SELECTORS))
@pytest.mark.parametrize("seed", range(3))
def test_a_soft_label_is_largest_at_the_chosen_class(seed, selector, regularizer):
    """Of all images, so of the selected ones; some labels are soft."""
    _, choice = chosen(seed, selector, f"self_training.regularizer={regularizer}")
    assert choice.pseudo.count > 20
    assert np.array_equal(choice.labels.argmax(1), choice.pseudo.labels)
    assert (choice.labels[choice.pseudo.selected].max(1) < 1).any()


def test_a_soft_label_is_made_by_softmaxs_thresholds_or_hard_where_softmax_disagrees():
    prediction, choice = chosen(0, "avc", "self_training.regularizer=lrent")
    _, by_softmax = chosen(0, "softmax")
    powers = (softmax(prediction.logits.astype(np.float64), axis=1) / by_softmax.pseudo.thresholds) ** 4
    soft = powers / powers.sum(1, keepdims=True)
    disagrees = by_softmax.pseudo.labels != choice.pseudo.labels
    selected = choice.pseudo.selected
    assert (disagrees & selected).any() and (~disagrees & selected).any()
    np.testing.assert_allclose(choice.labels[~disagrees], soft[~disagrees], atol=1e-6)
    assert np.array_equal(choice.labels[disagrees], np.eye(6)[choice.pseudo.labels[disagrees]])


@pytest.mark.parametrize("seed", range(3))
def test_with_the_softmax_selector_every_label_is_lrents_own(seed):
    """Bit for bit: softmax of log(p / lambda) / alpha in double precision, as float32."""
    prediction, choice = chosen(seed, "softmax", "self_training.regularizer=lrent")
    logits = prediction.logits.astype(np.float64)
    powers = (log_softmax(logits, axis=1) - np.log(choice.pseudo.thresholds)) / 0.25
    assert np.array_equal(choice.labels, softmax(powers, axis=1).astype(np.float32))


def test_hard_labels_are_the_selectors():
    _, choice = chosen(0, "avc")
    assert np.array_equal(choice.labels, np.eye(6, dtype=np.float32)[choice.pseudo.labels])
