"""What tools/check_device.py measures, asserted by `pytest -m cuda`. On a CPU the same functions walk through."""

import io

import numpy as np
import pytest
import torch
from torch import nn

from uda.adaptation.methods import ADAPTATION_METHODS
from uda.cli.main import main
from uda.data.images import ImageArray
from uda.data.loaders import Part, predict_batches, training_batches
from uda.data.settings import AugmentSettings, TransformSettings
from uda.data.transforms import make_predict, make_train
from uda.device_check import Setup
from uda.device_check.training import (
    CASES,
    PRECISIONS,
    Case,
    check_method,
    feature_changes,
    host_waits,
    prepare,
    waits_of,
)
from uda.models.network import Network
from uda.selection.selectors import SELECTORS
from uda.training.device import set_up_process
from uda.training.engine import Engine
from uda.training.method import Method
from uda.training.optimization import Optimization
from uda.training.settings import OptimSettings, RuntimeSettings

GPU = pytest.param("cuda:0", marks=pytest.mark.cuda)


@pytest.fixture(params=["cpu", GPU])
def device(request):
    return request.param


ON_CPU = [(case, "cpu", "bf16") for case in CASES]
ON_GPU = [pytest.param(case, "cuda:0", p, marks=pytest.mark.cuda) for case in CASES for p in PRECISIONS]


@pytest.mark.parametrize(("case", "place", "precision"), ON_CPU + ON_GPU, ids=str)
def test_every_method_has_the_loss_of_the_cpu_and_does_not_wait(case, place, precision):
    found = check_method(Setup(place, command=main), case, precision)
    assert not found.flaw and np.isfinite(found.figures["loss"])
    if found.figures["waits a step"] is not None:
        assert found.figures["waits a step"] == 0
    if "scale" in found.figures:
        assert found.figures["scale"] >= 1


def test_each_phase_of_mcd_sees_the_weights_that_the_one_before_moved(device):
    changes = feature_changes(device, "bf16")
    assert len(changes) == 4 and min(changes) > 0.005
    np.testing.assert_allclose(changes, feature_changes("cpu", "fp32"), rtol=0.25, atol=0.02)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_training_begun_on_the_cpu_resumes_fused_on_the_device(device, name):
    """Four steps on the CPU, and two there and two on the device, by way of a checkpoint's bytes."""
    inputs, settings = torch.randn(8, 5), OptimSettings(name=name, lr=0.05)

    def part(state, place, fused, steps):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(place)
        optimization = Optimization({"new": list(network.parameters())}, settings, 4, None, fused)
        if state is not None:
            saved = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
            network.load_state_dict(saved["network"])
            optimization.load_state_dict(saved["optimization"])
        for _ in range(steps):
            optimization.begin_step()
            optimization.descend(network(inputs.to(place)).square().sum())
        content = io.BytesIO()
        torch.save({"network": network.state_dict(), "optimization": optimization.state_dict()}, content)
        return content.getvalue(), [p.detach().cpu() for p in network.parameters()]

    _, whole = part(None, "cpu", False, 4)
    begun, _ = part(None, "cpu", False, 2)
    _, resumed = part(begun, device, True, 2)
    torch.testing.assert_close(resumed, whole, rtol=1e-4, atol=1e-5)
    _, back = part(part(None, device, True, 2)[0], "cpu", False, 2)
    torch.testing.assert_close(back, whole, rtol=1e-4, atol=1e-5)


TRANSFORMS = TransformSettings(size=24, resize=28)
AUGMENT = AugmentSettings(scale=(0.6, 1.0), flip=True, jitter=0.3)


class Recorder(Method):
    """Keeps what it is given, on the CPU."""

    def __init__(self, network):
        super().__init__(network)
        self.seen = []

    def loss(self, batch):
        self.seen.append([tensor.cpu() for tensor in (batch.images, batch.labels, batch.domain, batch.is_target)])
        return self.network(batch.images).logits.square().mean(), {}


def images_on(place, workers):
    """The training batches that reach a method on a device, and what the network gives for each image in predicting."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 3, 30, 34), dtype=np.uint8)
    images, labels = ImageArray(pixels, [str(i) for i in range(40)]), np.arange(40) % 3
    network = Network(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), 48, 3)
    nn.init.constant_(network.classifier.weight, 0.1)
    engine = Engine(network, RuntimeSettings(device=place, tf32=False, precision="fp32"), log=None)
    method = Recorder(network)
    parts = [
        Part(images, np.arange(40), labels, make_train(TRANSFORMS, AUGMENT), number, bool(number)) for number in (0, 1)
    ]
    batches = training_batches(parts, num_classes=3, batch_size=[6, 6], steps=7, seed=(0,), workers=workers)
    optimization = engine.optimization(method, OptimSettings(), 7)
    engine.fit(method, batches, optimization, label="test", steps=7)
    predicted = predict_batches(images, make_predict(TRANSFORMS), batch_size=16, workers=workers)
    return method.seen, engine.predict(predicted, 40).features


@pytest.mark.parametrize("workers", [0, 2])
def test_what_reaches_a_method_is_what_the_loader_made(device, workers):
    """Copies run in the background: none may be overtaken by the next batch."""
    torch.manual_seed(0)
    seen, features = images_on(device, workers)
    torch.manual_seed(0)
    expected, expected_features = images_on("cpu", 0)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(features, expected_features, atol=1e-5)


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_every_selector_scores_as_on_the_cpu(device, name):
    features, weight = torch.randn(64, 32).relu(), torch.randn(10, 32)
    scores = [
        SELECTORS[name](features.to(place), (features @ weight.T).to(place), weight.to(place)).cpu().double()
        for place in ("cpu", device)
    ]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-6, atol=1e-6)


@pytest.mark.cuda
def test_predicting_does_not_wait_for_each_batch():
    training = prepare(Case("source_only", 0, False), "cuda:0", "fp32")
    assert host_waits(training) == 0
    batch = next(iter(training.batches)).images
    few, many = (
        waits_of(lambda count=count: training.engine.predict([batch] * count, count * len(batch))) for count in (2, 12)
    )
    assert many - few <= 10


@pytest.mark.cuda
def test_matrix_products_keep_all_bits_where_convolutions_take_tf32():
    set_up_process(RuntimeSettings(device="cuda:0"))
    x, y = torch.randn(512, 512, device="cuda:0"), torch.randn(512, 512, device="cuda:0")
    exact = x.double() @ y.double()
    assert ((x @ y).double() - exact).norm() / exact.norm() < 1e-6


def test_the_cases_are_all_methods_there_are():
    assert {case.name for case in CASES} >= set(ADAPTATION_METHODS)
