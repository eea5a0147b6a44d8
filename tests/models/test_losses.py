"""Classification losses: each against its formula written out, and every method with another loss than the default."""

import math

import pytest
import torch
from torch.nn import functional as F

from uda.adaptation.config import AdaptationConfig
from uda.core.errors import UserError
from uda.models.losses import LOSSES, ArcFace, Cosine, CrossEntropy
from uda.models.network import create_network
from uda.models.settings import ModelSettings
from uda.selection.angular import avh_loss

K, D = 4, 6


@pytest.fixture
def drawn():
    """Features, weight, bias, class numbers."""
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(8, D, generator=generator),
        torch.randn(K, D, generator=generator),
        torch.randn(K, generator=generator),
        torch.arange(8) % K,
    )


def loss_of(loss, drawn):
    features, weight, bias, labels = drawn
    return loss(loss.logits(features, weight, bias), F.one_hot(labels, K).float())


def test_cross_entropy_is_that_of_the_linear_layer(drawn):
    features, weight, bias, labels = drawn
    assert loss_of(CrossEntropy(), drawn) == pytest.approx(F.cross_entropy(features @ weight.T + bias, labels).item())


@pytest.mark.parametrize("scale", [4.0, 20.0])
def test_avh_is_the_papers_loss_and_knows_neither_norms_nor_biases(drawn, scale):
    """-log of exp(s (pi - A_y)) / sum_k exp(s (pi - A_k)), the angles by arccos."""
    features, weight, _bias, labels = drawn
    loss = LOSSES["avh"](scale=scale)
    cosines = F.normalize(features.double(), dim=1) @ F.normalize(weight.double(), dim=1).T
    terms = torch.exp(scale * (math.pi - cosines.arccos()))
    by_hand = -torch.log(terms.gather(1, labels[:, None])[:, 0] / terms.sum(1)).mean()
    found = loss_of(loss, drawn)
    assert found == pytest.approx(by_hand.item(), rel=1e-5)
    assert found == pytest.approx(avh_loss(features, weight, labels, scale).item(), rel=1e-6)
    assert loss_of(loss, (3 * features, weight * torch.arange(1, K + 1)[:, None], None, labels)) == pytest.approx(
        found.item(), rel=1e-5
    )


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"cross_entropy"}))
def test_gradients_are_finite_at_angles_0_and_pi_and_reach_features_and_weights(name):
    weight = torch.eye(K, D).requires_grad_()
    features = torch.cat([torch.eye(K, D), -torch.eye(K, D), torch.zeros(1, D), torch.ones(1, D)]).requires_grad_()
    loss = LOSSES[name]()
    labels = F.one_hot(torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1]), K).float()
    loss(loss.logits(features, weight, None), labels).backward()
    for gradient in (features.grad, weight.grad):
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0


def test_cosface_takes_the_margin_from_the_true_class_alone(drawn):
    features, weight, bias, labels = drawn
    cosines = F.cosine_similarity(features[:, None], weight[None], dim=2)
    by_hand = 8 * (cosines - 0.25 * F.one_hot(labels, K))
    assert loss_of(Cosine(scale=8, margin=0.25), drawn) == pytest.approx(F.cross_entropy(by_hand, labels).item())
    assert torch.allclose(Cosine(scale=8, margin=0.25).logits(features, weight, bias), 8 * cosines, atol=1e-5)


def test_arcface_widens_the_angle_of_the_true_class_alone(drawn):
    features, weight, _, labels = drawn
    theta = F.cosine_similarity(features[:, None], weight[None], dim=2).arccos()
    assert (theta.gather(1, labels[:, None]) < math.pi - 0.4).all(), "none beyond pi"
    by_hand = 8 * torch.cos(theta + 0.4 * F.one_hot(labels, K))
    found = loss_of(ArcFace(scale=8, margin=0.4), drawn)
    assert found == pytest.approx(F.cross_entropy(by_hand, labels).item(), rel=1e-4)


def test_arcface_keeps_falling_beyond_pi():
    """The true class's logit falls with its angle all the way, where cos(angle + margin) would rise again."""
    theta = torch.linspace(0.01, math.pi - 0.01, 200)
    loss = ArcFace(scale=1, margin=0.5)
    moved = loss.with_margin(theta.cos()[:, None], torch.ones(200, 1))[:, 0]
    assert (moved.diff() < 0).all()


def test_half_of_a_label_gets_half_of_the_margin():
    logits = torch.zeros(1, 2)
    moved = Cosine(scale=10, margin=0.2).with_margin(logits, torch.tensor([[0.5, 0.5]]))
    assert torch.allclose(moved, torch.tensor([[-1.0, -1.0]]))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_network_predicts_by_the_logits_of_its_loss(name):
    network = create_network(ModelSettings(backbone="digits_cnn", weights="none", head=D, loss=name), K, 1).eval()
    output = network(torch.rand(3, 1, 28, 28))
    expected = LOSSES[name]().logits(output.features, network.weight, network.classifier.bias)
    assert torch.equal(output.logits, expected) and output.logits.dtype == torch.float32


@pytest.mark.parametrize("method", ["self_training", "mcd", "fixmatch", "shot", "cdan"])
def test_methods_run_with_the_avh_loss(tiny, tmp_path, method):
    """The network's own loss is what the source is trained by, and what a second head makes logits by."""
    from uda.adaptation.run import AdaptationRun

    words = [f"output={tmp_path / 'run'}", f"method={method}", "model.loss=avh", "model.loss_options.scale=6"]
    if method != "self_training":
        source = 0 if method == "shot" else 4
        words.append(f"adaptation={{steps: 2, evaluate_every: 2, batch: {{source: {source}, target: 4}}}}")
        words += ["adaptation.strong={jitter: 0.3}"] * (method == "fixmatch")
    results = AdaptationRun(AdaptationConfig.load(tiny, words)).execute()
    assert results["final"]["class_mean"] is not None


def test_a_second_head_of_mcd_has_the_loss_too(tiny):
    from uda.adaptation.methods import ADAPTATION_METHODS

    config = AdaptationConfig.load(tiny, ["method=mcd", "model.loss=avh"])
    network = create_network(config.model, K, 1)
    second = ADAPTATION_METHODS["mcd"](network, config.method_settings()).modules["second"]
    logits = second(torch.rand(2, second[0][0].in_features))
    assert (logits <= 0).all() and (logits >= -10 * math.pi).all(), "logits are -scale * angle"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.loss=avhh"], r"model\.loss: unknown loss 'avhh', did you mean 'avh'"),
        (["model.loss=avh", "model.loss_options={scale: -1}"], r"model\.loss_options\.scale: .*greater than 0"),
        (["model.loss=avh", "model.loss_options={skale: 1}"], r"model\.loss_options\.skale: unknown key"),
        (
            ["model.loss_options={scale: 5}"],
            r"model\.loss_options: this model\.loss has no options, but scale is given; remove",
        ),
    ],
)
def test_a_wrong_loss_or_option_is_named(tiny, words, message):
    with pytest.raises(UserError, match=message):
        AdaptationConfig.load(tiny, words)
