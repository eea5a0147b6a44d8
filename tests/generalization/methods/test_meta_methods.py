"""The meta-methods: each one's gradients worked by hand or by finite differences, then every method as it is run."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.adaptation.test_run import cut_after_every_save, read_results
from tests.data.trees import make_folders
from tests.half_precision import fresh_weights
from uda.core.errors import UserError
from uda.data.batch import Batch
from uda.generalization.config import GeneralizationConfig
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.generalization.run import GeneralizationRun
from uda.models.network import Network, create_network, network_on
from uda.training.engine import Engine

K, DOMAINS = 3, 3
META = ["feature_critic", "metareg", "mldg"]
#: Method and stage.
STEPS = [
    (name, stage) for name, method in sorted(GENERALIZATION_METHODS.items()) for stage in range(len(method.stages))
]


def config_of(name, *overrides):
    plain = "training.optim={lr: 0.05, momentum: 0, nesterov: false, weight_decay: 0, schedule: constant}"
    common = [f"method={name}", "model.head=8", "runtime.device=cpu", "runtime.channels_last=false", plain]
    return GeneralizationConfig.load("rotated_digits_erm", [*common, *overrides])


def build(name, *overrides, stage=0, network=None):
    """A method at the start of a stage, with plain SGD."""
    config = config_of(name, *overrides)
    torch.manual_seed(0)
    method = GENERALIZATION_METHODS[name](
        network or create_network(config.model, K, 1), DOMAINS, **config.method_settings
    )
    method.config = config  # what tests ask it for: runtime, optimisers
    engine = Engine(method.network, config.runtime, log=None)
    engine.attach(method)
    for begun in range(stage + 1):
        method.begin(begun)
    method.network.train()
    return method, engine.optimization(method, config.training.optim, 100)


def make_batch(labels=(0, 1, 2, 0, 1, 1, 2, 2, 2), size=28):
    """As many images of each domain; by default domain 1 lacks class 2 and domain 2 has nothing else."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(len(labels), 1, size, size, generator=generator)
    domain = torch.arange(DOMAINS).repeat_interleave(len(labels) // DOMAINS)
    nowhere = torch.zeros(len(labels), dtype=torch.bool)
    return Batch(images, F.one_hot(torch.tensor(labels), K).float(), domain, nowhere, nowhere.long())


def draws(monkeypatch, method, *domains):
    """Let the method draw these domains, in turn and for ever."""
    count = -1

    def draw(without=None):
        nonlocal count
        count += 1
        assert domains[count % len(domains)] != without
        return domains[count % len(domains)]

    monkeypatch.setattr(method, "draw_domain", draw)


def in_double(method, batch):
    network = method.network.double()
    network.features = lambda images: network.head(network.backbone(images))  # the network's own give float32
    method.modules.double()
    batch.images, batch.labels = batch.images.double(), batch.labels.double()


def slope_along(value, parameters, directions, length=1e-6):
    """Central difference of `value()` along a direction in parameter space."""
    ends = []
    length /= float(sum(direction.square().sum() for direction in directions)) ** 0.5  # few kinks lie so near
    for sign in (1, -2):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * length * direction
        ends.append(value().item())
    with torch.no_grad():
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter += length * direction
    return (ends[0] - ends[1]) / (2 * length)


def groups_before(method):
    return {role: [p.detach().clone() for p in group] for role, group in method.parameter_groups().items()}


def moved(method, before):
    now = method.parameter_groups()
    pairs = {role: list(zip(now[role], before[role], strict=True)) for role in now}
    return {role for role, group in pairs.items() if any(not torch.equal(a, b) for a, b in group)}


@pytest.mark.parametrize(("first_order", "expected"), [("false", 1.34), ("true", 0.9)])
def test_mldg_descends_the_hand_computed_meta_gradient(monkeypatch, first_order, expected):
    """L = (w x - y)^2 / 2 at w = 1, alpha = 0.1, beta = 0.5; train: x = 2, y = 1; test: x = 1, y = 3.

    grad L_train = 2 (2 - 1) = 2, its slope 4, so w' = 0.8 and grad L_test(w') = 0.8 - 3 = -2.2; through the inner step
    -2.2 (1 - 0.1 * 4) = -1.32. All in all 2 - 0.5 * 1.32 = 1.34, to first order 2 - 0.5 * 2.2 = 0.9.
    """
    options = f"method_options={{inner_lr: 0.1, beta: 0.5, first_order: {first_order}}}"
    method, _ = build("mldg", options, network=Network(nn.Flatten(), 1, 1, bias=False))
    nn.init.ones_(method.network.weight)
    monkeypatch.setattr(
        method, "classification", lambda logits, batch, rows: (logits - rows.of(batch.labels)).square().mean() / 2
    )
    draws(monkeypatch, method, 2)
    x, y = torch.tensor([2.0, 2, 2, 2, 1, 1]), torch.tensor([1.0, 1, 1, 1, 3, 3])
    batch = make_batch((0,) * 6)
    batch.images, batch.labels = x.view(6, 1, 1, 1), y.view(6, 1)
    loss, parts = method.loss(batch)
    loss.backward()
    assert float(method.network.weight.grad) == pytest.approx(expected, rel=1e-6)
    assert float(parts["loss"]) == pytest.approx(0.5 + 0.5 * 2.42)


@pytest.mark.parametrize("loss", ["cross_entropy", "avh"])
@pytest.mark.parametrize("first_order", ["false", "true"])
def test_mldg_second_order_is_the_gradient_of_its_loss_and_first_order_is_not(monkeypatch, loss, first_order):
    method, _ = build("mldg", f"model.loss={loss}", f"method_options={{inner_lr: 0.1, first_order: {first_order}}}")
    batch = make_batch()
    in_double(method, batch)
    draws(monkeypatch, method, 1)
    method.loss(batch)[0].backward()
    parameters = [p for p in method.network.parameters() if p.grad is not None]
    directions = [torch.randn_like(p) for p in parameters]
    analytic = float(sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True)))
    numeric = slope_along(lambda: method.loss(batch)[1]["loss"], parameters, directions)
    assert (analytic == pytest.approx(numeric, rel=1e-5)) == (first_order == "false")


@pytest.mark.parametrize("loss", ["cross_entropy", "avh"])
def test_the_gradient_of_metaregs_phi_equals_finite_differences(loss):
    """Through three inner steps, every entry of phi."""
    options = "method_options={inner_steps: 3, inner_lr: 0.2, initial: 0.05}"
    method, _ = build("metareg", f"model.loss={loss}", options)
    batch = make_batch()
    in_double(method, batch)
    features, phi = method.network.features(batch.images).detach(), method.modules["regulariser"].phi
    meta_loss = method.meta_loss(features, batch, 0, 2)
    (gradient,) = torch.autograd.grad(meta_loss, phi)
    assert gradient.abs().max() > 1e-3
    for entry in range(phi.numel()):
        direction = torch.zeros(phi.numel(), dtype=phi.dtype)
        direction[entry] = 1
        numeric = slope_along(lambda: method.meta_loss(features, batch, 0, 2), [phi], [direction.view_as(phi)])
        assert float(gradient.view(-1)[entry]) == pytest.approx(numeric, rel=1e-4, abs=1e-9)


def test_one_inner_step_of_metareg_long_hand():
    """theta' = theta - lr (grad L_a + phi sign w), so dL_b / dphi = -lr sign(w) grad L_b(theta')."""
    method, _ = build("metareg", "method_options={inner_steps: 1, inner_lr: 0.2, initial: 0.05}")
    batch = make_batch()
    features, phi = method.network.features(batch.images).detach(), method.modules["regulariser"].phi
    (found,) = torch.autograd.grad(method.meta_loss(features, batch, 0, 2), phi)
    classifier = copy.deepcopy(method.modules["classifiers"][0])
    signs = classifier.weight.detach().sign()
    inner = F.cross_entropy(classifier(features[:3]), batch.labels[:3]) + (phi * classifier.weight.abs()).sum()
    slopes = torch.autograd.grad(inner, [classifier.weight, classifier.bias])
    with torch.no_grad():
        for parameter, slope in zip((classifier.weight, classifier.bias), slopes, strict=True):
            parameter -= 0.2 * slope
    (slope,) = torch.autograd.grad(F.cross_entropy(classifier(features[6:]), batch.labels[6:]), classifier.weight)
    torch.testing.assert_close(found, -0.2 * signs * slope)


def test_metareg_keeps_phi_at_or_above_zero():
    method, optimization = build("metareg", "method_options={inner_lr: 1, meta_weight: 1000}")
    for _ in range(3):
        method.step(make_batch(), optimization, 0.0)
    phi = method.modules["regulariser"].phi
    assert phi.min() == 0 and phi.max() > 1e-3


def test_metaregs_second_stage_has_a_fresh_classifier_and_descends_the_weighted_l1(monkeypatch):
    method, _ = build("metareg", "method_options.initial=0.5")
    first = method.network.weight.detach().clone()
    method.begin(1)
    assert not torch.equal(method.network.weight, first)
    optimization = Engine(method.network, method.config.runtime, None).optimization(
        method, method.config.training.optim, 1
    )
    before, classifier = copy.deepcopy(method.network), method.network.classifier
    method.step(make_batch(), optimization, 0.5)
    loss = F.cross_entropy(before(make_batch().images).logits, make_batch().labels) + 0.5 * before.weight.abs().sum()
    (slope,) = torch.autograd.grad(loss, before.weight)
    torch.testing.assert_close(classifier.weight, before.weight - 0.05 * slope)


@pytest.mark.parametrize("loss", ["cross_entropy", "avh"])
def test_the_feature_critics_gradients_equal_finite_differences(monkeypatch, loss):
    """Of omega that of -tanh(L_test(theta_old) - L_test(theta_new)); of theta that of L_train + weight * h."""
    options = "method_options={inner_lr: 0.5, weight: 0.7, hidden: 16}"
    method, _ = build("feature_critic", f"model.loss={loss}", options, stage=1)
    batch = make_batch()
    in_double(method, batch)
    draws(monkeypatch, method, 1)
    method.loss(batch)[0].backward()
    values = {
        "critic": lambda: -method.loss(batch)[1]["loss/meta_gain"].tanh(),
        "backbone": lambda: method.loss(batch)[1]["loss"],
        "new": lambda: method.loss(batch)[1]["loss"],
    }
    for role, value in values.items():
        parameters = [p for p in method.parameter_groups()[role] if p.grad is not None]
        directions = [torch.randn_like(p) for p in parameters]
        analytic = float(sum((p.grad * d).sum() for p, d in zip(parameters, directions, strict=True)))
        assert analytic == pytest.approx(slope_along(value, parameters, directions), rel=1e-4), role
        assert analytic != 0


def test_omega_lowers_the_meta_test_loss(monkeypatch):
    """With the network standing still, a critic that learns comes to help the meta-test domain."""
    options = ("training.optim.lr=1", "method_options={inner_lr: 0.1, hidden: 16}")
    network = network_on(nn.Flatten(), 16, config_of("feature_critic").model, K)
    method, optimization = build("feature_critic", *options, stage=1, network=network)
    draws(monkeypatch, method, 1)
    gains = []
    for _ in range(40):
        loss, parts = method.loss(make_batch(size=4))
        optimization.descend(loss, only="critic")
        gains.append(float(parts["loss/meta_gain"]))
    assert gains[-1] > 0 and gains[-1] > gains[0] + 0.01


def test_running_statistics_are_those_of_the_parameters_that_are_kept(monkeypatch):
    """MLDG's meta-test pass leaves them alone; what is gathered is of the meta-train domains, images 0 to 5."""
    method, _ = build("mldg")
    draws(monkeypatch, method, 2)
    expected = copy.deepcopy(method.network)
    expected(make_batch().images[:6])
    method.loss(make_batch())
    for (name, buffer), other in zip(method.network.named_buffers(), expected.buffers(), strict=True):
        assert torch.equal(buffer, other), name


@pytest.mark.parametrize("loss", ["cross_entropy", "avh", "arcface"])
@pytest.mark.parametrize(("name", "stage"), STEPS)
def test_every_method_takes_every_loss_with_two_images_of_a_domain_and_moves_its_groups(name, stage, loss):
    method, optimization = build(name, f"model.loss={loss}", stage=stage)
    before = groups_before(method)
    batch = make_batch((0, 1, 2, 2, 1, 1))
    optimization.begin_step()
    scalars = method.step(batch, optimization, 0.0)
    assert all(torch.isfinite(value) for value in scalars.values())
    own = {("metareg", 0): {"classifiers", "regulariser"}, ("feature_critic", 1): {"critic"}}
    assert moved(method, before) == {"backbone", "new"} | own.get((name, stage), set())


FIRST_ORDER = "method_options.first_order=true"


@pytest.mark.parametrize(("name", "stage", "options"), [("erm", 0, []), ("metareg", 0, []), ("mldg", 0, [FIRST_ORDER])])
def test_half_precision_computes_with_the_weights_of_the_moment(name, stage, options):
    """Those of the network, and in inner steps those that are a step ahead."""
    method, optimization = build(name, "runtime.precision=bf16", "training.optim.lr=1", *options, stage=stage)
    engine = Engine(method.network, method.config.runtime, log=None)
    batch = make_batch((0, 1, 2, 2, 1, 1))
    with fresh_weights(method.network) as passes:
        engine.fit(method, [batch], optimization, label="test", steps=1)
    assert len(passes) > 2


class Operations(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def operations_of_a_step(name, stage, precision):
    """Operations of a step of `Engine.fit`, the network's weights after it, and what was logged."""
    method, _ = build(name, f"runtime.precision={precision}", stage=stage)
    lines = []
    engine = Engine(method.network, method.config.runtime, log=lines.append)
    engine.attach(method)
    optimization = engine.optimization(method, method.config.training.optim, 1)
    with Operations() as operations:
        engine.fit(method, [make_batch()], optimization, label="test", steps=1)
    return operations.count, method.network.state_dict(), lines


@pytest.mark.parametrize(("name", "stage"), [("mldg", 0), ("feature_critic", 1)])
def test_second_derivatives_take_the_fast_path_whatever_precision_is_asked_for(name, stage):
    """Autocast casts each weight anew, and below it `QuickSecondDerivatives` has no part."""
    count, weights, lines = operations_of_a_step(name, stage, "fp32")
    assert not lines
    for precision in ("bf16", "fp16"):
        found, others, lines = operations_of_a_step(name, stage, precision)
        assert found == count and all(torch.equal(weights[key], others[key]) for key in weights)
        assert len(lines) == 1 and f"precision fp32 instead of {precision}" in lines[0]


@pytest.mark.filterwarnings("ignore:torch.cuda.amp.GradScaler is enabled:UserWarning")
def test_fp16_scales_a_loss_unless_the_method_trains_in_fp32(monkeypatch):
    scaled = {}
    for name, options in (("erm", []), ("metareg", []), ("mldg", []), ("mldg", [FIRST_ORDER]), ("feature_critic", [])):
        method, _ = build(name, *options, "runtime.precision=fp16")
        engine = Engine(method.network, method.config.runtime, log=None)
        engine.attach(method)
        monkeypatch.setattr(engine, "device", torch.device("cuda"))
        optimization = engine.optimization(method, method.config.training.optim, 1)
        scaled[name, *options] = optimization.scaler is not None
    assert {names for names, on in scaled.items() if on} == {("erm",), ("metareg",)}


def test_the_inner_gradients_of_metareg_are_fp32_under_autocast():
    """So they need no scale: fp16 loses what is below 6e-8."""
    method, _ = build("metareg")
    features, batch = 1e-3 * method.network.features(make_batch().images).detach(), make_batch()
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            loss = method.meta_loss(features, batch, 0, 1)
        found.append(torch.autograd.grad(loss, method.modules["regulariser"].phi)[0])
    assert found[0].abs().max() > 0 and torch.equal(*found)


@pytest.mark.parametrize("head", ["8", "null"])
@pytest.mark.parametrize(("name", "stage"), STEPS)
def test_every_method_works_on_a_backbone_without_parameters(name, stage, head):
    model = config_of(name, f"model.head={head}").model
    overrides = (f"model.head={head}",)
    if name == "feature_critic" and head == "null":
        with pytest.raises(UserError, match=r"this network trains no features; set model\.head"):
            build(name, *overrides, network=network_on(nn.Flatten(), 16, model, K))
        return
    method, optimization = build(name, *overrides, stage=stage, network=network_on(nn.Flatten(), 16, model, K))
    before = groups_before(method)
    assert torch.isfinite(method.step(make_batch(size=4), optimization, 0.0)["loss"])
    assert "new" in moved(method, before)


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """Run a method on three domains of four classes of stripes, the third unseen."""
    root = tmp_path_factory.mktemp("domains")
    names = ("drawn", "photos", "cartoons")
    for seed, name in enumerate(names):
        make_folders(root / name, ["ant", "bee", "cat", "dog"], per_class=5, seed=seed)
    domains = [str(root / name) for name in names]

    def run(folder, name, *overrides):
        fixed = [
            f"output={folder}",
            f"method={name}",
            f"data={{dataset: null, domains: [{', '.join(domains)}], cache: memory, store: {root}}}",
            f"target={domains[-1]}",
            "transforms={kind: crop, size: 16, resize: 18, mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}",
            "augment={scale: [0.8, 1.0], flip: true, degrees: 0, translate: 0}",
            "model={backbone: digits_cnn, weights: none, head: 8}",
            "training={steps: 5, evaluate_every: 2, batch_size: 4, optim: {lr: 0.05}}",
            "runtime={device: cpu}",
            "report={loggers: [], page: false}",
        ]
        return GeneralizationRun(GeneralizationConfig.load("rotated_digits_erm", [*fixed, *overrides])).execute()

    return run


@pytest.mark.parametrize("name", sorted(GENERALIZATION_METHODS))
def test_a_method_that_dies_after_every_step_comes_to_the_same_end(execute, tmp_path, monkeypatch, name):
    """Two stages at most, of 2 and 3 steps, with reports after 2 of each; networks of its own are in the checkpoint."""
    whole = execute(tmp_path / "whole", name)
    assert whole["rounds"][-1]["steps"] == 5
    folder = tmp_path / "cut"
    assert cut_after_every_save(monkeypatch, folder, lambda: execute(folder, name)) > 5
    assert read_results(folder) == read_results(tmp_path / "whole")
    weights = [(tmp_path / end / "checkpoints/final.safetensors").read_bytes() for end in ("whole", "cut")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("name", sorted(GENERALIZATION_METHODS))
def test_a_method_runs_on_a_feature_bank(execute, tmp_path, name):
    """A user's own features with a wide gap between the classes: they are learnt in five steps."""
    classes = np.repeat(["ant", "bee", "cat", "dog"], 5)
    centres = 3 * np.eye(4, 6)[np.arange(20) // 5]
    for seed, domain in enumerate(("drawn", "photos", "cartoons")):
        features = centres + 0.1 * np.random.default_rng(seed).normal(size=(20, 6))
        ids = [f"{name}/{number}" for number, name in enumerate(classes)]
        np.savez(tmp_path / f"{domain}.npz", features=features.astype(np.float32), ids=ids, labels=classes)
    results = execute(tmp_path / "run", name, f"data.features={tmp_path}", "model.loss=avh")
    assert results["rounds"][-1]["steps"] == 5 and results["final"]["overall"] > 0.8


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("mldg", ["runtime.compile=true"], "torch.compile does not support the inner steps of 'mldg'"),
        ("mldg", ["runtime.sync_batch_norm=true"], "synchronised BatchNorm does not support the inner steps of 'mldg'"),
        ("metareg", ["runtime.accumulate=2"], "'metareg' cannot accumulate gradients over parts of a batch"),
        (
            "mldg",
            ["runtime.accumulate=3"],
            "each of the 3 parts of a batch .* needs at least two images of each .* got 4",
        ),
        ("mldg", ["method_options.inner_lrr=1"], "did you mean 'inner_lr'"),
        ("metareg", ["model.weight_norm=true"], "'metareg' learns a penalty on the raw weights"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(execute, tmp_path, name, overrides, message):
    with pytest.raises(UserError, match=message):
        execute(tmp_path / "run", name, *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", META)
def test_a_single_seen_domain_is_too_few_for_a_meta_method(execute, tmp_path, name):
    two = "data={dataset: rotated_digits, domains: [m0, m15], cache: none, store: null}"
    with pytest.raises(UserError, match=f"method: '{name}' .* needs at least 2 seen domains; got 1"):
        execute(tmp_path / "run", name, two, "target=m15")
    assert not (tmp_path / "run").exists()
