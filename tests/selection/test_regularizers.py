"""CRST's regularisers against arithmetic worked out in plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uda.core.errors import UserError
from uda.selection import regularizers as module
from uda.selection.regularizers import REGULARIZERS, create_regularizer, default_weights, lrent_keeps

# softmax: (.5, .25, .25) and (.7, .2, .1)
P = [[0.5, 0.25, 0.25], [0.7, 0.2, 0.1]]
LOGITS = torch.tensor(P, dtype=torch.float64).log() + torch.tensor([[2.0], [-5.0]])
LAMBDAS = np.array([0.8, 0.5, 0.25])
HARD = np.array([2, 0])
SOFT = ["lrent", "mrkld_lrent"]


def test_the_six_kinds():
    assert sorted(REGULARIZERS) == ["lrent", "mrent", "mrkld", "mrkld_lrent", "mrl2", "none"]


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_first_line_says_what_it_is(name):
    assert 20 < len(dict(REGULARIZERS.describe())[name]) < 120


@pytest.mark.parametrize("name", ["none", "lrent"])
def test_no_penalty_by_hand(name):
    assert create_regularizer(name, alpha=0.3).penalty(LOGITS).tolist() == [0, 0]


def test_mrl2_by_hand():
    """.3 * (.25 + .0625 + .0625) = .1125 and .3 * (.49 + .04 + .01) = .162."""
    assert create_regularizer("mrl2", alpha=0.3).penalty(LOGITS).tolist() == pytest.approx([0.1125, 0.162], abs=1e-12)


def test_mrent_by_hand():
    """-.3 * (.5 log 2 + 2 * .25 log 4) = -.3 * 1.5 log 2 = -.3119, and -.3 * .8018 = -.2405."""
    second = 0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)
    expected = [-0.3 * 1.5 * math.log(2), 0.3 * second]
    assert expected == pytest.approx([-0.3119, -0.2405], abs=1e-4)
    assert create_regularizer("mrent", alpha=0.3).penalty(LOGITS).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["mrkld", "mrkld_lrent"])
def test_mrkld_by_hand(name):
    """-.3/3 * (log .5 + 2 log .25) = .1 * 5 log 2 = .3466, and -.1 * log(.7 * .2 * .1) = .4269."""
    expected = [0.5 * math.log(2), -0.1 * math.log(0.014)]
    assert expected == pytest.approx([0.3466, 0.4269], abs=1e-4)
    assert create_regularizer(name, alpha=0.3).penalty(LOGITS).tolist() == pytest.approx(expected, abs=1e-12)


def test_mrkld_is_label_smoothing_up_to_a_scale():
    """CE + penalty = (1 + alpha) * CE with uniform smoothing eps = alpha / (1 + alpha)."""
    labels = torch.tensor([1, 2])
    alpha = 0.1
    ours = torch.nn.functional.cross_entropy(LOGITS, labels, reduction="none")
    ours = ours + create_regularizer("mrkld", alpha=alpha).penalty(LOGITS)
    smoothed = torch.nn.functional.cross_entropy(LOGITS, labels, reduction="none", label_smoothing=alpha / (1 + alpha))
    torch.testing.assert_close(ours, (1 + alpha) * smoothed)


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_penalty_is_one_number_a_sample_and_its_gradient_is_finite(name):
    """Also where the softmax is exactly one-hot in float32, and in half precision."""
    logits = torch.tensor([[300.0, 0.0, -300.0], [0.0, 0.0, 0.0], [1e4, -1e4, 0.0]], requires_grad=True)
    penalty = create_regularizer(name).penalty(logits)
    assert penalty.shape == (3,)
    assert torch.isfinite(penalty).all()
    if REGULARIZERS[name].penalises:
        penalty.sum().backward()
        assert torch.isfinite(logits.grad).all()
    half = create_regularizer(name).penalty(logits.detach().bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, create_regularizer(name).penalty(logits.detach().bfloat16().float()))


@pytest.mark.parametrize("name", ["mrl2", "mrent", "mrkld"])
def test_descending_a_penalty_flattens_the_softmax(name):
    logits = torch.tensor([[1.0, 0.0, -0.5]], requires_grad=True)
    create_regularizer(name, alpha=1.0).penalty(logits).sum().backward()
    moved = torch.softmax(logits.detach() - 0.5 * logits.grad, dim=1)
    assert moved.max() < torch.softmax(logits.detach(), dim=1).max()


@pytest.mark.parametrize("name", sorted(set(REGULARIZERS) - set(SOFT)))
def test_hard_labels_are_one_hot(name):
    labels = create_regularizer(name).soft_labels(LOGITS, LAMBDAS, HARD)
    assert labels.dtype == np.float32
    assert labels.tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_lrent_by_hand(name, alpha):
    """Ratios (.625, .5, 1) and (.875, .4, .4), to the power 1/alpha, divided by their sum."""
    labels = create_regularizer(name, alpha_label=alpha).soft_labels(LOGITS, LAMBDAS, HARD)
    assert labels.dtype == np.float32
    for got, ratios in zip(labels.tolist(), [[0.625, 0.5, 1.0], [0.875, 0.4, 0.4]], strict=True):
        powers = [ratio ** (1 / alpha) for ratio in ratios]
        assert got == pytest.approx([power / sum(powers) for power in powers], abs=1e-6)


@pytest.mark.parametrize("name", SOFT)
def test_lrent_never_gives_a_closed_class_a_share(name):
    """lambda = (inf, .5, .25) leaves ratios .5 and 1 of row 0: to the fourth power 1/17 and 16/17."""
    lambdas = np.array([np.inf, 0.5, 0.25])
    labels = create_regularizer(name, alpha_label=0.25).soft_labels(LOGITS, lambdas, np.array([2, 1]))
    assert labels[0].tolist() == pytest.approx([0, 1 / 17, 16 / 17], abs=1e-6)
    assert labels[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("name", SOFT)
def test_lrent_is_one_hot_where_another_selector_chose_another_class(name):
    """The ratios .625, .5, 1 and .875, .4, .4 say 2 and 0; the second class is closed in the last line."""
    regularizer = create_regularizer(name)
    assert regularizer.soft_labels(LOGITS, LAMBDAS, np.array([1, 2])).tolist() == [[0, 1, 0], [0, 0, 1]]
    mixed = regularizer.soft_labels(LOGITS, LAMBDAS, np.array([2, 1]))
    assert 0.5 < mixed[0, 2] < 1 and mixed[1].tolist() == [0, 1, 0]
    closed = regularizer.soft_labels(LOGITS, np.array([0.8, np.inf, 0.25]), np.array([1, 1]))
    assert closed.tolist() == [[0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("name", SOFT)
def test_lrent_without_any_threshold_falls_back_to_one_hot(name):
    labels = create_regularizer(name).soft_labels(LOGITS, np.full(3, np.inf), HARD)
    assert labels.tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("name", SOFT)
def test_lrent_in_the_log_domain(name):
    """p = exp(-400) to the power 1/.01 is far below the smallest double; the row still sums to 1."""
    logits = np.array([[0.0, -400.0, -401.0], [1e5, 0.0, -1e5]], dtype=np.float32)
    lambdas, hard = np.array([np.inf, 1e-9, 1e-9]), np.array([1, 1])
    labels = create_regularizer(name, alpha_label=0.01).soft_labels(logits, lambdas, hard)
    assert labels.sum(axis=1).tolist() == pytest.approx([1, 1])
    assert labels[0].tolist() == pytest.approx([0, 1, 0], abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 9), k=st.integers(2, 6), alpha=st.floats(0.05, 2.0))
def test_lrent_rows_sum_to_one_and_a_common_factor_of_lambda_cancels(seed, n, k, alpha):
    rng = np.random.default_rng(seed)
    logits, lambdas, other = 3 * rng.standard_normal((n, k)), rng.uniform(0.1, 1, k), rng.integers(0, k, n)
    regularizer = create_regularizer("lrent", alpha_label=alpha)
    p = np.exp(logits)
    largest = (p / p.sum(axis=1, keepdims=True) / lambdas).argmax(axis=1)
    for hard in (largest, other):
        labels = regularizer.soft_labels(logits, lambdas, hard)
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(regularizer.soft_labels(logits, lambdas / 7, hard), labels, atol=1e-5)
        assert np.array_equal(labels.argmax(axis=1), hard)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(2, 6), alpha=st.floats(0.1, 2.0))
def test_lrent_keeps_is_the_literal_inequality(seed, k, alpha):
    """CE(y, p) + alpha * sum y log y < -sum y log lambda, in plain Python; rows within rounding of it are left out."""
    rng = np.random.default_rng(seed)
    logits, lambdas = 2 * rng.standard_normal((20, k)), rng.uniform(0.3, 1, k)
    keeps = lrent_keeps(logits, lambdas, alpha)
    for row, kept in zip(logits.tolist(), keeps.tolist(), strict=True):
        total = sum(math.exp(z) for z in row)
        p = [math.exp(z) / total for z in row]
        powers = [(p[j] / lambdas[j]) ** (1 / alpha) for j in range(k)]
        y = [power / sum(powers) for power in powers]
        left = sum(-y[j] * math.log(p[j]) + alpha * y[j] * math.log(y[j]) for j in range(k) if y[j] > 0)
        right = -sum(y[j] * math.log(lambdas[j]) for j in range(k))
        if abs(left - right) > 1e-9:
            assert kept == (left < right)


def test_lrent_keeps_by_hand():
    """alpha 1: .625 + .5 + 1 > 1 is kept; (.5, .25, .25) over lambda = (2, 1, 1) sums to .75 and is not."""
    assert lrent_keeps(LOGITS[:1], LAMBDAS, 1.0).tolist() == [True]
    assert lrent_keeps(LOGITS[:1], np.array([2.0, 1.0, 1.0]), 1.0).tolist() == [False]
    assert lrent_keeps(LOGITS, np.array([0.4, np.inf, np.inf]), 0.25).tolist() == [True, True]
    assert lrent_keeps(LOGITS, np.array([0.6, np.inf, np.inf]), 0.25).tolist() == [False, True]
    assert lrent_keeps(LOGITS, np.full(3, np.inf), 0.25).tolist() == [False, False]


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_torch_in_numpy_out_and_chunks_change_nothing(name, monkeypatch):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((50, 4))).float().requires_grad_()
    lambdas, hard = torch.tensor([0.5, 0.4, 0.3, 0.2]), torch.from_numpy(rng.integers(0, 4, 50))
    whole = create_regularizer(name).soft_labels(logits.detach().numpy(), lambdas.numpy(), hard.numpy())
    keeps = lrent_keeps(logits, lambdas, 0.25)
    monkeypatch.setattr(module, "_CHUNK_ENTRIES", 12)
    labels = create_regularizer(name).soft_labels(logits, lambdas, hard)
    assert isinstance(labels, np.ndarray)
    np.testing.assert_allclose(labels, whole, rtol=1e-6)
    assert np.array_equal(lrent_keeps(logits, lambdas, 0.25), keeps)


def test_default_weights():
    """MRKLD 0.1 and LRENT 0.25 are the official code's."""
    assert default_weights("none") == {"alpha": 0.0, "alpha_label": 0.0}
    assert default_weights("mrl2") == default_weights("mrent") == default_weights("mrkld")
    assert default_weights("mrkld") == {"alpha": 0.1, "alpha_label": 0.0}
    assert default_weights("lrent") == {"alpha": 0.0, "alpha_label": 0.25}
    assert default_weights("mrkld_lrent") == {"alpha": 0.1, "alpha_label": 0.25}


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_create_fills_in_what_is_none(name):
    weights = default_weights(name)
    built = create_regularizer(name, None, None)
    assert (built.alpha, built.alpha_label) == (weights["alpha"], weights["alpha_label"])
    assert isinstance(built, REGULARIZERS[name])
    given_weights = create_regularizer(name, 0.7, 0.8)
    assert (given_weights.alpha, given_weights.alpha_label) == (0.7, 0.8)
    assert REGULARIZERS[name](alpha=0.7, alpha_label=0.8) == given_weights


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_model_weight_out_of_range_is_the_users_to_mend(alpha):
    with pytest.raises(UserError, match="alpha must be a number of at least 0"):
        create_regularizer("mrkld", alpha=alpha)


@pytest.mark.parametrize("name", SOFT)
@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_label_weight_out_of_range_is_the_users_to_mend(name, alpha):
    with pytest.raises(UserError, match="alpha_label must be a number above 0"):
        create_regularizer(name, alpha_label=alpha)


def test_a_typo_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'mrkld'"):
        create_regularizer("mrkdl")


@pytest.mark.parametrize("name", sorted(REGULARIZERS))
@pytest.mark.parametrize(
    ("lambdas", "hard", "message"),
    [
        (np.ones(2), HARD, "thresholds"),
        (np.array([1.0, 0.0, 1.0]), HARD, "above 0"),
        (LAMBDAS, HARD[:, None], "hard labels must have shape"),
        (LAMBDAS, np.array([0, 3]), r"must lie in 0\.\.2"),
    ],
)
def test_shapes_and_labels_that_do_not_fit_are_refused(name, lambdas, hard, message):
    with pytest.raises(ValueError, match=message):
        create_regularizer(name).soft_labels(LOGITS, lambdas, hard)


def test_lrent_keeps_refuses_an_alpha_of_zero():
    with pytest.raises(ValueError, match="alpha must be above 0"):
        lrent_keeps(LOGITS, LAMBDAS, 0.0)
