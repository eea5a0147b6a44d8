"""Parts with rates: training steps and predict passes of a large network, the loader, torch.compile."""

import collections
import gc
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.core.errors import UserError
from uda.data.batch import Batch
from uda.data.images import ImageArray, ImageFiles, Images
from uda.data.loaders import Batches, Part, predict_batches, training_batches
from uda.data.transforms import make_predict, make_train
from uda.device_check.parts import Finding, Setup, part
from uda.models.network import Network, create_network
from uda.training.device import has_compiler, set_up_process
from uda.training.engine import Engine

NUM_CLASSES = 12


def _config(setup: Setup, *overrides: str) -> AdaptationConfig:
    """VisDA's recipe with random weights. On a CPU, the network and the images are smaller."""
    small = ["model.backbone=resnet18", "transforms.size=32", "transforms.resize=40"] if setup.tiny else []
    common = [f"runtime.device={setup.device}", "model.weights=none", *small]
    return AdaptationConfig.load("visda_avh", [*common, *overrides])


def _array(count: int, side: int) -> ImageArray:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8)
    return ImageArray(pixels, [str(i) for i in range(count)])


def _training_batches(config: AdaptationConfig, images: Images, batch_size: int, steps: int, workers: int) -> Batches:
    count, transform = len(images.ids), make_train(config.transforms, config.transforms.source)
    labels = np.arange(count) % NUM_CLASSES
    whole = Part(images, np.arange(count), labels, transform, domain=0, is_target=False)
    return training_batches(
        [whole],
        num_classes=NUM_CLASSES,
        batch_size=[batch_size],
        steps=steps,
        seed=(0,),
        workers=workers,
    )


def _images_on(engine: Engine, config: AdaptationConfig, count: int) -> Tensor:
    """A batch for predicting, on the device."""
    images, transform = _array(count, config.transforms.resize), make_predict(config.transforms)
    (batch,) = predict_batches(images, transform, batch_size=count, workers=0)
    return batch.to(engine.device, memory_format=engine.memory_format)


class _Steps:
    """Training steps of a network on batches that are already on the device."""

    def __init__(self, config: AdaptationConfig, batch_size: int):
        torch.manual_seed(0)
        network = create_network(config.model, NUM_CLASSES, 3)
        set_up_process(config.runtime)
        self.engine = Engine(network, config.runtime, log=None)
        self.method = ADAPTATION_METHODS["self_training"](network, config.method_settings())
        self.optimization = self.engine.optimization(self.method, config.self_training.optim, 10_000)
        images = _array(batch_size, config.transforms.resize)
        batches = _training_batches(config, images, batch_size, 2, workers=0)
        self.batches: list[Batch] = [batch.to(self.engine.device, self.engine.memory_format) for batch in batches]

    def seconds(self, setup: Setup, steps: int) -> float:
        """Seconds per step."""
        batches = itertools.islice(itertools.cycle(self.batches), steps)
        setup.synchronise()
        started = time.monotonic()
        self.engine.fit(self.method, batches, self.optimization, label="check", steps=steps)
        setup.synchronise()
        return (time.monotonic() - started) / steps


@part("resnet101", seconds=110)
def resnet101(setup: Setup) -> Iterator[Finding]:
    """ResNet-101 at 224 pixels: training steps with batches of 32 and 128, predict passes, peak memory."""
    network, sizes = ("resnet18 at 32 px", (8,)) if setup.tiny else ("resnet101", (32, 128))
    for batch_size, precision in itertools.product(sizes, ("bf16",) if setup.tiny else ("fp32", "bf16", "fp16")):
        what = f"train {network}, batch {batch_size}, {precision}"
        yield _or_memory(what, partial(_train, setup, batch_size, precision, what))
    ways = (("fp32", "false"), ("fp32", "true"), ("bf16", "true"), ("fp16", "true"))
    for batch_size, (precision, tf32) in itertools.product(sizes, ways[:1] if setup.tiny else ways):
        name = precision + " with TF32" * (precision == "fp32" and tf32 == "true")
        what = f"predict {network}, batch {batch_size}, {name}"
        yield _or_memory(what, partial(_predict, setup, batch_size, precision, tf32, what))


def _or_memory(what: str, measure: Callable[[], Finding]) -> Finding:
    """The finding, or `out of memory`. Other sizes may still fit into the memory."""
    try:
        return measure()
    except (torch.OutOfMemoryError, UserError) as error:
        if "memory" not in str(error):
            raise
        return Finding(what, {"images a second": "out of memory"})


def _train(setup: Setup, batch_size: int, precision: str, what: str) -> Finding:
    _forget_peak(setup)
    steps = _Steps(_config(setup, f"runtime.precision={precision}"), batch_size)
    first = steps.seconds(setup, 1)
    if setup.tiny:
        return Finding(what, {"images a second": None, "ms a step": None, "first step s": None, "peak GiB": None})
    steps.seconds(setup, 3)
    seconds = steps.seconds(setup, 30)
    return Finding(
        what,
        {
            "images a second": batch_size / seconds,
            "ms a step": 1e3 * seconds,
            "first step s": first,
            "peak GiB": _peak(setup),
        },
    )


def _predict(setup: Setup, batch_size: int, precision: str, tf32: str, what: str) -> Finding:
    _forget_peak(setup)
    config = _config(
        setup,
        f"runtime.predict_precision={precision}",
        f"runtime.tf32={tf32}",
        f"runtime.predict_batch_size={batch_size}",
    )
    set_up_process(config.runtime)
    engine = Engine(create_network(config.model, NUM_CLASSES, 3), config.runtime, log=None)
    batch = _images_on(engine, config, batch_size)

    def seconds(count: int) -> float:
        setup.synchronise()
        started = time.monotonic()
        engine.predict([batch] * count, count * batch_size)
        setup.synchronise()
        return time.monotonic() - started

    seconds(1 if setup.tiny else 2)
    if setup.tiny:
        return Finding(what, {"images a second": None, "peak GiB": None})
    count = 10
    return Finding(what, {"images a second": count * batch_size / seconds(count), "peak GiB": _peak(setup)})


def _forget_peak(setup: Setup) -> None:
    gc.collect()
    if setup.cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)


def _peak(setup: Setup) -> float | None:
    return torch.cuda.max_memory_allocated(setup.device) / 2**30 if setup.cuda else None


@part("loader", seconds=70)
def loader(setup: Setup) -> Iterator[Finding]:
    """Images per second from JPEG and PNG files: reading only, a training epoch, a predict pass."""
    with tempfile.TemporaryDirectory() as folder:
        for kind, side in (("jpg", (500, 375)), ("png", (384, 216))):
            images = _files(Path(folder), kind, side, 16 if setup.tiny else 512)
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            for workers in (1,) if setup.tiny else sorted({2, min(8, cores), min(16, cores)}):
                yield _loading(setup, images, workers, f"{kind} {side[0]}x{side[1]}, {workers} workers")


def _files(folder: Path, kind: str, side: tuple[int, int], count: int) -> ImageFiles:
    """Write smooth random images to files."""
    random = np.random.default_rng(0)
    names = [f"{i}.{kind}" for i in range(count)]
    for name in names:
        small = Image.fromarray(random.integers(0, 256, (16, 21, 3), dtype=np.uint8))
        small.resize(side, Image.Resampling.BICUBIC).save(folder / name, quality=92)
    return ImageFiles(str(folder), names)


def _loading(setup: Setup, images: ImageFiles, workers: int, what: str) -> Finding:
    """Measure the loader. The network is very small, so the loader sets the pace."""
    config = _config(setup, "runtime.precision=fp32")
    network = Network(nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten()), 48, NUM_CLASSES)
    set_up_process(config.runtime)
    engine = Engine(network, config.runtime, log=None)
    method = ADAPTATION_METHODS["self_training"](network, config.method_settings())
    batch_size, steps = (8, 4) if setup.tiny else (32, 100)
    optimization = engine.optimization(method, config.self_training.optim, 10 * steps)
    made = partial(_training_batches, config, images, batch_size, steps, workers)
    transform = make_predict(config.transforms)
    predicted = predict_batches(images, transform, batch_size=2 * batch_size, workers=workers)
    passes = {
        "read a second": (batch_size * steps, lambda: collections.deque(made(), maxlen=0)),
        "trained on": (
            batch_size * steps,
            lambda: engine.fit(method, made(), optimization, label="check", steps=steps),
        ),
        "predicted": (len(images.ids), lambda: engine.predict(predicted, len(images.ids))),
    }
    rates = {}
    for name, (count, work) in passes.items():
        started = time.monotonic()
        work()
        setup.synchronise()
        rates[name] = None if setup.tiny else count / (time.monotonic() - started)
    return Finding(what, rates)


@part("compile", seconds=90)
def compiled(setup: Setup) -> Iterator[Finding]:
    """torch.compile of ResNet-50: seconds of the first step, of later steps and of the first predict pass."""
    kind = torch.device(setup.device).type
    if setup.tiny or not has_compiler(kind):
        why = "takes minutes on a CPU" if setup.tiny else "no compiler on this machine"
        yield Finding(f"torch.compile ({why})", {"first step s": None})
        return
    seconds = {}
    for on in ("false", "true"):
        config = _config(setup, f"runtime.compile={on}", "model.backbone=resnet50")
        steps = _Steps(config, 32)
        first = steps.seconds(setup, 1)
        steps.seconds(setup, 3)
        seconds[on] = steps.seconds(setup, 30)
        batch = _images_on(steps.engine, config, 32)
        started = time.monotonic()
        steps.engine.predict([batch], 32)
        setup.synchronise()
        predict = time.monotonic() - started
        name = "compiled" if on == "true" else "not compiled"
        figures = {"first step s": first, "ms a step": 1e3 * seconds[on], "first predict s": predict}
        yield Finding(f"resnet50, batch 32, {name}", figures)
