"""Angles, AVH and AVC against hand-worked values, a double-precision reference and the pitfalls of public code."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uda.selection import angular
from uda.selection.angular import angles, avc, avh, avh_logits, avh_loss

AT_ZERO = 1e-5  # the accuracy promised everywhere, 0 and pi included


def reference_angles(features, weight):
    """2 atan2(|u - v|, |u + v|) of the unit vectors, in double precision: exact near 0 and pi, where arccos is not."""

    def unit(vectors):
        vectors = vectors.double()
        vectors = vectors / vectors.abs().amax(dim=1, keepdim=True)
        return vectors / vectors.norm(dim=1, keepdim=True)

    u, v = unit(features)[:, None], unit(weight)[None]
    return 2 * torch.atan2((u - v).norm(dim=2), (u + v).norm(dim=2))


def random_pair(seed, n=7, k=5, d=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)


def test_angles_of_vectors_drawn_by_hand():
    """(1, 0) to (2, 0), (0, 3), (-1, 0), (1, 1): 0, 90, 180 and 45 degrees."""
    got = angles(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [1.0, 1.0]]))
    assert got.tolist()[0] == pytest.approx([0, math.pi / 2, math.pi, math.pi / 4], abs=AT_ZERO)


def test_avh_and_avc_worked_by_hand():
    """Angles 45, 45 and 135 degrees: AVH = 45/225 = .2 and 135/225 = .6; AVC = 135, 135, 45 over 315."""
    features = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 5.0], [-2.0, 0.0]])
    assert avh(features, weight, torch.tensor([1, 2])).tolist() == pytest.approx([0.2, 0.6], abs=1e-6)
    assert avc(features, weight)[0].tolist() == pytest.approx([3 / 7, 3 / 7, 1 / 7], abs=1e-6)


def test_avc_of_equal_angles_is_uniform():
    """A feature orthogonal to all three weights, and one at 54.7 degrees to each of them."""
    weight = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    features = torch.tensor([[0.0, 0, 0, 3], [1, 1, 1, 0]])
    torch.testing.assert_close(avc(features, weight), torch.full((2, 3), 1 / 3))
    torch.testing.assert_close(avh(features, weight, torch.tensor([0, 2])), torch.full((2,), 1 / 3))


def test_all_weights_opposite_or_all_parallel():
    """Every angle pi leaves AVC nothing to share out, every angle 0 does so for AVH: 1/K, never NaN."""
    for k in (1, 3):
        weight = torch.tensor([[1.0, 0.0]]).repeat(k, 1)
        torch.testing.assert_close(avc(torch.tensor([[-1.0, 0.0]]), weight), torch.full((1, k), 1 / k))
        torch.testing.assert_close(avh(torch.tensor([[2.0, 0.0]]), weight, torch.tensor([0])), torch.tensor([1 / k]))


@pytest.mark.parametrize("end", [1.0, -1.0], ids=["zero", "pi"])
@pytest.mark.parametrize("d", [2, 512])
def test_float32_agrees_with_double_near_zero_and_pi(end, d):
    """Offsets from 1 down to 1e-8 of the weight's direction, where arccos of a float32 cosine is wrong by 3e-4."""
    generator = torch.Generator().manual_seed(d)
    weight = torch.randn(3, d, generator=generator)
    offsets = torch.logspace(0, -8, 60)[:, None] * torch.randn(60, d, generator=generator)
    features = end * weight[0] + offsets
    expected = reference_angles(features, weight)
    assert (angles(features, weight).double() - expected).abs().max() < AT_ZERO
    assert (angles(features.requires_grad_(), weight).double() - expected).abs().max() < AT_ZERO


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    scales=st.lists(st.floats(1e-30, 1e30), min_size=12, max_size=12),
)
def test_scale_of_any_vector_changes_nothing(seed, scales):
    features, weight = random_pair(seed)
    scales = torch.tensor(scales)
    labels = torch.arange(7) % 5
    scaled = features * scales[:7, None], weight * scales[7:, None]
    torch.testing.assert_close(angles(*scaled), angles(features, weight), atol=1e-5, rtol=0)
    torch.testing.assert_close(avc(*scaled), avc(features, weight), atol=1e-5, rtol=0)
    torch.testing.assert_close(avh(*scaled, labels), avh(features, weight, labels), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 9))
def test_ranges_and_row_sums(seed, k):
    features, weight = random_pair(seed, k=k)
    theta, confidence = angles(features, weight), avc(features, weight)
    assert ((theta >= 0) & (theta <= math.pi)).all()
    assert (confidence > 0).all()
    torch.testing.assert_close(confidence.sum(dim=1), torch.ones(7))
    hardness = torch.stack([avh(features, weight, torch.full((7,), c)) for c in range(k)], dim=1)
    assert ((hardness >= 0) & (hardness <= 1)).all()
    torch.testing.assert_close(hardness.sum(dim=1), torch.ones(7))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 7), order=st.permutations(range(7)))
def test_a_row_does_not_depend_on_its_batch(seed, size, order):
    features, weight = random_pair(seed)
    whole = avc(features, weight)
    parts = torch.cat([avc(part, weight) for part in features.split(size)])
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(avc(features[list(order)], weight), whole[list(order)], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_chunks_change_nothing(dtype, monkeypatch):
    """Chunks of 4 rows (the last one of 2), one chunk, the whole pass with gradients and single rows agree."""
    features, weight = (tensor.to(dtype) for tensor in random_pair(0, n=50))
    labels = torch.arange(50) % 5
    whole = angles(features, weight), avc(features, weight), avh(features, weight, labels)
    with_gradient = avh(features.clone().requires_grad_(), weight, labels)
    torch.testing.assert_close(whole[2], with_gradient.detach(), atol=1e-6, rtol=0)
    monkeypatch.setattr(angular, "_CHUNK_ENTRIES", 24)
    chunked = angles(features, weight), avc(features, weight), avh(features, weight, labels)
    torch.testing.assert_close(chunked, whole, atol=1e-6, rtol=0)
    for row in (0, 4, 49):
        torch.testing.assert_close(angles(features[row : row + 1], weight)[0], whole[0][row], atol=1e-6, rtol=0)


# The pitfalls of public code, each one by its name.


def test_pitfall_frobenius_norm_of_the_batch():
    """Normalised by the norm of the whole of x or W, a score shrinks to 1/K as rows are added; ours must not move."""
    features, weight = random_pair(1)
    alone = avc(features[:1], weight)
    crowd = torch.cat([features[:1], 1e6 * torch.randn(400, 6, generator=torch.Generator().manual_seed(2))])
    torch.testing.assert_close(avc(crowd, weight)[:1], alone, atol=1e-6, rtol=0)
    louder = weight.clone()
    louder[4] *= 1e6
    torch.testing.assert_close(avc(features[:1], louder), alone, atol=1e-6, rtol=0)
    assert (alone - 1 / 5).abs().max() > 0.03


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_pitfall_squeeze_and_broadcast(n, k):
    """No B x B matrix from (B, 1) / (B,), and no lost axis for one row or one class."""
    features, weight = random_pair(3, n=n, k=k)
    labels = torch.zeros(n, dtype=torch.long)
    assert angles(features, weight).shape == (n, k)
    assert avc(features, weight).shape == (n, k)
    assert avh(features, weight, labels).shape == (n,)
    assert avh_loss(features, weight, labels, scale=5.0).shape == ()
    with pytest.raises(ValueError, match="labels must have shape"):
        avh(features, weight, labels[:, None])


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["zero", "pi"])
def test_pitfall_infinite_gradient_of_arccos_at_plus_and_minus_one(sign):
    weight = torch.tensor([[0.6, 0.8], [3.0, -1.0]], requires_grad=True)
    features = (sign * weight.detach()).repeat(3, 1).requires_grad_()
    angles(features, weight).sum().backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(weight.grad).all()
    # Here the cosine is exactly 1 or -1, not a rounding beside it.
    axis = torch.tensor([[sign, 0.0]], requires_grad=True)
    angles(axis, torch.tensor([[1.0, 0.0]])).sum().backward()
    assert axis.grad.tolist() == [[0.0, 0.0]]
    # A step away from the corner the gradient is the true one: it turns the feature with a slope of 1/|x|.
    nearby = torch.tensor([[1.0, 1e-4]], requires_grad=True)
    angles(nearby, torch.tensor([[1.0, 0.0]])).sum().backward()
    assert nearby.grad[0].tolist() == pytest.approx([-1e-4, 1.0], abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pitfall_half_precision_and_autocast(dtype):
    """Half inputs are widened, and autocast, which would run the matrix product in half, is switched off inside."""
    features, weight = random_pair(4, d=64)
    expected = reference_angles(features, weight)
    with torch.autocast("cpu", dtype=dtype):
        assert (features @ weight.T).dtype == dtype
        got = angles(features, weight)
        loss = avh_loss(features, weight, torch.zeros(7, dtype=torch.long), scale=10.0)
    assert got.dtype == loss.dtype == torch.float32
    assert (got - expected).abs().max() < AT_ZERO
    halves = features.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()
    narrow = angles(*halves)
    assert narrow.dtype == torch.float32
    assert (narrow - reference_angles(*halves)).abs().max() < AT_ZERO
    narrow.sum().backward()
    assert all(torch.isfinite(tensor.grad).all() and tensor.grad.abs().max() > 0 for tensor in halves)


def test_pitfall_half_precision_parallel_vectors():
    """In fp16 1 - 1e-7 rounds to 1, so that a clamp made there clamps nothing."""
    features = torch.tensor([[1.0, 2.0], [-1.0, -2.0]], dtype=torch.float16, requires_grad=True)
    theta = angles(features, torch.tensor([[2.0, 4.0]], dtype=torch.float16))
    assert theta[:, 0].tolist() == pytest.approx([0, math.pi], abs=AT_ZERO)
    theta.sum().backward()
    assert torch.isfinite(features.grad).all()


def test_pitfall_zero_feature_and_zero_weight():
    """pi/2 to everything, 1/K, and no NaN in the gradient."""
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    theta = angles(features, weight)
    assert theta[0].tolist() == pytest.approx([math.pi / 2] * 3)
    assert theta[1].tolist() == pytest.approx([0, math.pi / 2, math.pi], abs=AT_ZERO)
    assert avc(features, weight)[0].tolist() == pytest.approx([1 / 3] * 3)
    avh_loss(features, weight, torch.tensor([2, 1]), scale=8.0).backward()
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(weight.grad).all()
    assert features.grad[0].tolist() == [0.0, 0.0]


def test_pitfall_class_weights_get_their_gradient():
    """`weight.data` in a loss trains the features alone: both gradients are compared with finite differences."""
    features, weight = (tensor.double().requires_grad_() for tensor in random_pair(5, n=3, k=4))
    labels = torch.tensor([0, 3, 1])
    assert torch.autograd.gradcheck(lambda x, w: avh_loss(x, w, labels, 6.0), (features, weight))
    assert torch.autograd.gradcheck(avc, (features, weight))
    assert torch.autograd.gradcheck(lambda x, w: avh(x, w, labels), (features, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: avh_loss(x, w, labels, 6.0), (features, weight))
    narrow = weight.detach().float().requires_grad_()
    avh_loss(features.detach().float(), narrow, labels, 6.0).backward()
    assert (narrow.grad.abs().sum(dim=1) > 0).all()


def test_pitfall_angles_above_ninety_degrees_after_a_relu():
    """Features are non-negative, weights are signed: (1, 2) to (-1, -1) is 161.6 degrees."""
    features = torch.relu(torch.tensor([[1.0, 2.0]]))
    theta = angles(features, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert math.degrees(theta[0, 0]) == pytest.approx(161.565, abs=1e-3)
    assert avc(features, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))[0, 0] == pytest.approx(18.435 / 180, abs=1e-4)


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-25, 1e-12, 1.0, 1e18, 1e37])
def test_gradients_stay_finite_at_any_norm(size):
    features, weight = random_pair(6)
    features = (features * size).requires_grad_()
    weight = (weight / weight.norm() * size).requires_grad_()
    loss = avh_loss(features, weight, torch.arange(7) % 5, scale=30.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_double_keeps_its_precision_and_its_range(size):
    features, weight = (tensor.double() for tensor in random_pair(7))
    got = angles((features * size).requires_grad_(), weight)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.detach(), reference_angles(features, weight), atol=1e-8, rtol=0)
    torch.testing.assert_close(angles(features * size, weight), got.detach(), atol=1e-8, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    entries=st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=12, max_size=12),
    label=st.integers(0, 1),
)
def test_gradients_are_finite_everywhere(entries, label):
    features = torch.tensor(entries[:6]).view(2, 3).requires_grad_()
    weight = torch.tensor(entries[6:]).view(2, 3).requires_grad_()
    loss = avh_loss(features, weight, torch.tensor([label, 0]), scale=20.0) + avc(features, weight)[:, 0].sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()
    assert torch.isfinite(weight.grad).all()


def test_avh_loss_worked_by_hand():
    """Angles 0 and 90 degrees, scale 2: logits 0 and -pi, loss log(1 + exp(-pi)) for class 0, pi more for class 1."""
    features, weight = torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    easy = math.log(1 + math.exp(-math.pi))
    assert avh_logits(features, weight, 2.0)[0].tolist() == pytest.approx([0, -math.pi], abs=1e-5)
    assert avh_loss(features, weight, torch.tensor([0]), 2.0).item() == pytest.approx(easy, abs=1e-5)
    assert avh_loss(features, weight, torch.tensor([1]), 2.0).item() == pytest.approx(easy + math.pi, abs=1e-5)
    soft = avh_loss(features, weight, torch.tensor([[0.25, 0.75]]), 2.0).item()
    assert soft == pytest.approx(easy + 0.75 * math.pi, abs=1e-5)


def test_seven_classes_need_a_scale_of_four():
    """A feature on its weight, all others opposite (180 degrees): p = 1 / (1 + 6 exp(-scale * pi)) passes .99 by 4."""
    weight = torch.tensor([[1.0, 0.0]] + [[-1.0, 0.0]] * 6)
    p = torch.softmax(avh_logits(torch.tensor([[1.0, 0.0]]), weight, 4.0), dim=1)[0, 0]
    assert p.item() == pytest.approx(1 / (1 + 6 * math.exp(-4 * math.pi)), abs=1e-6)
    assert p > 0.99


def test_arguments_are_left_alone():
    features, weight = random_pair(8)
    kept = features.clone(), weight.clone()
    angles(features, weight)
    avc(features.double(), weight.double())
    avh_loss(features, weight, torch.zeros(7, dtype=torch.long), 5.0)
    assert torch.equal(features, kept[0])
    assert torch.equal(weight, kept[1])


def test_no_rows():
    assert avc(torch.zeros(0, 3), torch.ones(2, 3)).shape == (0, 2)
    assert avh(torch.zeros(0, 3), torch.ones(2, 3), torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.parametrize(
    ("features", "weight"), [((4, 3), (2, 5)), ((3,), (2, 3)), ((4, 3), (3,)), ((4, 3), (0, 3)), ((2, 4, 3), (2, 3))]
)
def test_shapes_that_do_not_match_are_refused(features, weight):
    with pytest.raises(ValueError, match="got features"):
        angles(torch.ones(features), torch.ones(weight))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1]), "must have shape"),
        (torch.tensor([0, 1, 5]), "must lie in 0..4"),
        (torch.tensor([0, 1, -1]), "must lie in 0..4"),
        (torch.tensor([0.0, 1.0, 2.0]), "integer"),
    ],
)
def test_labels_that_are_none_are_refused(labels, message):
    features, weight = random_pair(9, n=3)
    with pytest.raises(ValueError, match=message):
        avh(features, weight, labels)


def test_loss_refuses_labels_of_another_shape_and_no_scale():
    features, weight = random_pair(10, n=3)
    with pytest.raises(ValueError, match="must have shape"):
        avh_loss(features, weight, torch.zeros(3, 1, dtype=torch.long), 5.0)
    with pytest.raises(ValueError, match="must have shape"):
        avh_loss(features, weight, torch.ones(3, 4), 5.0)
    with pytest.raises(ValueError, match="scale must be above 0"):
        avh_loss(features, weight, torch.zeros(3, dtype=torch.long), 0.0)
