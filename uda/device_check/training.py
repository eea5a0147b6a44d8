"""Parts with training: every method in every precision, and weights that change within a step."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.data.images import ImageArray
from uda.data.loaders import Batches, Part, training_batches
from uda.data.transforms import make_train
from uda.device_check.parts import Finding, Setup, part
from uda.generalization.config import GeneralizationConfig
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.models.network import create_network
from uda.training.device import set_up_process
from uda.training.engine import Engine
from uda.training.method import Method
from uda.training.optimization import Optimization

PRECISIONS = ("fp32", "bf16", "fp16")
NUM_CLASSES, DOMAINS, EACH = 10, 3, 8
#: Largest difference of the mean loss from the CPU's loss in fp32, as a share of the larger of that loss and 1.
NEAR = {"fp32": 0.02, "bf16": 0.1, "fp16": 0.05}
#: Methods with dropout. Its random draws differ between devices, so the losses are not compared.
DROPOUT = ("adr",)


@dataclass(frozen=True)
class Case:
    """A method at the start of one of its stages, on grey images of ten classes."""

    name: str
    stage: int
    generalizes: bool

    def __str__(self) -> str:
        """The method's name, with the number of the stage if the method has several."""
        stages = len(GENERALIZATION_METHODS[self.name].stages) if self.generalizes else 1
        return f"{self.name}, stage {self.stage + 1}" if stages > 1 else self.name


CASES = (
    *(Case(name, 0, False) for name in sorted(ADAPTATION_METHODS)),
    *(
        Case(name, stage, True)
        for name, method in sorted(GENERALIZATION_METHODS.items())
        for stage in range(len(method.stages))
    ),
)


@dataclass
class Training:
    """The arguments of `Engine.fit`."""

    engine: Engine
    method: Method
    optimization: Optimization
    batches: Batches

    def fit(self, steps: int) -> dict[str, float]:
        """Train `steps` steps from the first batch on."""
        return self.engine.fit(
            self.method, self.batches.window(0, steps), self.optimization, label="check", steps=steps
        )


def prepare(case: Case, device: str, precision: str, *overrides: str, steps: int = 8) -> Training:
    """Prepare a case. Weights and images have a fixed seed, so they are the same on every device."""
    settings = [f"method={case.name}", f"runtime.device={device}", f"runtime.precision={precision}", "model.head=16"]
    if case.name in DROPOUT:
        settings.append("model.dropout=0.5")
    if case.generalizes:
        config = GeneralizationConfig.load("rotated_digits_erm", [*settings, *overrides])
        build = partial(GENERALIZATION_METHODS[case.name], num_domains=DOMAINS, **config.method_settings)
        optim = config.training.optim
    else:
        if ADAPTATION_METHODS[case.name].views > 1:
            settings.append("adaptation.strong={jitter: 0.3}")
        config = AdaptationConfig.load("digits_avh", [*settings, *overrides])
        build = partial(ADAPTATION_METHODS[case.name], settings=config.method_settings())
        optim = config.self_training.optim
    torch.manual_seed(0)
    network = create_network(config.model, NUM_CLASSES, 1)
    set_up_process(config.runtime)
    engine = Engine(network, config.runtime, log=None)
    method = build(network)
    engine.attach(method)
    for stage in range(case.stage + 1 if case.generalizes else 0):
        method.begin(stage)
    parts = _domains(config) if case.generalizes else _source_and_target(config, case.name)
    batches = training_batches(
        parts,
        num_classes=NUM_CLASSES,
        batch_size=[EACH] * len(parts),
        steps=steps,
        seed=(0,),
        workers=0,
    )
    return Training(engine, method, engine.optimization(method, optim, steps), batches)


def _images(shift: int, count: int = 4 * EACH) -> tuple[ImageArray, np.ndarray]:
    """Grey images with noise, and their classes. The class is the position of a bright stripe, moved by `shift`."""
    labels = np.arange(count) % NUM_CLASSES
    pixels = np.random.default_rng(shift).integers(0, 64, (count, 1, 28, 28), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[0, (2 * label + shift) % 28 : (2 * label + shift) % 28 + 3] = 255
    return ImageArray(pixels, [str(i) for i in range(count)]), labels


def _source_and_target(config, name: str) -> list[Part]:
    method, parts = ADAPTATION_METHODS[name], []
    for number, augment in enumerate((config.transforms.source, config.transforms.target)):
        images, labels = _images(3 * number)
        is_target = number == 1
        if (not is_target and not method.needs_source) or (is_target and name == "source_only"):
            continue
        strong = make_train(config.transforms, config.adaptation.strong) if is_target and method.views > 1 else None
        known = not is_target or method.rounds or method.prepares  # target labels are pseudo-labels
        transform = make_train(config.transforms, augment)
        rows = np.arange(len(labels))
        parts.append(Part(images, rows, labels if known else None, transform, number, is_target, strong))
    return parts


def _domains(config) -> list[Part]:
    transform = make_train(config.transforms, config.augment)
    domains = [_images(3 * number) for number in range(DOMAINS)]
    return [
        Part(images, np.arange(len(labels)), labels, transform, number, is_target=False)
        for number, (images, labels) in enumerate(domains)
    ]


def waits_of(work: Callable[[], object]) -> int:
    """How often the host waits for the GPU during `work`."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(warning.message) for warning in seen)


def host_waits(training: Training, steps: int = 6) -> float:
    """How often the host waits for the GPU per step. Waits at the end of `Engine.fit` are not counted."""
    few, many = (waits_of(partial(training.fit, count)) for count in (2, 2 + steps))
    return (many - few) / steps


@part("methods", seconds=120)
def methods(setup: Setup) -> Iterator[Finding]:
    """Every method in fp32, bf16 and fp16: the loss compared with the CPU's, host waits per step, scale of fp16."""
    for case, precision in itertools.product(CASES, PRECISIONS):
        try:
            yield check_method(setup, case, precision)
        except Exception as error:
            yield Finding(f"{case}, {precision}", {}, f"{type(error).__name__}: {error}")


def check_method(setup: Setup, case: Case, precision: str) -> Finding:
    """Compare steps of a method on the device with the same steps on the CPU in fp32."""
    steps = 1 if setup.tiny else 4
    training, compared = prepare(case, setup.device, precision), case.name not in DROPOUT
    loss = training.fit(steps)["loss"]
    expected = _loss_on_cpu(case, steps) if compared else None
    figures = {"loss": loss, "on the CPU": expected, "waits a step": host_waits(training) if setup.cuda else None}
    if training.optimization.scaler is not None:
        figures["scale"] = training.optimization.scaler.get_scale()
    if training.engine.settings.precision != precision:
        figures["trains in"] = training.engine.settings.precision
    far = compared and abs(loss - expected) > NEAR[precision] * max(1, abs(expected))
    return Finding(f"{case}, {precision}", figures, "the loss differs from the CPU's" if far else "")


@cache
def _loss_on_cpu(case: Case, steps: int) -> float:
    return prepare(case, "cpu", "fp32").fit(steps)["loss"]


@part("phases", seconds=20)
def phases(setup: Setup) -> Iterator[Finding]:
    """Whether each phase of MCD uses the weights of the previous phase, as in fp32 on the CPU."""
    expected = feature_changes("cpu", "fp32")
    for precision in PRECISIONS:
        found = feature_changes(setup.device, precision)
        near = np.allclose(found, expected, rtol=0.25, atol=0.02)
        flaw = "" if near else f"the changes on the CPU in fp32 are {_numbers(expected)}"
        yield Finding(f"mcd, {precision}", {"changes of the features": _numbers(found)}, flaw)


def feature_changes(device: str, precision: str) -> list[float]:
    """How much a batch's features change from phase to phase of a step of MCD, as shares of their norm."""
    training = prepare(Case("mcd", 0, False), device, precision)
    method, seen = training.method, []
    plain = {"lr": 0.3, "schedule": "constant", "momentum": 0.0, "nesterov": False}
    optim = training.optimization.settings.model_copy(update=plain)
    training.optimization = training.engine.optimization(method, optim, 300)
    if training.optimization.scaler is not None:  # with the default scale the first steps overflow and are skipped
        training.optimization.scaler = torch.amp.GradScaler(training.engine.device.type, init_scale=256.0)
    generate = method.generate
    method.generate = lambda batch: (seen.append(generate(batch)), seen[-1])[1]
    training.fit(1)
    features = [tensor.detach().float() for tensor in seen]
    return [float((b - a).norm() / a.norm()) for a, b in itertools.pairwise(features)]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.3f}" for value in values)
