"""Runs on feature banks: a training step and a whole run against bare loops on tensors, and the making of a bank.

The bank has 10,000 images with features of width 1,280, half of them of the source. The network is a head of 256 with
BatchNorm and a classifier of 7 classes. A batch has 64 images.
"""

import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from benchmarks.contest import BENCHMARKS, Contest, at_first_call
from uda.adaptation.config import AdaptationConfig

if TYPE_CHECKING:
    from uda.data.loaders import Part

#: The smallest ratio of a training step: at most 15 % slower than a bare loop on tensors.
STEP_BAR = 1 / 1.15
#: The most seconds of a whole run.
RUN_SECONDS = 5.0
#: The smallest ratio of making a bank to predicting its images.
BANK_BAR = 0.95
WIDTH, NUM_CLASSES, HALF_BATCH = 1280, 7, 32
COUNT, SOURCE_STEPS, ROUNDS, ROUND_STEPS = 10_000, 200, 5, 40
#: Images of each of the two domains of a bank that is made, and their side.
IMAGES, SIDE = 256, 96
DOMAINS = ("photo", "sketch")


def _config(*overrides: str) -> AdaptationConfig:
    return AdaptationConfig.load("pacs_avh", ["runtime.device=cpu", "model.head=256", *overrides])


def _network(config: AdaptationConfig) -> nn.Module:
    from uda.models.network import network_on

    torch.manual_seed(0)
    return network_on(nn.Flatten(), WIDTH, config.model, NUM_CLASSES)


def _features(scale: float) -> tuple[Tensor, np.ndarray]:
    """Features (N, D) and labels (N,) that they tell of. The first half is the source."""
    count = max(4 * HALF_BATCH, round(COUNT * scale))
    generator = np.random.default_rng(0)
    labels = np.concatenate([np.arange(NUM_CLASSES), generator.integers(0, NUM_CLASSES, count // 2 - NUM_CLASSES)])
    labels = np.tile(labels, 2)
    centres = generator.normal(size=(NUM_CLASSES, WIDTH)).astype(np.float32)
    noise = generator.normal(size=(len(labels), WIDTH)).astype(np.float32)
    return torch.from_numpy(centres[labels] * 0.1 + noise), labels


def _parts(features: Tensor, labels: np.ndarray) -> "list[Part]":
    """The source and the target, with labels, as parts of batches."""
    from uda.data.features import FeatureArray, PlainFeatures
    from uda.data.loaders import Part

    images, transform = FeatureArray(features, [str(i) for i in range(len(labels))]), PlainFeatures(WIDTH)
    half = len(labels) // 2
    rows = np.arange(half), np.arange(half, len(labels))
    return [Part(images, own, labels[own], transform, number, number == 1) for number, own in enumerate(rows)]


def _batches(features: Tensor, labels: np.ndarray, steps: int):
    from uda.data.loaders import training_batches

    shares = [HALF_BATCH, HALF_BATCH]
    return training_batches(
        _parts(features, labels), num_classes=NUM_CLASSES, batch_size=shares, steps=steps, seed=(0,), workers=0
    )


def our_training(features: Tensor, labels: np.ndarray, steps: int) -> Callable[[], nn.Module]:
    """`Engine.fit` of self-training on batches of features. A call returns the trained network."""
    from uda.adaptation.methods import ADAPTATION_METHODS
    from uda.training.device import set_up_process
    from uda.training.engine import Engine

    config = _config()
    set_up_process(config.runtime)

    def train() -> nn.Module:
        network = _network(config)
        engine = Engine(network, config.runtime, log=None)
        method = ADAPTATION_METHODS["self_training"](network, config.method_settings())
        optimization = engine.optimization(method, config.self_training.optim, steps)
        batches = _batches(features, labels, steps)
        engine.fit(method, batches, optimization, label="bench", steps=steps, curves=lambda step, values: None)
        return network

    return train


def bare_training(features: Tensor, labels: np.ndarray, steps: int) -> Callable[[], nn.Module]:
    """The same updates as a bare loop on the same rows, with the same settings."""
    from uda.training.device import set_up_process, settle

    config = _config()
    set_up_process(config.runtime)
    fused = settle(config.runtime, _network(config)).fused
    ids = _batches(features, labels, steps).ids
    rows = torch.tensor([[int(name) for name in ids(step)] for step in range(steps)])
    optim, targets = config.self_training.optim, one_hot(torch.from_numpy(labels), NUM_CLASSES).float()

    def train() -> nn.Module:
        network = _network(config).train()
        model = nn.Sequential(network.head, network.classifier)
        sgd = torch.optim.SGD(
            model.parameters(),
            lr=optim.lr,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            weight_decay=optim.weight_decay,
            fused=fused or None,
        )
        for step, chosen in enumerate(rows):
            for group in sgd.param_groups:
                group["lr"] = optim.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = cross_entropy(model(features.index_select(0, chosen)), targets.index_select(0, chosen))
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        return network

    return train


@BENCHMARKS.register("bank_train")
def training_step(scale: float) -> Contest:
    """A training step on features, 32 + 32 of width 1,280, a head of 256, against a bare loop on the same rows."""
    features, labels = _features(scale)
    steps = max(1, round((SOURCE_STEPS + ROUNDS * ROUND_STEPS) * scale))
    return Contest(
        at_first_call(lambda: our_training(features, labels, steps)),
        at_first_call(lambda: bare_training(features, labels, steps)),
        per_call=steps,
        bar=STEP_BAR,
    )


@BENCHMARKS.register("bank_run")
def whole_run(scale: float) -> Contest:
    """A run of self-training on a bank of 10,000, 200 + 5 x 40 steps of 64, against a bare loop of as many steps."""
    features, labels = _features(scale)
    steps = max(2, round(SOURCE_STEPS * scale)), max(1, round(ROUND_STEPS * scale))
    kept = tempfile.TemporaryDirectory()  # deleted with the process
    folder, output = Path(kept.name), Path(kept.name) / "run"

    def ours() -> Callable[[], object]:
        from uda.adaptation.run import AdaptationRun
        from uda.training.device import set_up_process
        from uda.training.run_folder import RunLog

        half = len(labels) // 2
        for name, rows in zip(DOMAINS, (slice(0, half), slice(half, None)), strict=True):
            ids = [f"{name}/{i}" for i in range(half)]
            np.savez(folder / f"{name}.npz", features=features[rows].numpy(), labels=labels[rows], ids=ids)
        lengths = f"source.steps={steps[0]}", f"self_training.steps={steps[1]}", f"self_training.rounds={ROUNDS}"
        batches = "source.batch_size=64", f"self_training.batch={{source: {HALF_BATCH}, selected: {HALF_BATCH}}}"
        data = f"data.features={folder}", f"data.source={DOMAINS[0]}", f"data.target={DOMAINS[1]}", "data.dataset=null"
        config = _config(*data, *lengths, *batches, "report.page=false", f"output={output}")
        set_up_process(config.runtime)

        return lambda: AdaptationRun(config, RunLog(silent=True)).execute()

    return Contest(
        at_first_call(ours),
        at_first_call(lambda: bare_training(features, labels, steps[0] + ROUNDS * steps[1])),
        limit_seconds=RUN_SECONDS,
        before_ours=lambda: kept and shutil.rmtree(output, ignore_errors=True),
    )


@BENCHMARKS.register("bank_make")
def making(scale: float) -> Contest:
    """A bank of 2 x 256 photos at 96 pixels by EfficientNet-Lite0, against the predict pass of the photos."""
    kept = tempfile.TemporaryDirectory()
    folder, bank = Path(kept.name), Path(kept.name) / "bank"
    count = max(2, round(IMAGES * scale))
    config = _config(
        *(f"data.{role}={folder / name}" for role, name in zip(("source", "target"), DOMAINS, strict=True)),
        *("data.dataset=null", "model.weights=none", "data.cache=none", "runtime.workers=0"),
    )

    def ours() -> Callable[[], object]:
        from uda.feature_bank import make_bank
        from uda.training.device import set_up_process

        _draw_images(folder, count)
        set_up_process(config.runtime)
        return lambda: make_bank(config, bank, log=None)

    return Contest(
        at_first_call(ours),
        at_first_call(lambda: _bare_features(config, folder, count)),
        per_call=2 * count,
        bar=BANK_BAR,
        before_ours=lambda: kept and shutil.rmtree(bank, ignore_errors=True),
    )


def _draw_images(folder: Path, count: int) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for name in DOMAINS:
        for number in range(count):
            path = folder / name / f"class {number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            small = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(small).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)


def _bare_features(config: AdaptationConfig, folder: Path, count: int) -> Callable[[], object]:
    """The predict pass of a run, of both domains."""
    from uda.core.distributed import Ranks
    from uda.data.domains import load_alone
    from uda.data.transforms import make_predict
    from uda.models.network import create_network
    from uda.training.device import set_up_process
    from uda.training.engine import Engine

    _draw_images(folder, count)
    set_up_process(config.runtime)

    def predict() -> object:
        engine = Engine(create_network(config.model, NUM_CLASSES, 3), config.runtime, log=None)
        domains = (load_alone(config.data, str(folder / name), 0, lambda line: None, Ranks())[0] for name in DOMAINS)
        return [engine.predict_images(images, make_predict(config.transforms)).features for images in domains]

    return predict
