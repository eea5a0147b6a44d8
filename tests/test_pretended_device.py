"""Every method, loss, selector and validator on a pretended GPU, and the engine's passes as a whole.

Nothing may mix devices, nothing may ask MPS for float64, the values are the CPU's, and the host waits no more often
than is said here. A wait costs a GPU what it would have computed meanwhile.
"""

import csv
import json
import re

import numpy as np
import pytest
import torch

from tests.adaptation.methods.test_methods import build, make_batch, with_strong_views
from tests.data.trees import make_folders
from tests.generalization.methods import test_meta_methods
from tests.in_process import adapt
from tests.pretend_device import pretended
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.adaptation.methods.unlabelled_losses import UNLABELLED_LOSSES
from uda.cli.main import main
from uda.data.images import ImageArray
from uda.data.loaders import Part, predict_batches, training_batches
from uda.data.settings import AugmentSettings, TransformSettings
from uda.data.transforms import make_predict, make_train
from uda.evaluation.validators import VALIDATORS
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.models.losses import LOSSES
from uda.models.network import create_network
from uda.selection import angular
from uda.selection.regularizers import REGULARIZERS
from uda.selection.selectors import SELECTORS
from uda.training.engine import Engine

KINDS = ["cuda", "mps"]
#: Waits of a training step, where there are any. MPS has no double precision, so selectors and angles go to the CPU:
#: FixMatch sends features, logits and weight there, and labels and choice back; AVH sends features and weight there,
#: logits back, and the gradients of all three the other way.
WAITS = {("fixmatch", "mps"): 5, ("avh", "mps"): 6}
VARIANTS = {
    "shared": [],
    "separate": ["adaptation.forward=separate", "self_training.forward=separate"],
    "bf16": ["runtime.precision=bf16"],
}


def batch_of(name):
    """Source and target images, one of the target with a true label; the target in two views where the method asks."""
    batch = make_batch()
    batch.annotated[5] = True
    return with_strong_views(batch) if ADAPTATION_METHODS[name].views > 1 else batch


def prepared(device, name, *overrides, batch=None):
    """A method on a device, and a step of it that is still to be taken."""
    torch.manual_seed(3)
    settings = ["data.target_labelled=some.txt", f"runtime.device={device}", "runtime.channels_last=false"]
    network, method = build(name, *settings, *overrides)
    engine = Engine(network, method.config.runtime, log=None)
    engine.attach(method)
    optimization = engine.optimization(method, method.config.adaptation.optim, 2)
    batch = (batch or batch_of(name)).to(device, memory_format=engine.memory_format)

    def step():
        network.train()
        with engine.autocast(engine.settings.precision, cache=False):
            return method.step(batch, optimization, 0.5)

    return method, step


def prepared_generalization(device, name, stage):
    method, optimization = test_meta_methods.build(name, f"runtime.device={device}", stage=stage)
    batch = test_meta_methods.make_batch().to(device)
    return method, lambda: method.step(batch, optimization, 0.5)


def outcome(method, step):
    """What a step reports, and the weights that it leaves."""
    torch.manual_seed(4)
    scalars = step()
    return scalars, {**method.network.state_dict(), **method.modules.state_dict(prefix="own.")}


def check_step(prepare, kind, *rest, waits):
    """The step that `prepare` makes on a device gives what it gives on the CPU; the host waits so often for it."""
    expected = outcome(*prepare("cpu", *rest))
    with pretended(kind) as device:
        method, step = prepare(kind, *rest)
        device.waits.clear()
        found = outcome(method, step)
        assert device.waits.total() == waits, device.waits
        found = [{key: value.cpu() for key, value in part.items()} for part in found]
    torch.testing.assert_close(found, list(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(ADAPTATION_METHODS))
def test_a_step_of_every_method(name, kind, variant):
    waits = WAITS.get((name, kind), 0)
    check_step(prepared, kind, name, *VARIANTS[variant], waits=waits)


STAGES = [
    (name, stage) for name, method in sorted(GENERALIZATION_METHODS.items()) for stage in range(len(method.stages))
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_step_of_every_generalization_method(name, stage, kind):
    """Second derivatives too."""
    check_step(prepared_generalization, kind, name, stage, waits=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_a_step_by_every_classification_loss(loss, kind):
    check_step(prepared, kind, "source_only", f"model.loss={loss}", waits=WAITS.get((loss, kind), 0))


SELECTED = ["self_training.batch={source: 2, selected: 2, unlabelled: 2}", "self_training.target_weight=0.5"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", sorted(UNLABELLED_LOSSES))
def test_a_step_with_every_loss_on_unlabelled_images(loss, kind):
    batch = make_batch()
    batch.labels[[4, 6]] = 0
    check_step(
        lambda device: prepared(
            device, "self_training", f"self_training.unlabelled_loss={loss}", *SELECTED, batch=batch
        ),
        kind,
        waits=0,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(REGULARIZERS))
def test_a_step_with_every_regularizer(name, kind):
    check_step(prepared, kind, "self_training", f"self_training.regularizer={name}", waits=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_every_selector(name, kind):
    """By itself and in FixMatch, which selects on the device."""
    inputs = torch.randn(9, 5), torch.randn(9, 4), torch.randn(4, 5)
    expected = SELECTORS[name](*inputs)
    with pretended(kind) as device:
        moved = [tensor.to(kind) for tensor in inputs]
        device.waits.clear()
        scores = SELECTORS[name](*moved)
        assert kind == "mps" or not device.waits
        torch.testing.assert_close(scores.cpu(), expected)
    options = f"method_options={{selector: {name}, threshold: 0.3}}"
    check_step(prepared, kind, "fixmatch", options, waits=WAITS.get(("fixmatch", kind), 0))


@pytest.mark.parametrize("kind", KINDS)
def test_angles_by_chunks_and_with_a_gradient(monkeypatch, kind):
    monkeypatch.setattr(angular, "_CHUNK_ENTRIES", 20)  # rows of 5 numbers: three chunks of 4 at most
    features, weight, labels = torch.randn(9, 5), torch.randn(4, 5), torch.arange(9) % 4

    def measured(features, weight, labels):
        angular.avh_loss(features.requires_grad_(), weight, labels, 10.0).backward()
        with torch.no_grad():
            return angular.avh(features, weight, labels), angular.angles(features, weight), features.grad

    expected = measured(features.clone(), weight, labels)
    with pretended(kind):
        found = measured(*(tensor.to(kind) for tensor in (features, weight, labels)))
        torch.testing.assert_close([tensor.cpu() for tensor in found], list(expected))


SETTINGS = TransformSettings(size=28, resize=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


def parts(count=12):
    """Source images, target images in two views, and target images with a true label."""
    plain, strong = (make_train(SETTINGS, AugmentSettings(scale=(0.5, 1), jitter=jitter)) for jitter in (0.0, 0.3))
    pixels = np.random.default_rng(0).integers(256, size=(count, 3, 32, 32), dtype=np.uint8)
    images, every = ImageArray(pixels, [str(number) for number in range(count)]), np.arange(count)
    source = Part(images, every, every % 4, plain, 0, is_target=False)
    target = Part(images, every, None, plain, 1, is_target=True, strong=strong)
    labelled = Part(images, every[:4], every[:4] % 4, plain, 1, is_target=True, annotated=True)
    return source, target, labelled


def fixmatch(device, *overrides):
    """FixMatch of colour images, ready to be trained by the settings that are best on a device."""
    needed = ["method=fixmatch", "adaptation.strong={jitter: 0.3}", "model.head=16", "data.target_labelled=some.txt"]
    config = AdaptationConfig.load("digits_avh", [*needed, f"runtime.device={device}", *overrides])
    torch.manual_seed(3)
    method = ADAPTATION_METHODS["fixmatch"](create_network(config.model, 4, 3), config.method_settings())
    method.config = config
    engine = Engine(method.network, config.runtime, log=None)
    engine.attach(method)
    return engine, method


FITS = {
    "plain": [],
    "parts": ["runtime.accumulate=2"],
    "clipped": ["adaptation.optim.clip_grad=0.1"],
    "adamw": ["adaptation.optim={name: adamw, lr: 0.001}"],
    "fp16": ["runtime.precision=fp16"],
}


def fit(engine, method, steps, ready_made):
    """`Engine.fit` on batches of a loader, or on a list of them."""
    *seen, labelled = parts()
    batches = training_batches(
        seen, num_classes=4, batch_size=[4, 4], beside=(labelled, 2), steps=steps, seed=(0,), workers=0
    )
    optimization = engine.optimization(method, method.config.adaptation.optim, steps)
    batches = list(batches) if ready_made else batches
    return engine.fit(method, batches, optimization, label="fit", steps=steps, freeze_batch_norm=True)


@pytest.mark.parametrize(("variant", "ready_made"), [("plain", True), *((variant, False) for variant in FITS)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_of_training_as_a_whole(kind, variant, ready_made):
    """From uint8 images in two views, with flips and jitter made on the device, to the mean of what is reported.

    On CUDA nothing waits in a step: batches come from page-locked memory. On MPS each of a batch's tensors does.
    Besides the host reads the four scalars and two checks at the end, and brings the transform's constants.
    """
    waits = []
    for steps in (1, 3):
        with pretended(kind) as device:
            engine, method = fixmatch(kind, *FITS[variant])
            device.waits.clear()
            found = fit(engine, method, steps, ready_made)
        waits.append(device.waits)
    a_step = (waits[1].total() - waits[0].total()) / 2
    selecting = WAITS.get(("fixmatch", kind), 0) * (2 if variant == "parts" else 1)
    assert a_step <= selecting + {"cuda": 0, "mps": 7}[kind], waits
    assert waits[0].total() <= a_step + 4 + 2 + 2, waits
    expected = fit(*fixmatch("cpu", *FITS[variant]), 3, ready_made)
    # Jitter on the device rounds to another grey level now and then.
    assert found == pytest.approx(expected, rel=1e-4 if ready_made else 0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_curves_of_training_cost_a_wait_where_the_losses_are_looked_at_anyway(kind):
    """A point every 20 steps, where the host waits once for 20 losses: their other scalars come with them."""
    waits, points = [], []
    for curves in (None, lambda step, values: points.append((step, values))):
        with pretended(kind) as device:
            engine, method = fixmatch(kind)
            seen = training_batches(parts()[:2], num_classes=4, batch_size=[4, 4], steps=41, seed=(0,), workers=0)
            optimization = engine.optimization(method, method.config.adaptation.optim, 41)
            device.waits.clear()
            engine.fit(method, list(seen), optimization, label="fit", steps=41, freeze_batch_norm=True, curves=curves)
            waits.append(device.waits.total())
    assert waits[1] == waits[0], waits
    assert [step for step, _ in points] == [20, 40, 41]
    assert len(points[0][1]) == 4 + 2 + 1, "scalars, learning rates, time"


def predicted(engine):
    """A target in batches of 5, after BatchNorm's statistics were taken from it."""
    images = parts(17)[1].images
    batches = predict_batches(images, make_predict(SETTINGS), batch_size=5, workers=0)
    engine.adapt_batch_norm(batches)
    return engine.predict(batches, 17)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_statistics_and_a_prediction_and_every_validator_on_it(kind):
    """Four batches twice: on CUDA the host waits for what each one gives, on MPS for every copy; then for the weight.

    On either, the transform's two constants go to the device once.
    """
    expected = predicted(fixmatch("cpu")[0])
    with pretended(kind) as device:
        engine, _ = fixmatch(kind)
        device.waits.clear()
        found = predicted(engine)
        assert device.waits.total() <= {"cuda": 4, "mps": 8 + 8}[kind] + 1 + 2, device.waits
        scores = {name: validator(found, found.logits.argmax(1)) for name, validator in VALIDATORS.items()}
    for name in ("features", "logits", "weight"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    expected = {name: validator(expected, expected.logits.argmax(1)) for name, validator in VALIDATORS.items()}
    assert scores == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_that_is_there_is_picked(kind):
    with pretended(kind):
        assert fixmatch("auto")[0].device.type == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_run_and_a_dry_one(tiny, tmp_path, kind):
    """Source stage, AdaBN, rounds, report and checkpoints, by the command line."""
    words = ["--cfg", str(tiny), "self_training.adapt_batch_norm=true"]
    found = []
    for place in (kind, "cpu"):
        folder = tmp_path / place
        with pretended(kind):
            assert adapt([*words, f"runtime.device={place}", f"output={folder}"]) == 0
        final = json.loads((folder / "results.json").read_text())["final"]
        found.append([final["class_mean"], final["nll"]])
    assert found[0] == pytest.approx(found[1], abs=1e-3)
    with pretended(kind):
        assert adapt([*words, f"runtime.device={kind}", f"output={tmp_path / 'dry'}", "--dry-run"]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_predictions(tiny, tmp_path, kind):
    """Batch by batch, by the command line; an image that cannot be read is among them."""
    make_folders(tmp_path / "photos", ["ant", "bee"], per_class=5)
    (tmp_path / "photos" / "ant" / "ant_3.jpg").write_bytes(b"no image")
    assert adapt(["--cfg", str(tiny), "self_training.rounds=1", f"output={tmp_path / 'run'}"]) == 0
    words = ["predict", str(tmp_path / "run"), str(tmp_path / "photos"), "--batch-size", "3"]
    tables = []
    for place in (kind, "cpu"):
        with pretended(kind):
            assert main([*words, "--device", place, "--out", str(tmp_path / f"{place}.csv")]) == 0
        with open(tmp_path / f"{place}.csv", encoding="utf-8", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    for found, expected in zip(*tables, strict=True):
        assert [found[name] for name in ("path", "prediction", "error")] == [
            expected[name] for name in ("path", "prediction", "error")
        ]
        numbers = [name for name in found if re.match("prob|av", name) and found[name]]
        assert len(numbers) == 7 * (not found["error"])
        assert [float(found[name]) for name in numbers] == pytest.approx(
            [float(expected[name]) for name in numbers], rel=1e-3
        )


REFUSED = {
    "two devices": lambda here, host: here + host,
    "a result on the host": lambda here, host: host.add_(here),
    "a list of both": lambda here, host: torch.cat([here, host]),
    "numbers of both in a list": lambda here, host: torch.stack([here[0], host[0].clone()]),
    "an array": lambda here, host: np.asarray(here),
    "two devices under autograd": lambda here, host: here.requires_grad_().square().backward(host),
    "device's index of the host's": lambda here, host: host[here.long()],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", REFUSED)
def test_the_pretended_device_refuses(what, kind):
    with pretended(kind), pytest.raises((RuntimeError, TypeError), match=kind):
        REFUSED[what](torch.rand(3, device=kind), torch.rand(3))


DOUBLES = {
    "a conversion": lambda here: here.double(),
    "a tensor": lambda here: torch.zeros(3, dtype=torch.float64, device=here.device),
    "on the way to the host": lambda here: here.to("cpu", torch.float64),
    "on the way from the host": lambda here: torch.zeros(3, dtype=torch.float64).to(here.device, torch.float32),
    "into a buffer of the host": lambda here: torch.zeros(3, dtype=torch.float64).copy_(here),
}


@pytest.mark.parametrize("what", DOUBLES)
def test_pretended_mps_has_no_double_precision(what):
    with pretended("mps"):
        with pytest.raises(TypeError, match="MPS has no float64"):
            DOUBLES[what](torch.rand(3, device="mps"))
        assert torch.rand(3, device="mps").cpu().double().dtype == torch.float64


WAITING = {
    "a number": (1, lambda here: float(here[0])),
    "a truth": (1, lambda here: bool((here > 0).all())),
    "a list": (1, lambda here: here.tolist()),
    "a mask": (1, lambda here: here[here > 0.5]),
    "a mask's gradient": (2, lambda here: here.requires_grad_()[here > 0.5].sum().backward()),
    "places": (1, lambda here: (here > 0.5).nonzero()),
    "numbers from the host": (1, lambda here: torch.tensor([1.0], device=here.device) + here.new_ones(1)),
    "there and back": (2, lambda here: here.cpu().to(here.device)),
    "rows": (0, lambda here: here[1:] + here.new_full((), 2.0).log() + torch.tensor(3.0)),
    "a copy in the background": (0, lambda here: torch.rand(3).to(here.device, non_blocking=True)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", WAITING)
def test_the_pretended_device_counts_waits(what, kind):
    waits, act = WAITING[what]
    with pretended(kind) as device:
        act(torch.rand(3, device=kind))
        assert device.waits.total() == waits, device.waits


def test_what_comes_to_the_host_in_the_background_is_not_there_at_once():
    with pretended("cuda") as device:
        values = torch.rand(3, device="cuda")
        copy, arrived = values.to("cpu", non_blocking=True), torch.cuda.Event()
        arrived.record()
        assert not device.waits and copy.tolist() == [-1] * 3
        arrived.synchronize()
        assert device.waits.total() == 1 and torch.equal(copy, values.cpu())


def test_torch_is_as_before_after_a_pretence():
    before = {name: getattr(torch.Tensor, name) for name in ("to", "device", "numpy", "pin_memory")}
    precision, there = torch.get_float32_matmul_precision(), torch.cuda.is_available()
    with pretended("cuda"):
        fixmatch("cuda", "runtime.tf32=true")
        torch.set_float32_matmul_precision("high")
    assert before == {name: getattr(torch.Tensor, name) for name in before}
    assert (torch.get_float32_matmul_precision(), torch.cuda.is_available()) == (precision, there)
    assert torch.rand(2).device.type == "cpu"
