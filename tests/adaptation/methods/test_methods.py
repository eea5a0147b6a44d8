"""Methods against the arithmetic written out, and what all of them owe the engine."""

import dataclasses

import pytest
import torch
from torch.nn.functional import one_hot

from tests.half_precision import LARGE_STEPS, fresh_weights
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.data.batch import Batch
from uda.models.network import create_network
from uda.training.engine import Engine


def build(name="self_training", *overrides):
    needed = ["model.dropout=0.5"] if name == "adr" else []
    needed += ["adaptation.strong={jitter: 0.3}"] if ADAPTATION_METHODS[name].views > 1 else []
    config = AdaptationConfig.load("digits_avh", [f"method={name}", "model.head=16", *needed, *overrides])
    network = create_network(config.model, 4, 1)
    method = ADAPTATION_METHODS[name](network, config.method_settings())
    method.config = config  # what tests ask it for: runtime, optimisers
    return network, method


def make_batch(size=8):
    labels = one_hot(torch.arange(size) % 4, 4).float()
    is_target = torch.arange(size) >= size // 2
    view = torch.zeros(size, dtype=torch.int64)
    return Batch(torch.rand(size, 1, 28, 28), labels, is_target.long(), is_target, view)


def with_strong_views(batch):
    """The batch, and a second view of each of its target images, as the loaders give it."""
    target = ~batch.annotated
    images = batch.images[target] * 0.7
    strong = Batch(
        images, batch.labels[target], batch.domain[target], batch.is_target[target], torch.ones(len(images)).long()
    )
    return Batch(
        *(
            torch.cat([getattr(part, name) for part in (batch, strong)])
            for name in ("images", "labels", "domain", "is_target", "view", "annotated")
        )
    )


def long_hand(logits, batch, penalty, target_weight=1.0):
    """Mean over the batch of CE, plus the penalty on target samples, in plain fp64."""
    total = 0.0
    for row, label, is_target in zip(logits.detach().double(), batch.labels, batch.is_target, strict=True):
        p = row.exp() / row.exp().sum()
        loss = -float((label * p.log()).sum())
        total += target_weight * (loss + penalty(p)) if is_target else loss
    return total / len(logits)


PENALTIES = {
    "none": lambda p: 0.0,
    "mrl2": lambda p: 0.3 * float((p**2).sum()),
    "mrent": lambda p: 0.3 * float((p * p.log()).sum()),
    "mrkld": lambda p: -0.3 * float(p.log().mean()),
    "mrkld_lrent": lambda p: -0.3 * float(p.log().mean()),
}


@pytest.mark.parametrize("name", sorted(PENALTIES))
@pytest.mark.parametrize("target_weight", [1.0, 0.5])
def test_self_training_loss_long_hand_target_samples_only(name, target_weight):
    network, method = build(
        "self_training",
        f"self_training.regularizer={name}",
        "self_training.alpha=0.3",
        f"self_training.target_weight={target_weight}",
    )
    batch = make_batch()
    network.eval()
    loss, _ = method.loss(batch)
    expected = long_hand(network(batch.images).logits, batch, PENALTIES[name], target_weight)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_source_only_is_cross_entropy():
    network, method = build("source_only")
    network.eval()
    batch = make_batch()
    batch = dataclasses.replace(batch, is_target=torch.zeros(8, dtype=torch.bool), annotated=None)
    expected = long_hand(network(batch.images).logits, batch, PENALTIES["none"])
    assert method.loss(batch)[0].item() == pytest.approx(expected, rel=1e-5)


def test_separate_passes_keep_batch_norm_statistics_apart():
    network, method = build("self_training", "self_training.forward=separate")
    shared_network, shared = build("self_training")
    shared_network.load_state_dict(network.state_dict())
    batch = make_batch()
    batch = dataclasses.replace(
        batch, images=batch.images * torch.where(batch.is_target, 5.0, 1.0)[:, None, None, None]
    )
    network.train()
    logits = method.forward(batch).logits
    torch.testing.assert_close(logits[:4], network(batch.images[:4]).logits)
    torch.testing.assert_close(logits[4:], network(batch.images[4:]).logits)
    assert not torch.allclose(logits, shared.forward(batch).logits, atol=1e-3)


@pytest.mark.parametrize("name", sorted(ADAPTATION_METHODS))
class TestEveryMethod:
    """The contract."""

    def run(self, name, batches):
        torch.manual_seed(3)
        network, method = build(name)
        engine = Engine(network, method.config.runtime, log=lambda line: None)
        engine.attach(method)
        if ADAPTATION_METHODS[name].views > 1:
            batches = [with_strong_views(batch) for batch in batches]
        optimization = engine.optimization(method, method.config.self_training.optim, len(batches))
        parameters = {**dict(network.named_parameters()), **dict(method.modules.named_parameters(prefix="own"))}
        before = {key: value.clone() for key, value in parameters.items()}
        scalars = engine.fit(method, batches, optimization, label="test", steps=len(batches))
        return scalars, before, parameters

    def test_moves_every_parameter_with_a_finite_loss(self, name):
        scalars, before, after = self.run(name, [make_batch() for _ in range(2)])
        assert torch.isfinite(torch.tensor(list(scalars.values()))).all()
        stays = ["classifier.weight", "classifier.bias"] if name == "shot" else []
        assert [key for key in before if torch.equal(before[key], after[key])] == stays

    def test_two_runs_with_one_seed_are_equal(self, name):
        batches = [make_batch() for _ in range(2)]
        _, _, first = self.run(name, batches)
        _, _, second = self.run(name, batches)
        assert all(torch.equal(first[key], second[key]) for key in first)

    def test_works_at_batch_two_and_with_a_class_missing(self, name):
        """One image of either domain; then classes 2 and 3 are nowhere."""
        missing = dataclasses.replace(make_batch(4), labels=one_hot(torch.tensor([0, 1, 1, 0]), 4).float())
        scalars, _, _ = self.run(name, [make_batch(2), missing])
        assert torch.isfinite(torch.tensor(list(scalars.values()))).all()

    def test_half_precision_computes_with_the_weights_of_the_moment(self, name):
        """Updates within a step count: autocast must not keep copies of the weights from before these updates."""
        network, method = build(name, "runtime.precision=bf16", "runtime.device=cpu", *LARGE_STEPS)
        engine = Engine(network, method.config.runtime, log=None)
        engine.attach(method)
        batch = with_strong_views(make_batch()) if ADAPTATION_METHODS[name].views > 1 else make_batch()
        optimization = engine.optimization(method, method.config.adaptation.optim, 1)
        with fresh_weights(network, method.modules) as passes:
            engine.fit(method, [batch], optimization, label="test", steps=1)
        assert len(passes) > 2

    def test_docstring_for_the_list(self, name):
        assert len((ADAPTATION_METHODS[name].__doc__ or "").split("\n")[0]) > 10


@pytest.mark.parametrize("name", sorted(name for name, method in ADAPTATION_METHODS.items() if not method.adapts))
def test_works_with_one_domain_where_that_can_come(name):
    """A round in which nothing is selected; the others have both domains in every batch."""
    source = dataclasses.replace(make_batch(4), is_target=torch.zeros(4, dtype=torch.bool), annotated=None)
    assert TestEveryMethod().run(name, [source])[0]["loss"] > 0


def test_batch_has_no_place_for_a_target_label():
    fields = {field.name for field in dataclasses.fields(Batch)}
    assert fields == {"images", "labels", "domain", "is_target", "view", "annotated", "weight"}


@pytest.mark.parametrize("name", sorted(ADAPTATION_METHODS))
def test_every_method_trains_on_the_labels_of_labelled_target_images(name):
    """Another true label of one target image leads to other weights."""
    overrides = ["data.target_labelled=some.txt"]
    trained = []
    for label in (0, 1):
        torch.manual_seed(3)
        network, method = build(name, *overrides)
        engine = Engine(network, method.config.runtime, log=lambda line: None)
        engine.attach(method)
        batch = make_batch(8)
        batch.annotated[7] = True
        batch.labels[7] = one_hot(torch.tensor(label), 4).float()
        if ADAPTATION_METHODS[name].views > 1:
            batch = with_strong_views(batch)
        optimization = engine.optimization(method, method.config.self_training.optim, 1)
        engine.fit(method, [batch], optimization, label="test", steps=1)
        trained.append({key: value.clone() for key, value in network.state_dict().items()})
    assert any(not torch.equal(value, trained[1][key]) for key, value in trained[0].items())
