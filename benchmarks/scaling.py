"""How time and memory of a round's work outside the network grow with images, classes, width and parameters.

`measure_curves` runs each piece of work at several sizes, each size in a fresh process. It calls the same functions as
a run, with random predictions. Time and memory depend only on the sizes, not on the values.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import measure
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.settings import SelfTrainingSettings
from uda.data.settings import DataSettings
from uda.models.settings import ModelSettings
from uda.selection.thresholds import PseudoLabels

#: Default sizes while another size grows: VisDA-2017's classes, and the width of its network's features.
NUM_CLASSES, WIDTH = 12, 512
#: Classes of the stream of scores, as in street scenes.
STREAM_CLASSES = 19
PORTION = 0.2
_CHUNK_ROWS = 1 << 20
#: Backbone, number of image channels and head of each checkpoint.
NETWORKS = (("digits_cnn", 1, None), ("resnet18", 3, 512), ("resnet50", 3, 512), ("resnet101", 3, 512))

#: Name of the curve of the sum of several pieces of work.
ALL = "all of these"

Works = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Point:
    """One measurement."""

    size: int
    seconds: float
    """Median seconds of a call."""
    mib: float | None
    """Peak memory of a call beyond its inputs; for a checkpoint, the size of the file; None: not measured."""


@dataclass(frozen=True)
class Curve:
    """One piece of work at growing sizes."""

    name: str
    axis: str
    """What grows: N, K, D or P (parameters)."""
    points: tuple[Point, ...]
    """The points, in ascending order of size."""

    @property
    def sizes(self) -> list[int]:
        """The sizes, ascending."""
        return [point.size for point in self.points]

    def values(self, field: str) -> list:
        """`seconds` or `mib` of every point."""
        return [getattr(point, field) for point in self.points]

    def exponent(self, field: str) -> float | None:
        """The exponent a of value ~ size^a, fitted to the larger half of the points; None if it cannot be fitted."""
        return fitted_exponent(self.sizes, self.values(field))

    def seconds_at(self, size: float) -> float:
        """Seconds at any size.

        Between two points, the curve is a straight line on logarithmic axes. Beyond the last point, it grows by the
        exponent. Below the first point, it is constant.
        """
        seconds = np.interp(math.log(size), np.log(self.sizes), np.log(self.values("seconds")))
        beyond = math.log(max(1.0, size / self.sizes[-1]))
        return float(np.exp(seconds + beyond * (self.exponent("seconds") or 0.0)))


def fitted_exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Least-squares slope of log value over log size, for the upper half of the points with the middle point.

    None if there are fewer than two of these points, or if a value is not above 0.
    """
    first = len(sizes) // 2 if len(sizes) > 2 else 0
    x, y = sizes[first:], values[first:]
    if len(x) < 2 or min(y) <= 0:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def choice_work(num_images: int, num_classes: int, width: int) -> Works:
    """The choice of a round: scores, thresholds and pseudo-labels of the selector and of softmax."""
    from uda.adaptation.pseudo_labels import label_target
    from uda.core.distributed import Ranks

    prediction = _prediction(num_images, num_classes, width)
    config = AdaptationConfig(
        name="scaling",
        data=DataSettings(source="made here", target="made here"),
        self_training=SelfTrainingSettings(selector="avc"),
    )
    return {"choice": lambda: label_target(prediction, config, 0, num_images, Ranks())}


def evaluation_work(num_images: int, num_classes: int, width: int) -> Works:
    """Work of rank 0 only in a round: oracle accuracy, figures of the choice, validators, `pseudo_labels.csv`."""
    from uda.adaptation.pseudo_labels_csv import write_pseudo_labels
    from uda.data.domains import TargetLabels
    from uda.evaluation.accuracy import accuracy, selection_metrics
    from uda.evaluation.validators import VALIDATORS

    prediction = _prediction(num_images, num_classes, width)
    rng = np.random.default_rng(0)
    labels = TargetLabels(rng.integers(num_classes, size=num_images))
    classes = [f"class {k}" for k in range(num_classes)]
    ids = [f"validation/{i:08d}.jpg" for i in range(num_images)]
    previous = rng.integers(num_classes, size=num_images)
    pseudo, softmax = (
        PseudoLabels(
            labels=prediction.logits.argmax(1),
            scores=rng.random(num_images, np.float32),
            ratios=rng.random(num_images),
            selected=rng.random(num_images) < PORTION,
            flipped=rng.random(num_images) < 0.01,
            thresholds=np.full(num_classes, 0.5),
        )
        for _ in range(2)
    )

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_pseudo_labels(Path(folder, "pseudo_labels.csv"), pseudo, ids, classes)

    return {
        "accuracy": lambda: accuracy(prediction, labels, classes),
        "figures of the choice": lambda: selection_metrics(pseudo, prediction, softmax, labels, classes),
        "validator snd": lambda: VALIDATORS["snd"](prediction),  # the only one that grows with N squared, up to a limit
        "other validators": lambda: [v(prediction, previous) for name, v in VALIDATORS.items() if name != "snd"],
        "pseudo_labels.csv": write,
    }


def stream_work(num_images: int) -> Works:
    """Thresholds of a stream of scores. Scores are made chunk by chunk, the same in every pass, and are not kept."""
    from uda.selection.streaming_thresholds import stream_thresholds

    rows = min(num_images, _CHUNK_ROWS)
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(STREAM_CLASSES, (rows,), generator=generator, dtype=torch.int8).numpy()
    best = torch.empty(rows).normal_(4, 4, generator=generator).abs_().sigmoid_().numpy()
    starts = range(0, num_images, rows)

    def chunks():
        # Chunks have different scores, because the search only counts equal scores.
        for start in starts:
            count = min(rows, num_images - start)
            yield classes[:count], best[:count] * np.float32(1 - start / (4 * num_images))

    return {"stream": lambda: stream_thresholds(chunks, PORTION, STREAM_CLASSES)}


def measure_works(build: Callable[..., Works], sizes: tuple, repeats: int) -> tuple[dict[str, float], float]:
    """Seconds of each piece of work of `build(*sizes)`, and the peak in MiB of all of them in order.

    Must run in a fresh process, because memory that earlier work leaves to the allocator would hide later peaks.
    """

    def all_of(works: Works) -> None:
        for work in works.values():
            work()

    all_of(build(*(min(size, 256) for size in sizes)))  # a first call, so that imports and threads are not measured
    works = build(*sizes)
    peak = measure.peak_mib(lambda: all_of(works))
    return {name: measure.median_seconds(work, repeats) for name, work in works.items()}, peak


def measure_checkpoint(backbone: str, channels: int, head: int | None, repeats: int) -> Point:
    """Measure the saving of a network's and an optimiser's state: parameters, seconds, size of the file."""
    from uda.models.network import create_network
    from uda.training.checkpoint import Checkpoints, Progress
    from uda.training.optimization import Optimization

    network = create_network(ModelSettings(backbone=backbone, weights="none", head=head), NUM_CLASSES, channels)
    optimization = Optimization(network.parameter_groups(), SelfTrainingSettings().optim, 1)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimization.update()
    state = {"network": network.state_dict(), "optimization": optimization.state_dict()}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder))
        seconds = measure.median_seconds(lambda: checkpoints.save(Progress(), state), repeats)
        size = checkpoints.newest.stat().st_size / 2**20
    return Point(sum(parameter.numel() for parameter in network.parameters()), seconds, size)


def measure_curves(scale: float, repeats: int, log: Callable[[str], None] = print) -> dict[str, list[Curve]]:
    """Measure all curves. Returns them by their block in the document.

    With several pieces of work, the last curve is their sum.

    Args:
        scale: share of the full numbers of images, in (0, 1].
        repeats: number of calls for the median.
        log: called with a line before each measurement.
    """

    def images(count: float) -> int:
        return max(NUM_CLASSES, round(count * scale))

    def curves(build: Callable[..., Works], axis: str, sizes: Sequence[int], full: Callable[[int], tuple]) -> list:
        found: dict[str, list[Point]] = {}
        whole = []
        for size in sizes:
            log(f"{build.__name__}: {axis} = {size:,}")
            seconds, peak = measure.in_fresh_process(measure_works, build, full(size), repeats)
            for name, value in seconds.items():
                found.setdefault(name, []).append(Point(size, value, None))
            whole.append(Point(size, sum(seconds.values()), peak))
        if len(found) == 1:
            return [Curve(*found, axis, tuple(whole))]
        return [*(Curve(name, axis, tuple(points)) for name, points in found.items()), Curve(ALL, axis, tuple(whole))]

    many = sorted({images(count) for count in (1e4, 3e4, 1e5, 3e5, 1e6)})
    streamed = sorted({images(count) for count in (1e5, 1e6, 1e7, 1e8)})
    by_parameters = []
    for network in NETWORKS:
        log(f"checkpoint: {network[0]}")
        by_parameters.append(measure.in_fresh_process(measure_checkpoint, *network, repeats))
    return {
        "choice": [
            *curves(choice_work, "N", many, lambda n: (n, NUM_CLASSES, WIDTH)),
            *curves(choice_work, "K", (10, 30, 100, 300, 1000), lambda k: (images(20_000), k, WIDTH)),
            *curves(choice_work, "D", (128, 256, 512, 1024, 2048), lambda d: (images(50_000), NUM_CLASSES, d)),
        ],
        "rank0": curves(evaluation_work, "N", many, lambda n: (n, NUM_CLASSES, WIDTH)),
        "stream": curves(stream_work, "N", streamed, lambda n: (n,)),
        "checkpoint": [Curve("checkpoint", "P", tuple(by_parameters))],
    }


def _prediction(num_images: int, num_classes: int, width: int):
    """A prediction with features as after a ReLU, and logits for which only a few classes are likely."""
    from uda.models.network import Prediction

    generator = torch.Generator().manual_seed(0)
    features = torch.empty(num_images, width).normal_(generator=generator).relu_()
    weight = torch.randn(num_classes, width, generator=generator).mul_(4 / width**0.5)
    return Prediction(features.numpy(), (features @ weight.T).numpy(), weight.numpy())
