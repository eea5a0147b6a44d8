import math

import numpy as np
import pytest
import torch

from tests.evaluation.test_accuracy import predict
from uda.evaluation import validators
from uda.evaluation.validators import VALIDATORS


def test_entropy_validator_by_hand():
    """Mean of -H(.5, .5) = -log 2 and -H(1, 0) = 0, where logits 1000 apart stand for certainty."""
    score = VALIDATORS["entropy"](predict([[0, 0], [1000, 0]]))
    assert score == pytest.approx(-math.log(2) / 2, rel=1e-12)


def test_information_maximisation_by_hand():
    """Two sure and different predictions: H(mean) = log 2, mean H = 0. Two sure and equal ones: 0."""
    assert VALIDATORS["im"](predict([[1000, 0], [0, 1000]])) == pytest.approx(math.log(2), rel=1e-12)
    assert VALIDATORS["im"](predict([[1000, 0], [1000, 0]])) == pytest.approx(0, abs=1e-12)


def test_soft_neighbourhood_density_by_hand():
    """Three images; 0 and 1 are sure of one class, 2 of another: similarities 1 within, 0 across.

    Image 0: softmax over (1, 0) / .05 = (20, 0), an entropy of about 4.33e-8; image 1 alike; image 2 sees two equal
    neighbours: log 2.
    """
    near = 1 / (1 + math.exp(-20))
    entropy = -near * math.log(near) - (1 - near) * math.log1p(-near)
    score = VALIDATORS["snd"](predict([[1000, 0], [1000, 0], [0, 1000]]))
    assert score == pytest.approx((2 * entropy + math.log(2)) / 3, rel=1e-9)


def test_soft_neighbourhood_density_matches_plain_loops(monkeypatch):
    monkeypatch.setattr(validators, "SND_CHUNK_ENTRIES", 50)
    logits = np.random.default_rng(1).normal(size=(23, 4)) * 2
    outputs = [np.exp(row) / np.exp(row).sum() for row in logits.astype(np.float32).astype(np.float64)]
    outputs = [row / math.sqrt(sum(row**2)) for row in outputs]
    total = 0.0
    for i, one in enumerate(outputs):
        weights = [math.exp(one @ other / 0.05) for j, other in enumerate(outputs) if j != i]
        total -= sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    assert VALIDATORS["snd"](predict(logits)) == pytest.approx(total / 23, rel=1e-9)


def test_soft_neighbourhood_density_samples_the_same_rows_each_time(monkeypatch):
    monkeypatch.setattr(validators, "SND_ROWS", 20)
    logits = np.random.default_rng(2).normal(size=(200, 4))
    first = VALIDATORS["snd"](predict(logits))
    assert first == VALIDATORS["snd"](predict(logits))
    assert 0 < first <= math.log(19)


@pytest.mark.parametrize("name", sorted(VALIDATORS))
def test_every_validator_is_finite_and_ignores_a_shift_of_the_logits(name):
    """Softmax does not change when a row of logits is shifted; nor does any validator. One image will do."""
    logits = np.random.default_rng(3).normal(size=(40, 5)).round(2)
    previous = np.arange(40) % 5
    score = VALIDATORS[name](predict(logits), previous)
    assert math.isfinite(score)
    assert VALIDATORS[name](predict(logits + 8), previous) == pytest.approx(score, abs=1e-5)
    assert math.isfinite(VALIDATORS[name](predict(logits[:1]), previous[:1]))
    assert math.isfinite(VALIDATORS[name](predict(logits * 1e4), previous))


def test_nuclear_norm_by_hand():
    """Sure and even predictions of two classes: singular values sqrt(2), sqrt(2), the most; all of one class: 2, 0."""
    sure = 1000.0
    assert VALIDATORS["bnm"](predict([[sure, 0], [sure, 0], [0, sure], [0, sure]])) == pytest.approx(1)
    assert VALIDATORS["bnm"](predict([[sure, 0]] * 4)) == pytest.approx(2 / math.sqrt(8))
    logits = np.random.default_rng(1).normal(size=(30, 4))
    p = torch.from_numpy(logits.astype(np.float32)).double().softmax(1)
    expected = torch.linalg.matrix_norm(p, "nuc").item() / math.sqrt(30 * 4)
    assert VALIDATORS["bnm"](predict(logits)) == pytest.approx(expected, rel=1e-9)


def test_angular_confidence_by_hand():
    """Along one of two opposite weights: angles 0 and pi, AVC 1, times two classes; at a right angle to both: 1/2."""
    weight = [[1.0, 0.0], [-1.0, 0.0]]
    assert VALIDATORS["angle"](predict([[1, 0]], [[3.0, 0.0]], weight)) == pytest.approx(2, abs=1e-3)
    assert VALIDATORS["angle"](predict([[1, 0]], [[0.0, 5.0]], weight)) == pytest.approx(1)


def test_agreement_by_hand():
    """Now 0 0 0 1, before 0 0 1 1: class 0 keeps 2 of 3, class 1 keeps 1 of 1."""
    now = predict([[1, 0], [1, 0], [1, 0], [0, 1]])
    assert VALIDATORS["agreement"](now, np.array([0, 0, 1, 1])) == pytest.approx((2 / 3 + 1) / 2)
    assert VALIDATORS["agreement"](now, None) is None
