"""The loop: schedules, groups, precision, predict passes, and what stops it."""

import math
import random

import numpy as np
import pytest
import torch
from torch import nn

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.data.batch import Batch
from uda.models.backbones import batch_norms, synchronise_batch_norms
from uda.models.network import Network, create_network
from uda.models.settings import ModelSettings
from uda.training import engine as engine_module
from uda.training.device import has_compiler
from uda.training.engine import Engine, EpochState, TrainingDivergedError
from uda.training.method import Method
from uda.training.optimization import Optimization
from uda.training.settings import OptimSettings, RuntimeSettings


def quiet(line):
    pass


def tiny_network():
    backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Network(backbone, 4, 3, head=6)


def batches(count, size=6, fill=None):
    made = []
    for _ in range(count):
        images = torch.rand(size, 1, 8, 8) if fill is None else torch.full((size, 1, 8, 8), fill)
        labels = torch.eye(3)[torch.arange(size) % 3]
        made.append(Batch(images, labels, torch.zeros(size).long(), torch.zeros(size).bool(), torch.zeros(size).long()))
    return made


def source_method(network):
    return ADAPTATION_METHODS["source_only"](network, AdaptationConfig.load("digits_source").method_settings())


def test_sgd_step_long_hand():
    weight = nn.Parameter(torch.tensor([2.0]))
    settings = OptimSettings(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.5)
    optimization = Optimization({"new": [weight]}, settings, 2)
    buffer, expected = 0.0, 2.0
    for _ in range(2):
        optimization.begin_step()
        optimization.descend((3 * weight).sum())
        gradient = 3 + 0.5 * expected
        buffer = gradient if buffer == 0 else 0.9 * buffer + gradient
        expected -= 0.1 * (gradient + 0.9 * buffer)
        assert weight.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", {0: 1, 50: 1, 99: 1}),
        ("cosine", {0: 1, 50: 0.5, 100: 0}),
        ("one_cycle", {0: 0.04, 15: 0.52, 30: 1, 65: 0.5, 100: 0}),
    ],
)
def test_schedules(schedule, values):
    optimization = Optimization({"new": [nn.Parameter(torch.ones(1))]}, OptimSettings(schedule=schedule), 100)
    for step, value in values.items():
        assert optimization.schedule(step) == pytest.approx(value, abs=1e-9)


def test_the_inverse_schedule_is_that_of_the_projects_it_is_taken_from():
    """DANN's paper and SHOT: (1 + 10 p)^-0.75; tllib by step: (1 + 0.001 step)^-0.75, over 30,000 steps gamma 30."""
    parameters = {"new": [nn.Parameter(torch.ones(1))]}
    paper = Optimization(parameters, OptimSettings(schedule="inverse"), 1000)
    assert paper.schedule(0) == 1 and paper.schedule(1000) == pytest.approx(0.16556, abs=1e-5)
    by_step = Optimization(parameters, OptimSettings(schedule="inverse", gamma=30), 30000)
    for step in (0, 1, 1000, 29999):
        assert by_step.schedule(step) == pytest.approx((1 + 0.001 * step) ** -0.75, rel=1e-12)
    assert by_step.schedule(1000) == pytest.approx(2**-0.75)
    steeper = Optimization(parameters, OptimSettings(schedule="inverse", gamma=3, power=1), 10)
    assert steeper.schedule(10) == pytest.approx(0.25)


def test_backbone_learns_at_its_own_rate_and_zero_freezes_it():
    network = tiny_network()
    groups = network.parameter_groups()
    rates = {
        group["role"]: group["base_lr"]
        for group in Optimization(groups, OptimSettings(lr=0.1, backbone_lr_scale=0.2), 1).optimizer.param_groups
    }
    assert rates == {"backbone": pytest.approx(0.02), "new": 0.1}
    frozen = Optimization(groups, OptimSettings(lr=0.1, backbone_lr_scale=0), 1)
    before = {name: value.clone() for name, value in network.named_parameters()}
    frozen.begin_step()
    frozen.descend(network(torch.rand(4, 1, 8, 8)).logits.square().sum())
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved and not any(name.startswith("backbone.") for name in moved)


def test_the_backbone_may_have_a_momentum_of_its_own():
    """Three steps down a slope of 1: without momentum 3 lr; with 0.5 the steps are 1, 1.5 and 1.75 times lr."""
    moved = {}
    for own in (None, 0.0):
        weights = {role: [nn.Parameter(torch.zeros(1))] for role in ("backbone", "new")}
        settings = OptimSettings(lr=0.1, momentum=0.5, backbone_momentum=own, nesterov=False, weight_decay=0)
        optimization = Optimization(weights, settings, 3)
        for _ in range(3):
            optimization.begin_step()
            optimization.descend(sum(parameter.sum() for (parameter,) in weights.values()))
        moved[own] = {role: -parameter.item() for role, (parameter,) in weights.items()}
    assert moved[None] == pytest.approx({"backbone": 0.425, "new": 0.425})
    assert moved[0.0] == pytest.approx({"backbone": 0.3, "new": 0.425})
    adam = Optimization(weights, OptimSettings(name="adamw", momentum=0.8, backbone_momentum=0.1), 3).optimizer
    assert [group["betas"][0] for group in adam.param_groups] == [0.1, 0.8]


def test_descend_only_moves_the_named_group():
    network = tiny_network()
    optimization = Optimization(network.parameter_groups(), OptimSettings(lr=0.1), 1)
    before = {name: value.clone() for name, value in network.named_parameters()}
    optimization.begin_step()
    optimization.descend(network(torch.rand(4, 1, 8, 8)).logits.square().sum(), only="backbone")
    moved = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith("backbone.") for name in moved)
    with pytest.raises(KeyError, match="no parameter group 'heads'"):
        optimization.descend(network(torch.rand(4, 1, 8, 8)).logits.sum(), only="heads")


def test_gradient_clipping_bounds_the_step():
    weight = nn.Parameter(torch.zeros(4))
    settings = OptimSettings(lr=1.0, momentum=0, weight_decay=0, clip_grad=0.5)
    optimization = Optimization({"new": [weight]}, settings, 1)
    optimization.begin_step()
    optimization.descend((100 * weight).sum())
    assert weight.norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fit_learns_in_every_precision_and_memory_format(precision, channels_last):
    network = tiny_network()
    engine = Engine(network, RuntimeSettings(device="cpu", precision=precision, channels_last=channels_last), quiet)
    method = source_method(network)
    images = batches(1, 12)
    optimization = engine.optimization(method, OptimSettings(lr=0.1), 60)
    first = engine.fit(method, images, optimization, label="a", steps=1)["loss"]
    last = engine.fit(method, images * 59, optimization, label="b", steps=59)["loss"]
    assert last < 0.9 * first
    assert all(value.dtype == torch.float32 for value in network.state_dict().values() if value.is_floating_point())


class MovesWeightsItself(Method):
    """Looks without a gradient, moves every weight by hand, and descends from there."""

    def step(self, batch, optimizer, progress):
        with torch.no_grad():
            before = self.network(batch.images).features
            for parameter in self.network.parameters():
                parameter.mul_(3)
        output = self.network(batch.images)
        optimizer.descend(output.logits.square().mean())
        return {"loss": (output.features - before).norm().detach() / before.norm()}


def test_a_method_that_moves_weights_by_itself_sees_them_in_half_precision_too():
    """Features change as in fp32, and the descent from there goes the same way."""
    losses, moves = [], []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        network = tiny_network()
        engine = Engine(network, RuntimeSettings(device="cpu", precision=precision), quiet)
        optimization = engine.optimization(source_method(network), OptimSettings(lr=0.1), 1)
        before = 3 * network.backbone[0].weight.detach()
        method = MovesWeightsItself(network)
        losses.append(engine.fit(method, batches(1), optimization, label="x", steps=1)["loss"])
        moves.append(network.backbone[0].weight.detach() - before)
    assert losses[0] > 1 and losses[1] == pytest.approx(losses[0], rel=0.05)
    assert moves[0].norm() > 0 and (moves[1] - moves[0]).norm() < 0.2 * moves[0].norm()


def test_progress_reaches_the_method():
    network = tiny_network()
    engine = Engine(network, RuntimeSettings(device="cpu"), quiet)
    method = source_method(network)
    seen = []
    step = method.step
    method.step = lambda batch, optimizer, progress: (seen.append(progress), step(batch, optimizer, progress))[1]
    optimization = engine.optimization(method, OptimSettings(), 4)
    engine.fit(method, batches(4), optimization, label="x", steps=4, progress=lambda done: 0.5 + done / 2)
    assert seen == [0.625, 0.75, 0.875, 1.0]


def test_frozen_batch_norm_keeps_its_statistics():
    network = tiny_network()
    engine = Engine(network, RuntimeSettings(device="cpu"), quiet)
    method = source_method(network)
    optimization = engine.optimization(method, OptimSettings(lr=0.1), 2)
    (layer,) = batch_norms(network)
    mean, weight = layer.running_mean.clone(), layer.weight.clone()
    engine.fit(method, batches(2), optimization, label="x", steps=2, freeze_batch_norm=True)
    assert torch.equal(layer.running_mean, mean) and not torch.equal(layer.weight, weight)
    engine.fit(method, batches(2), optimization, label="x", steps=2)
    assert not torch.equal(layer.running_mean, mean)


def test_nan_loss_stops_and_names_step():
    network = tiny_network()
    engine = Engine(network, RuntimeSettings(device="cpu"), quiet)
    method = source_method(network)
    data = [*batches(2), *batches(1, fill=math.nan), *batches(1)]
    optimization = engine.optimization(method, OptimSettings(), 4)
    with pytest.raises(
        TrainingDivergedError, match=r"round 3: the loss is nan at step 3 of 4.*last good checkpoint is kept"
    ):
        engine.fit(method, data, optimization, label="round 3", steps=4)


class Told(Method):
    """A method that tells numbers known beforehand, one of them only in odd steps."""

    told = 0

    def step(self, batch, optimizer, progress):
        self.told += 1
        optimizer.descend(self.network(batch.images).logits.sum() * 0)
        extra = {"loss/odd": torch.tensor(self.told / 10)} if self.told % 2 else {}
        return {"loss": torch.tensor(float(self.told)), **extra}


def points_of(monkeypatch, steps, total=None, **options):
    """The points of a stage of so many steps, as `fit` gives them: step and figures."""
    monkeypatch.setattr(engine_module, "CHECK_EVERY", 3)
    engine = Engine(tiny_network(), RuntimeSettings(device="cpu"), quiet)
    method = Told(engine.network)
    optimization = engine.optimization(method, OptimSettings(lr=0.1, schedule="inverse"), total or steps)
    points = []
    given = {"label": "x", "steps": steps, "curves": lambda step, values: points.append((step, values)), **options}
    engine.fit(method, batches(steps), optimization, **given)
    return points


def test_curves_by_hand(monkeypatch):
    """Points after 3, 6 and 7 steps: means of 1 2 3, of 4 5 6 and of 7; of .1 .3, of .5 and of .7."""
    points = points_of(monkeypatch, 7)
    assert [step for step, _ in points] == [3, 6, 7]
    assert [figures["training/loss"] for _, figures in points] == [2, 5, 7]
    assert [figures["training/loss/odd"] for _, figures in points] == pytest.approx([0.2, 0.5, 0.7])
    expected = [0.1 * (1 + 10 * done / 7) ** -0.75 for done in (2, 5, 6)]
    assert [figures["learning_rate/backbone"] for _, figures in points] == pytest.approx(expected)
    assert all(figures["time/seconds_per_step"] > 0 for _, figures in points)


def test_the_points_of_a_long_stage_are_bounded(monkeypatch):
    """30 steps, two points at most: every 15 steps, a multiple of the three between two looks at the losses."""
    monkeypatch.setattr(engine_module, "MOST_POINTS", 2)
    assert [step for step, _ in points_of(monkeypatch, 30)] == [15, 30]


def test_a_window_goes_on_after_a_pause(monkeypatch):
    """Paused after five of seven steps, between two points: what the rest then tells is as without a pause."""

    class At5:
        states = ()

        def due(self, step):
            return step == 5

        def save(self, state):
            self.states = (*self.states, state)

    pauses = At5()
    whole = points_of(monkeypatch, 7, pauses=pauses)
    (state,) = pauses.states
    assert state.window["loss"] == (9.0, 2)
    engine = Engine(tiny_network(), RuntimeSettings(device="cpu"), quiet)
    method = Told(engine.network)
    method.told = 5
    optimization = engine.optimization(method, OptimSettings(lr=0.1, schedule="inverse"), 7)
    optimization.steps_done = 5
    rest = []
    engine.fit(
        method,
        batches(2),
        optimization,
        label="x",
        steps=7,
        begin=EpochState(5, {}, state.window),
        curves=lambda step, values: rest.append((step, values)),
    )
    for points in (whole, rest):
        for _, figures in points:
            del figures["time/seconds_per_step"]
    assert rest == whole[1:]


def test_predict_is_eval_mode_every_image_once_whatever_the_batch():
    network = tiny_network()
    network.dropout.p = 0.5
    engine = Engine(network, RuntimeSettings(device="cpu", predict_batch_size=4), quiet)
    images = torch.rand(10, 1, 8, 8)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    prediction = engine.predict(images.split(4), 10)
    one_by_one = engine.predict(images.split(1), 10)
    np.testing.assert_allclose(prediction.logits, one_by_one.logits, atol=1e-6)
    assert (prediction.features.shape, prediction.logits.shape, prediction.weight.shape) == ((10, 6), (10, 3), (3, 6))
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items()), (
        "predicting changes nothing"
    )
    with pytest.raises(RuntimeError, match="the loader gave 8 images, not 10"):
        engine.predict(images[:8].split(4), 10)


def test_adapted_batch_norm_has_the_targets_statistics():
    """A network that is compiled is not called as such: it would be compiled once more for every batch's momentum."""
    network = tiny_network()
    engine = Engine(network, RuntimeSettings(device="cpu"), quiet)
    network._compiled_call_impl = lambda *images: pytest.fail("compiled")
    images = 3 + 2 * torch.rand(64, 1, 8, 8)
    engine.adapt_batch_norm(images.split(16))
    (layer,) = batch_norms(network)
    activations = network.backbone[0](images)
    torch.testing.assert_close(layer.running_mean, activations.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.running_var, activations.var(dim=(0, 2, 3)), atol=2e-3, rtol=2e-2)
    assert layer.momentum == 0.1


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("clip_grad", [None, 0.01])
def test_a_fused_update_is_the_plain_one_also_with_a_scaler_and_clipping(name, clip_grad):
    """The scaler hands its scale to a fused optimiser, unless clipping has taken it out of the gradients before."""
    settings = OptimSettings(name=name, lr=0.1, weight_decay=0.01, clip_grad=clip_grad)
    inputs = torch.randn(8, 5)
    ends = []
    for fused, scaled in ((False, False), (True, False), (True, True)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        optimization = Optimization({"new": list(network.parameters())}, settings, 3, scaler, fused)
        for _ in range(3):
            optimization.begin_step()
            optimization.descend(network(inputs).exp().sum())
        assert all(bool(group["fused"]) is fused for group in optimization.optimizer.param_groups)
        ends.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ends[2], ends[0], atol=1e-5, rtol=1e-4)


def two_weights(fused, device="cpu", **settings):
    """An optimiser over two weights of which the second gets no gradient at first."""
    weights = [nn.Parameter(torch.ones(4, device=device)) for _ in range(2)]
    return weights, Optimization({"new": weights}, OptimSettings(lr=0.1, **settings), 9, None, fused)


def give_gradients(weights, optimization, steps):
    for step in steps:
        weights[0].grad, weights[1].grad = torch.full((4,), 1.0 + step), torch.full((4,), 2.0) if step > 1 else None
        optimization.update()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("ways", [(True, True), (False, True), (True, False)], ids=str)
def test_a_gradient_that_comes_late_and_a_machine_with_another_way_of_updating(name, ways):
    """`ways`: whether the update is fused before the stop and after it. The second weight's gradient comes after."""
    ends = []
    for before, after in ((False, False), ways):
        weights, optimization = two_weights(before, name=name)
        give_gradients(weights, optimization, range(2))
        state = optimization.state_dict()
        weights, optimization = two_weights(after, name=name)
        optimization.load_state_dict(state)
        give_gradients(weights, optimization, range(2, 5))
        ends.append(torch.stack(weights).detach())
    torch.testing.assert_close(ends[1], ends[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("saved_by", "fused", "place"), [(False, True, "meta"), (True, False, "cpu")])
def test_the_step_count_of_adamw_is_where_the_update_wants_it(saved_by, fused, place):
    """torch's fused kernel reads it on the weights' device, the plain update on the CPU; a checkpoint is on the CPU."""
    weights, optimization = two_weights(saved_by, name="adamw")
    give_gradients(weights, optimization, range(2))
    weights, resumed = two_weights(fused, "meta", name="adamw")
    resumed.load_state_dict(optimization.state_dict())
    state = resumed.optimizer.state[weights[0]]
    assert (state["step"].device.type, state["exp_avg"].device.type) == (place, "meta")
    assert all(bool(group["fused"]) is fused for group in resumed.optimizer.param_groups)


def test_a_first_step_that_the_scaler_leaves_out_leaves_no_trace_in_fused_momentum(monkeypatch):
    """fp16 begins with a large scale, so the first steps overflow. torch's kernel would keep unwritten memory."""
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **options: empty_like(tensor, **options).fill_(777))
    weight = nn.Parameter(torch.ones(4))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimization = Optimization({"new": [weight]}, OptimSettings(lr=0.1, weight_decay=0), 9, scaler, fused=True)
    optimization.descend((math.inf * weight).sum())
    assert torch.equal(weight, torch.ones(4)) and scaler.get_scale() == 512
    optimization.descend(weight.sum())  # Nesterov's first step: 0.1 * (1 + 0.9) down
    torch.testing.assert_close(weight.detach(), torch.full((4,), 0.81))


def test_the_engine_decides_what_its_settings_leave_open_and_keeps_what_they_say():
    engine = Engine(tiny_network(), RuntimeSettings(device="cpu"), quiet)
    assert engine.settings.precision == "fp32" and engine.settings.channels_last is True
    assert engine.network.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
    plain = Engine(tiny_network(), RuntimeSettings(device="cpu", channels_last=False, fused=True), quiet)
    assert plain.memory_format is torch.contiguous_format
    method = source_method(plain.network)
    (group, *_) = plain.optimization(method, OptimSettings(), 1).optimizer.param_groups
    assert group["fused"] is True


@pytest.mark.slow
@pytest.mark.skipif(not has_compiler("cpu"), reason="needs a C++ compiler")
def test_a_compiled_network_trains_and_predicts_like_the_plain_one_under_the_same_names():
    """Train, predict with a smaller last batch, adapt BatchNorm, train again: every mode that a run goes through."""
    ends = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = tiny_network()
        names = list(network.state_dict())
        engine = Engine(network, RuntimeSettings(device="cpu", compile=compiled, predict_batch_size=4), quiet)
        method = source_method(network)
        optimization = engine.optimization(method, OptimSettings(lr=0.1), 4)
        images = torch.rand(10, 1, 8, 8)
        for _ in range(2):
            engine.fit(method, batches(2), optimization, label="x", steps=2)
            engine.adapt_batch_norm(images.split(5))
            prediction = engine.predict(images.split(4), 10)
        assert list(network.state_dict()) == names
        assert (network._compiled_call_impl is not None) is compiled
        ends.append(prediction)
    np.testing.assert_allclose(ends[1].logits, ends[0].logits, atol=1e-4)


@pytest.mark.cuda
def test_fp16_on_cuda_scales_its_loss():
    network = tiny_network()
    engine = Engine(network, RuntimeSettings(device="cuda", precision="fp16"), quiet)
    method = source_method(network)
    optimization = engine.optimization(method, OptimSettings(lr=0.1), 2)
    assert engine.fit(method, batches(2), optimization, label="x", steps=2)["loss"] > 0
    assert optimization.state_dict()["scaler"]["scale"] > 1


@pytest.mark.parametrize("backbone", ["resnet18", "tf_efficientnet_lite0"])
def test_synchronised_batch_norm_replaces_every_layer_and_no_name(backbone):
    network = create_network(ModelSettings(backbone=backbone, weights="none", head=8), 3, 3)
    before, layers = list(network.state_dict()), len(list(batch_norms(network)))
    synchronise_batch_norms(network)
    assert list(network.state_dict()) == before
    synchronised = [layer for layer in network.modules() if isinstance(layer, nn.SyncBatchNorm)]
    assert len(synchronised) == layers == len(list(batch_norms(network))) > 0


def test_synchronised_batch_norm_without_a_gpu_is_named():
    settings = RuntimeSettings(device="cpu", sync_batch_norm=True)
    with pytest.raises(UserError, match=r"runtime\.sync_batch_norm"):
        Engine(tiny_network(), settings, quiet, Ranks(0, 2))
    Engine(tiny_network(), settings, quiet)  # one process needs none


def test_accumulated_parts_are_the_batch_without_batch_norm():
    """Without BatchNorm the sum over the parts of a batch is the batch: 7 images in parts of 3, 2 and 2."""
    states = []
    for parts in (1, 3):
        torch.manual_seed(0)
        network = Network(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), 4, 3, head=6)
        engine = Engine(network, RuntimeSettings(device="cpu", accumulate=parts), quiet)
        method = source_method(network)
        torch.manual_seed(1)
        data = batches(3, size=7)
        loss = engine.fit(method, data, engine.optimization(method, OptimSettings(lr=0.1), 3), label="fit", steps=3)
        states.append((loss["loss"], network.state_dict()))
    assert states[0][0] == pytest.approx(states[1][0], rel=1e-6)
    assert all(torch.allclose(states[0][1][name], states[1][1][name], atol=1e-6) for name in states[0][1])


def test_a_step_draws_the_same_whatever_came_before_it():
    """Dropout in step 2 of a whole epoch and of one that begins there."""
    seen = []

    class Watch(ADAPTATION_METHODS["source_only"]):
        def loss(self, batch):
            seen.append((torch.rand(()).item(), np.random.rand(), random.random()))  # noqa: NPY002
            return super().loss(batch)

    data = batches(3)
    for begin in (0, 2):
        network = tiny_network()
        engine = Engine(network, RuntimeSettings(device="cpu"), quiet)
        method = Watch(network, AdaptationConfig.load("digits_source").method_settings())
        optimization = engine.optimization(method, OptimSettings(), 3)
        engine.fit(method, data[begin:], optimization, label="fit", steps=3, seed=(7,), begin=EpochState(begin))
    whole, rest = seen[:3], seen[3:]
    assert rest == whole[2:] and len(set(whole)) == 3
