"""Losses on unlabelled images and between domains against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uda.adaptation.methods.adr import symmetric_kl
from uda.adaptation.methods.dann import reverse_gradient, warm_up
from uda.adaptation.methods.mcd import class_balance, discrepancy
from uda.adaptation.methods.mmd import mk_mmd
from uda.adaptation.methods.shot import centroid_labels, hypothesis
from uda.adaptation.methods.unlabelled_losses import (
    UNLABELLED_LOSSES,
    entropy,
    information_maximisation,
    minimum_class_confusion,
)
from uda.models.losses import CrossEntropy
from uda.models.network import Classifier, Prediction


def logits(*rows):
    """Logits of rows of probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


def test_entropy_of_known_predictions():
    assert entropy(logits([0.5, 0.5], [1 - 1e-12, 1e-12])).item() == pytest.approx(math.log(2) / 2, abs=1e-9)
    assert entropy(logits([0.25] * 4)).item() == pytest.approx(math.log(4))


def test_entropy_of_logits_that_overflow_is_finite():
    wide = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = entropy(wide)
    loss.backward()
    assert loss.item() == 0 and torch.isfinite(wide.grad).all()


def test_losses_of_half_precision_are_computed_in_full():
    """0.3 in bf16 is off by 1e-3 of itself: what is lost is the argument's rounding, not that of the sums."""
    low = torch.tensor([[0.3, 0.2, 0.1]]).bfloat16()
    for loss in (entropy(low), entropy(logits=low), minimum_class_confusion(logits=low, temperature=1.0)):
        assert loss.dtype == torch.float32
    assert entropy(logits=low).item() == entropy(low.float()).item()


def test_information_maximisation_is_lowest_for_sure_and_even_predictions():
    sure = 1e-9
    even = logits([1 - sure, sure], [sure, 1 - sure])
    assert information_maximisation(even).item() == pytest.approx(-math.log(2), abs=1e-6)
    assert information_maximisation(logits([0.5, 0.5])).item() == pytest.approx(0)


def test_class_confusion_by_hand():
    """Two images, T = 1; p = (0.8, 0.2) and (0.4, 0.6)."""
    p = [[0.8, 0.2], [0.4, 0.6]]
    certainty = [1 + math.exp(sum(q * math.log(q) for q in row)) for row in p]
    w = [2 * c / sum(certainty) for c in certainty]
    c = [[sum(w[i] * p[i][j] * p[i][k] for i in range(2)) for k in range(2)] for j in range(2)]
    expected = (c[0][1] / sum(c[0]) + c[1][0] / sum(c[1])) / 2
    assert minimum_class_confusion(logits(*p), temperature=1.0).item() == pytest.approx(expected)
    assert minimum_class_confusion(50 * torch.eye(3), temperature=1.0).item() == pytest.approx(0, abs=1e-6)
    assert minimum_class_confusion(torch.zeros(4, 5)).item() == pytest.approx(4 / 5)


def test_discrepancy_and_symmetric_kl_by_hand():
    first, second = logits([0.7, 0.3]), logits([0.4, 0.6])
    assert discrepancy(first, second).item() == pytest.approx(0.3)
    there = 0.7 * math.log(0.7 / 0.4) + 0.3 * math.log(0.3 / 0.6)
    back = 0.4 * math.log(0.4 / 0.7) + 0.6 * math.log(0.6 / 0.3)
    assert symmetric_kl(first, second).item() == pytest.approx((there + back) / 2)
    assert symmetric_kl(first, first).item() == 0


def test_class_balance_is_lowest_for_even_predictions():
    assert class_balance(logits([0.9, 0.1], [0.1, 0.9])).item() == pytest.approx(math.log(2), abs=1e-5)
    assert class_balance(logits([0.9, 0.1])) > class_balance(logits([0.6, 0.4]))


def test_mmd_of_known_samples():
    """Source 0 and 2, target 1 on a line: squared distances 4, 1, 1 with mean 2, one kernel of sigma^2 = 2."""
    source, target = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]])
    expected = math.exp(-4 / 4) - 2 * math.exp(-1 / 4)
    assert mk_mmd(source, target, exponents=(0,)).item() == pytest.approx(expected, rel=1e-6)
    both = sum(math.exp(-4 / (2 * 2 * 2**k)) - 2 * math.exp(-1 / (2 * 2 * 2**k)) for k in (-1, 1))
    assert mk_mmd(source, target, exponents=(-1, 1)).item() == pytest.approx(both, rel=1e-6)


def test_mmd_is_near_zero_for_one_distribution_and_grows_with_the_distance():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400, 3, generator=generator)
    near, far, further = (mk_mmd(a, b + shift).item() for shift in (0, 0.5, 2))
    assert abs(near) < 0.02 < far < further
    same = torch.ones(4, 3, requires_grad=True)
    mk_mmd(same, torch.ones(4, 3)).backward()
    assert torch.isfinite(same.grad).all(), "all features equal"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_the_same_under_autocast(dtype):
    """Of the same values, which the low precision holds exactly."""
    generator = torch.Generator().manual_seed(0)
    a, b = (4 * torch.randn(2, 32, 6, generator=generator)).to(dtype)
    confident = (60.0 * torch.eye(6))[torch.arange(32) % 5].to(dtype)
    classifier = Classifier(6, 3, True, CrossEntropy())
    losses = {
        **{name: lambda x, loss=loss: loss(x) for name, loss in UNLABELLED_LOSSES.items()},
        "mmd": lambda x: mk_mmd(x + 3, (b if x.dtype == dtype else b.float()) + 3),
        "discrepancy": lambda x: discrepancy(x, b if x.dtype == dtype else b.float()),
        "symmetric kl": lambda x: symmetric_kl(x, b if x.dtype == dtype else b.float()),
        "balance": class_balance,
        "shot": lambda x: hypothesis(x, classifier).square().mean(),
    }
    for name, loss in losses.items():
        for x in (a, confident):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low = loss(x)
            assert torch.isfinite(low), name
            if name != "mmd":  # its + 3 is rounded before the loss
                assert low.item() == pytest.approx(loss(x.float()).item(), rel=1e-6, abs=1e-7), name


def test_reversal():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = reverse_gradient(x, 0.5)
    (3 * y).sum().backward()
    assert torch.equal(y, x) and x.grad.tolist() == [-1.5, -1.5]
    assert warm_up(0) == 0 and warm_up(1) == pytest.approx(1, abs=1e-4) and 0.4 < warm_up(0.1) < 0.5


def test_centroids_by_hand():
    """Two clusters at right angles; one image is labelled wrongly by the logits and comes to its cluster."""
    features = torch.tensor([[1.0, 0.1], [2.0, 0.0], [0.0, 1.0], [0.1, 3.0], [3.0, 0.3]]).numpy()
    predicted = torch.tensor([[5.0, 0, 0], [5, 0, 0], [0, 5, 0], [0, 5, 0], [0, 1, 0]]).numpy()
    assert centroid_labels(Prediction(features, predicted, features[:3])).tolist() == [0, 0, 1, 1, 0]


def test_centroids_as_in_the_authors_code():
    """`obtain_label` of SHOT's object/image_target.py on the same numbers; it appends the constant 1 by itself.

    Class 2 is nearly the largest everywhere and the largest nowhere, so it must not be a label: with the
    centroids of all classes the first, fifth and sixth image would get it.
    """
    features = [[0.7, 1.6], [0.7, -2.6], [1.8, 0.9], [-1.1, 1.2], [0.7, 0.6], [0.1, 1.1], [-1.5, -0.3], [-1.0, 1.2]]
    logits = [
        *([0.1, -0.6, 0.0, -0.5], [0.0, -0.6, 1.9, 2.0], [-5.4, -3.8, -0.9, -0.8], [0.4, 0.4, 0.3, -2.2]),
        *([-0.8, 4.1, 4.0, 1.3], [-1.0, -3.3, 0.1, 0.2], [-2.5, -1.4, -1.5, -1.9], [-0.2, 0.2, 0.1, -1.0]),
    ]
    features = np.array([[*row, 1.0] for row in features], np.float32)
    prediction = Prediction(features, np.array(logits, np.float32), features[:4])
    assert centroid_labels(prediction).tolist() == [3, 3, 3, 0, 3, 0, 1, 0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 30), k=st.integers(2, 6))
def test_a_class_that_is_never_predicted_wins_no_label(seed, n, k):
    rng = np.random.default_rng(seed)
    features, logits = (rng.standard_normal((n, width)).astype(np.float32) for width in (4, k))
    labels = centroid_labels(Prediction(features, logits, features[:k]))
    assert set(labels) <= set(logits.argmax(1))


@pytest.mark.parametrize("name", sorted(UNLABELLED_LOSSES))
def test_every_loss_is_finite_with_gradients_for_one_image_and_for_sure_ones(name):
    collapsed = 300 * torch.eye(4)[torch.zeros(5, dtype=torch.int64)]  # every image of class 0, and very sure
    for values in (torch.randn(1, 4), 1e3 * torch.eye(4), torch.zeros(3, 4), collapsed):
        values = values.clone().requires_grad_()
        loss = UNLABELLED_LOSSES[name](values) + 0 * values.sum()
        loss.backward()
        assert loss.ndim == 0 and torch.isfinite(loss) and torch.isfinite(values.grad).all()
