"""Selectors: each against hand-worked numbers, all against the contract that thresholds rely on."""

import inspect
import math
import textwrap

import pytest
import torch

from uda.core.registry import UnknownNameError
from uda.selection import selectors
from uda.selection.angular import angles
from uda.selection.selectors import SELECTORS
from uda.selection.thresholds import class_balanced_thresholds, select

# Softmax of these logits is (0.5, 0.3, 0.2) in every row except for the shift.
LOGITS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()[None] + torch.tensor([[0.0], [3.0]])
FEATURES = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
WEIGHT = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]])


def random_inputs(n=40, k=6, d=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.relu(torch.randn(n, d, generator=generator))
    weight = torch.randn(k, d, generator=generator)
    return features, 3 * torch.randn(n, k, generator=generator), weight


def test_the_names_of_the_issue_are_there():
    assert {"softmax", "avc", "margin", "entropy", "energy", "cosine"} <= set(SELECTORS)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_scores_are_positive_where_it_matters_and_fit_selection(name):
    inputs = random_inputs()
    scores = SELECTORS[name](*inputs)
    assert scores.shape == (40, 6)
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    assert (scores.amax(dim=1) > 0).all()
    assert not scores.requires_grad
    chosen = select(scores, class_balanced_thresholds(scores, 0.5))
    assert 0 < chosen.count < 40


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_a_row_depends_on_itself_alone(name):
    features, logits, weight = random_inputs()
    whole = SELECTORS[name](features, logits, weight)
    rows = [SELECTORS[name](features[i : i + 1], logits[i : i + 1], weight) for i in range(40)]
    torch.testing.assert_close(torch.cat(rows), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_chunks_change_nothing(name, monkeypatch):
    inputs = random_inputs()
    whole = SELECTORS[name](*inputs)
    monkeypatch.setattr(selectors, "_CHUNK_ENTRIES", 20)
    torch.testing.assert_close(SELECTORS[name](*inputs), whole)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_arguments_are_left_alone_and_need_no_gradient(name):
    inputs = [tensor.requires_grad_() for tensor in random_inputs()]
    kept = [tensor.detach().clone() for tensor in inputs]
    assert not SELECTORS[name](*inputs).requires_grad
    assert all(torch.equal(tensor.detach(), before) for tensor, before in zip(inputs, kept, strict=True))


@pytest.mark.parametrize("name", sorted(SELECTORS))
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("k", [1, 2])
def test_few_rows_and_few_classes(name, n, k):
    features, logits, weight = random_inputs(n=n, k=k)
    scores = SELECTORS[name](features, logits, weight)
    assert scores.shape == (n, k)
    assert (scores.amax(dim=1) > 0).all()
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_no_information_at_all_still_gives_positive_scores(name):
    """Zero features and equal, hugely negative or far apart logits: finite, and above 0 in every row."""
    logits = torch.tensor([[0.0, 0, 0], [-1e30, -1e30, -1e30], [1e30, 0, -1e30]])
    scores = SELECTORS[name](torch.zeros(3, 2), logits, WEIGHT)
    assert torch.isfinite(scores).all()
    assert (scores.amax(dim=1) > 0).all()


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_bfloat16_predictions_are_taken(name):
    features, logits, weight = (tensor.bfloat16() for tensor in random_inputs())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = SELECTORS[name](features, logits, weight)
    assert scores.dtype in (torch.float32, torch.float64)
    expected = SELECTORS[name](features.float(), logits.float(), weight.float())
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_the_first_line_says_what_it_is(name):
    line = dict(SELECTORS.describe())[name]
    assert 20 < len(line) < 110


def test_softmax_by_hand():
    assert SELECTORS["softmax"](FEATURES, LOGITS, WEIGHT)[1].tolist() == pytest.approx([0.5, 0.3, 0.2], abs=1e-12)


def test_softmax_ranks_where_float32_saturates():
    """Leads of 20 and 30: in float32 both are exactly 1.0, in double the second is surer."""
    logits = torch.tensor([[20.0, 0.0], [30.0, 0.0]])
    assert torch.softmax(logits, dim=1)[:, 0].tolist() == [1.0, 1.0]
    scores = SELECTORS["softmax"](torch.ones(2, 2), logits, WEIGHT[:2])
    assert scores.dtype == torch.float64
    assert scores[0, 0] < scores[1, 0] < 1


def test_avc_by_hand():
    """Angles 45, 45 and 135 degrees: 135, 135 and 45 over 315; the logits play no part."""
    scores = SELECTORS["avc"](FEATURES, LOGITS, WEIGHT)
    assert scores[0].tolist() == pytest.approx([3 / 7, 3 / 7, 1 / 7], abs=1e-6)
    assert torch.equal(SELECTORS["avc"](FEATURES, -LOGITS, WEIGHT), scores)


def test_margin_by_hand():
    """p = .5, .3, .2: (1 + .5 - .3)/2 = .6, (1 + .3 - .5)/2 = .4, (1 + .2 - .5)/2 = .35."""
    assert SELECTORS["margin"](FEATURES, LOGITS, WEIGHT)[0].tolist() == pytest.approx([0.6, 0.4, 0.35], abs=1e-12)


def test_margin_of_two_equal_leaders_is_one_half():
    scores = SELECTORS["margin"](FEATURES[:1], torch.tensor([[1.0, 1.0, -50.0]]), WEIGHT)
    assert scores[0].tolist() == pytest.approx([0.5, 0.5, 0.25], abs=1e-12)


def test_entropy_by_hand():
    """H(.5, .3, .2) = 1.0297 nats of log 3 = 1.0986: sureness .0628, spread 1 : .6 : .4."""
    h = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    sureness = 1 - h / math.log(3)
    assert sureness == pytest.approx(0.0628, abs=1e-4)
    expected = [sureness, 0.6 * sureness, 0.4 * sureness]
    assert SELECTORS["entropy"](FEATURES, LOGITS, WEIGHT)[1].tolist() == pytest.approx(expected, abs=1e-12)


def test_energy_by_hand():
    """log-sum-exp is 0 and 3 (the shift, as p sums to 1): softplus gives log 2 and log(1 + e^3), spread 1 : .6 : .4."""
    scores = SELECTORS["energy"](FEATURES, LOGITS, WEIGHT)
    for row, sureness in zip(scores.tolist(), [math.log(2), math.log(1 + math.exp(3))], strict=True):
        assert row == pytest.approx([sureness, 0.6 * sureness, 0.4 * sureness], abs=1e-12)


def test_energy_is_monotone_past_the_switch_of_softplus():
    """torch's softplus turns linear at 20, with a step down; ranks need one rising line."""
    shifts = 20 + torch.linspace(-1e-8, 1e-8, 201, dtype=torch.float64)[:, None]
    scores = SELECTORS["energy"](torch.ones(201, 2), LOGITS[:1] + shifts, WEIGHT)
    assert (scores[:, 0].diff() > 0).all()


def test_cosine_by_hand():
    """cos of 45, 45, 135 degrees: (1 + .7071)/2 twice and (1 - .7071)/2."""
    expected = [(1 + math.sqrt(0.5)) / 2] * 2 + [(1 - math.sqrt(0.5)) / 2]
    assert SELECTORS["cosine"](FEATURES, LOGITS, WEIGHT)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["margin", "entropy", "energy"])
def test_first_class_is_that_of_the_softmax(name):
    inputs = random_inputs()
    assert torch.equal(SELECTORS[name](*inputs).argmax(dim=1), inputs[1].argmax(dim=1))


@pytest.mark.parametrize("name", ["avc", "cosine"])
def test_first_class_is_that_of_the_smallest_angle(name):
    features, logits, weight = random_inputs()
    scores = SELECTORS[name](features, logits, weight)
    assert torch.equal(scores.argmax(dim=1), angles(features, weight).argmin(dim=1))
    assert not torch.equal(scores.argmax(dim=1), logits.argmax(dim=1))


@pytest.mark.parametrize("name", ["softmax", "margin", "entropy", "energy"])
def test_logits_of_one_axis_are_refused(name):
    with pytest.raises(ValueError, match=r"logits must be \(N, K\)"):
        SELECTORS[name](torch.ones(3, 2), torch.ones(3), torch.ones(3, 2))


def test_a_typo_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'softmax'"):
        SELECTORS["sofmax"]


def test_the_example_of_the_docstring_works_as_it_stands(tmp_path):
    source = textwrap.dedent(
        inspect.getdoc(selectors).split("`selector: mine`):\n")[1].split("\n`--list selectors` prints")[0]
    )
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    path = tmp_path / "my_selectors.py"
    path.write_text(source)
    try:
        exec(compile(source, str(path), "exec"), {})  # noqa: S102
        features, logits, weight = random_inputs()
        scores = SELECTORS["mine"](features, logits, weight)
        torch.testing.assert_close(scores.sum(dim=1), torch.ones(40, dtype=torch.float64))
        torch.testing.assert_close(SELECTORS["mine"](features[:1], logits[:1], weight), scores[:1])
        assert dict(SELECTORS.describe())["mine"] == "Softmax that is sharper for features with a large norm."
    finally:
        SELECTORS._entries.pop("mine", None)
