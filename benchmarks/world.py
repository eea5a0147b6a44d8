"""Measure a job of several processes on this machine. torchrun starts this module once per process.

    torchrun --standalone --nproc_per_node=2 -m benchmarks.world FILE

It measures training steps and a predict pass of a digits job, whose batch is divided among the processes. It also
measures the averaging of gradients separately.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import median_seconds
from uda.adaptation.config import AdaptationConfig
from uda.core.distributed import Ranks, start
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT
from uda.models.settings import ModelSettings

NETWORKS = (("digits_cnn", 1), ("resnet18", 3), ("resnet101", 3))
NUM_CLASSES = 10


@dataclass(frozen=True)
class World:
    """The figures of a job with some number of processes. Times are those of the slowest process."""

    processes: int
    batch: int
    """Number of images in a training batch of all processes."""
    step_seconds: float
    predicted_per_second: float
    """Predicted images per second of all processes."""
    gradient_seconds: dict[str, float]
    """Seconds to average gradients, by the number of parameters."""


def run_world(processes: int, scale: float, repeats: int) -> World:
    """Start a job whose processes have one thread each, and return its figures. Raises UserError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "world.json")
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        job = ["-m", "benchmarks.world", str(path), "--scale", str(scale), "--repeats", str(repeats)]
        paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
        ended = subprocess.run(
            [sys.executable, "-m", *launcher, *job],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )
        if ended.returncode:
            raise UserError(f"the job of {processes} processes failed: {ended.stderr.strip()[-2000:]}")
        return World(**json.loads(path.read_text(encoding="utf-8")))


def measure_world(ranks: Ranks, scale: float, repeats: int) -> World:
    """Measure in this process. The figures are those of the slowest process, the same in all processes."""

    def slowest(work: Callable[[], object]) -> float:
        def together() -> None:
            work()
            ranks.maximum([0.0])

        work()
        # A fixed number of calls, because all processes must make the same number.
        seconds = [median_seconds(together, 1) for _ in range(repeats)]
        return float(np.median([ranks.maximum([value])[0] for value in seconds]))

    batch, step_seconds, predict_seconds = _digits(ranks, scale, slowest)
    return World(
        processes=ranks.world,
        batch=batch,
        step_seconds=step_seconds,
        predicted_per_second=1 / predict_seconds,
        gradient_seconds=dict(_gradients(ranks, slowest)) if ranks.world > 1 else {},
    )


def _digits(ranks: Ranks, scale: float, seconds_of: Callable) -> tuple[int, float, float]:
    """Images in a batch, seconds per training step, seconds per predicted image."""
    from uda.adaptation.methods import ADAPTATION_METHODS
    from uda.data.images import ImageArray
    from uda.data.loaders import Part, predict_batches, training_batches
    from uda.data.transforms import make_predict, make_train
    from uda.models.network import create_network
    from uda.training.device import set_up_process
    from uda.training.engine import Engine

    config = AdaptationConfig.load("digits_avh.yaml", ["runtime.device=cpu"])
    settings = config.self_training
    steps, count = max(1, round(20 * scale)), max(200, round(5000 * scale))
    torch.manual_seed(0)
    network = create_network(config.model, NUM_CLASSES, 1)
    set_up_process(config.runtime)
    engine = Engine(network, config.runtime, log=None, ranks=ranks)
    method = ADAPTATION_METHODS[config.method](network, config.method_settings())
    optimization = engine.optimization(method, settings.optim, steps)
    rng = np.random.default_rng(0)
    images = ImageArray(rng.integers(256, size=(count, 1, 28, 28), dtype=np.uint8), [str(i) for i in range(count)])
    labels = rng.integers(NUM_CLASSES, size=count)
    parts = [
        Part(images, np.arange(count), labels, make_train(config.transforms, augment), domain, is_target=bool(domain))
        for domain, augment in enumerate((config.transforms.source, config.transforms.target))
    ]
    batches = training_batches(
        parts,
        num_classes=NUM_CLASSES,
        batch_size=[settings.batch.source, settings.batch.selected],
        steps=steps,
        seed=(0,),
        workers=0,
        rank=ranks.rank,
        world=ranks.world,
    )
    rows = ranks.rows(count)
    predicted = predict_batches(
        images, make_predict(config.transforms), batch_size=engine.predict_batch_size, workers=0, rows=rows
    )
    step_seconds = seconds_of(lambda: engine.fit(method, batches, optimization, label="", steps=steps)) / steps
    predict_seconds = seconds_of(lambda: engine.predict(predicted, rows.stop - rows.start)) / count
    return settings.batch.source + settings.batch.selected, step_seconds, predict_seconds


def _gradients(ranks: Ranks, seconds_of: Callable):
    """Pairs of a number of parameters and the seconds to average their gradients."""
    from uda.models.network import create_network

    for backbone, channels in NETWORKS:
        network = create_network(ModelSettings(backbone=backbone, weights="none"), NUM_CLASSES, channels)
        parameters = list(network.parameters())
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        count = str(sum(parameter.numel() for parameter in parameters))
        yield count, seconds_of(lambda parameters=parameters: ranks.average_gradients(parameters))


def main(arguments: list[str] | None = None) -> None:
    """Run one process of the job. Rank 0 writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    with start() as ranks:
        world = measure_world(ranks, options.scale, options.repeats)
        if ranks.is_main:
            options.file.write_text(json.dumps(asdict(world)), encoding="utf-8")


if __name__ == "__main__":
    main()
