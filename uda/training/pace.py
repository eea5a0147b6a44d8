"""The time of a training step and of a predict pass on this machine, measured on a few real batches."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from uda.core.devices import synchronise
from uda.core.distributed import Ranks
from uda.data.loaders import predict_batches
from uda.models.network import Prediction

if TYPE_CHECKING:
    from uda.data.images import Images
    from uda.data.loaders import Batches
    from uda.data.transforms import Transform
    from uda.training.engine import Engine
    from uda.training.method import Method
    from uda.training.optimization import Optimization

B = TypeVar("B", bound=Sized)

#: Steps that are not timed. In them cuDNN chooses algorithms, torch.compile compiles and memory is allocated.
WARM_UP = 2
#: Batches that are timed, and the seconds after which no further batch is timed.
MEASURED, MOST_SECONDS = 8, 6.0
#: Seconds after which the warm-up ends, even if it has fewer steps.
WARM_SECONDS = 1.0
#: Share of time spent waiting for images above which the user is told.
WAITING = 0.1


@dataclass(frozen=True)
class Pace:
    """Mean time per batch. With several processes it is that of the slowest."""

    images: float
    """Images per batch in one process."""
    waiting: float
    """Seconds per batch that the device waits for the loader."""
    working: float
    """Seconds per batch that the device works."""

    @property
    def seconds(self) -> float:
        """Seconds per batch: waiting and working."""
        return self.waiting + self.working

    @property
    def waits(self) -> bool:
        """Whether the loader is slower than the device, although it works ahead."""
        return self.waiting > WAITING * self.seconds

    def describe_step(self, several: bool, loads: bool, what: str = "images") -> str:
        """Text on a training step.

        Args:
            several: whether there are several processes.
            loads: whether waiting counts.
            what: the word for what a batch has, `images` or `rows`.
        """
        seconds = self.seconds if loads else self.working
        each = " in each process" if several else ""
        return f"{seconds:.3f} s per step of {self.images:.0f} {what}{each}{self._share_of_waiting(loads, what)}"

    def describe_rate(self, several: bool, loads: bool, what: str = "images") -> str:
        """Text on a predict pass. The arguments are those of `describe_step`."""
        rate = self.images / (self.seconds if loads else self.working)
        each = " in each process" if several else ""
        return f"{rate:,.0f} {what} per second{each}{self._share_of_waiting(loads, what)}"

    def _share_of_waiting(self, loads: bool, what: str) -> str:
        return f", {100 * self.waiting / self.seconds:.0f} % of it waiting for {what}" if loads else ""


class Stopwatch:
    """Times a loop over batches. It waits for the device after every batch, so that the whole work is timed.

    Args:
        device: the device.
        skip: number of first batches that are not timed. Loader processes have these ready before they are needed.
        most_seconds: the loop ends after this many seconds. At least one batch is timed.
        ranks: the processes of the job. They stop together.
    """

    def __init__(self, device: torch.device, skip: int, most_seconds: float, ranks: Ranks):
        self.device = device
        self.skip = skip
        self.most_seconds = most_seconds
        self.ranks = ranks
        self._rows: list[tuple[int, float, float]] = []

    def over(self, batches: Iterable[B]) -> Iterator[B]:
        """Yield the batches, and time each from its request to the next one."""
        begun = asked = self._now()
        for number, batch in enumerate(batches):
            came = time.monotonic()
            yield batch
            done = self._now()
            (elapsed,) = self.ranks.maximum([done - begun])
            late = elapsed > self.most_seconds
            if late or number >= self.skip:
                self._rows.append((len(batch), came - asked, done - came))
            if late:
                return
            asked = time.monotonic()

    def pace(self) -> Pace:
        """Means over the timed batches."""
        images, waiting, working = np.mean(self._rows, axis=0).tolist()
        return Pace(images, *self.ranks.maximum([waiting, working]))

    def _now(self) -> float:
        synchronise(self.device)
        return time.monotonic()


def training_pace(
    engine: "Engine",
    method: "Method",
    optimization: "Optimization",
    batches: "Batches",
    workers: int,
    freeze_batch_norm: bool = False,
) -> Pace:
    """Measure the pace of training steps. The network is trained in them.

    Args:
        engine, method, optimization: as for training.
        batches: batches of the stage.
        workers: number of loader processes.
        freeze_batch_norm: keep BatchNorm in eval mode.
    """
    first = 0
    for skip, steps, seconds in ((0, WARM_UP, WARM_SECONDS), (workers, MEASURED, MOST_SECONDS)):
        watch = Stopwatch(engine.device, skip, seconds, engine.ranks)
        window = batches.window(first, skip + steps)
        # One step more than there are, because the work at the end of an epoch must not count.
        engine.fit(
            method,
            watch.over(engine.delivered(window)),
            optimization,
            label="dry run",
            steps=len(window) + 1,
            freeze_batch_norm=freeze_batch_norm,
        )
        first += len(window)
    return watch.pace()


def predict_pace(engine: "Engine", images: "Images", transform: "Transform") -> tuple[Pace, Prediction]:
    """Measure the pace of a predict pass. Returns it and the prediction of the timed images.

    Each process predicts its own images.

    Args:
        engine: predicts.
        images: all images of the pass.
        transform: makes the network's inputs.
    """
    size, world, workers = engine.predict_batch_size, engine.ranks.world, engine.workers(images.in_memory)

    def delivered(count: int, workers: int) -> Iterable[torch.Tensor]:
        some = mine.take(np.arange(min(count, len(mine))))
        return engine.delivered(predict_batches(some, transform, batch_size=size, workers=workers))

    # The same number in every process, because all processes compare their clocks after every batch.
    rows = engine.ranks.rows(len(images)).start + np.arange(max(1, len(images) // world))
    mine = images.take(rows % len(images))
    for batch in Stopwatch(engine.device, 0, WARM_SECONDS, engine.ranks).over(delivered(size, workers=0)):
        engine.predict([batch], len(batch))
    skip = min(workers, -(-len(mine) // size) - 1)
    watch = Stopwatch(engine.device, skip, MOST_SECONDS, engine.ranks)
    batches = watch.over(delivered((skip + MEASURED) * size, workers))
    found = [engine.predict([batch], len(batch)) for batch in batches]
    features, logits = (np.concatenate([getattr(part, name) for part in found]) for name in ("features", "logits"))
    return watch.pace(), Prediction(features, logits, found[-1].weight)


def as_if_of(sample: Prediction, count: int) -> Prediction:
    """A prediction of `count` images that repeats `sample`, to try out the work after a predict pass."""
    features, logits = (np.resize(array, (count, array.shape[1])) for array in (sample.features, sample.logits))
    return Prediction(features, logits, sample.weight)


def peak_memory(device: torch.device) -> str | None:
    """Text on the peak and total memory of a CUDA device; None on other devices."""
    if device.type != "cuda":
        return None
    gib = 2**30
    held, whole = (
        torch.cuda.max_memory_reserved(device) / gib,
        torch.cuda.get_device_properties(device).total_memory / gib,
    )
    return f"peak {held:.1f} GiB of the {whole:.1f} GiB of {device}"


@dataclass(frozen=True)
class Trials:
    """Measured pace of the parts of a run, and how often each part occurs."""

    stages: Mapping[str, tuple[int, Pace]]
    """For each stage by name: its number of steps and the pace of a step."""
    predicted: int
    """Number of images of all predict passes."""
    predict: Pace
    """Pace of a batch of a predict pass."""

    def seconds(self, world: int, loads: bool = True) -> float:
        """Estimated time of the whole run. `world`: number of processes. `loads`: whether waiting for images counts."""

        def of(pace: Pace) -> float:
            return pace.seconds if loads else pace.working

        stages = sum(steps * of(pace) for steps, pace in self.stages.values())
        return stages + self.predicted / world * of(self.predict) / self.predict.images

    def cost(self, engine: "Engine", workers: int, loads: bool = True) -> str:
        """Lines with the estimated time and memory of the whole run.

        Args:
            engine: the engine that the pace was measured with.
            workers: number of loader processes.
            loads: whether waiting for images counts.
        """
        world = engine.ranks.world

        on_features = engine.network.on_features
        what = "rows" if on_features else "images"
        steps = sum(steps for steps, _ in self.stages.values())
        todo = f"{steps:,} training steps, {self.predicted:,} {what} predicted"
        time = rough_duration(self.seconds(world, loads))
        lines = [
            f"cost     {todo}: about {time} on {engine.device}, without selection, reports and checkpoints",
            *(
                f"pace     {name:<8} {pace.describe_step(world > 1, loads, what)}"
                for name, (_, pace) in self.stages.items()
            ),
            f"pace     predict  {self.predict.describe_rate(world > 1, loads, what)}",
        ]
        paces = {name: pace for name, (_, pace) in self.stages.items()} | {"predict": self.predict}
        if loads and workers and not on_features and (slow := [name for name, pace in paces.items() if pace.waits]):
            lines.append(
                f"loading  is slower than the network in {', '.join(slow)}; more runtime.workers, data.cache=store or "
                "data.load_size=256 may help"
            )
        if memory := peak_memory(engine.device):
            lines.append(f"memory   {memory}")
        return "\n".join(lines)


#: The pace of a run is that of its last parts.
LAST_PARTS = 5


def seconds_left(done: Sequence[tuple[float, float]], todo: Sequence[float]) -> float | None:
    """Seconds that the parts of a run to come will take, by the pace of its last parts; None if none is done.

    A part is taken to cost a + b * work seconds, with a and b >= 0 by least squares: the passes over all images take
    the same time in every round, and the steps grow with the portion. If all parts had the same work, a is 0.

    Args:
        done: work, such as the number of steps, and seconds of each part that is done.
        todo: work of each part to come.
    """
    if not todo:
        return 0.0
    done = [(work, seconds) for work, seconds in done if work > 0][-LAST_PARTS:]
    if not done:
        return None
    work, seconds = np.array(done, dtype=float).T
    constant, each = 0.0, float(seconds.sum() / work.sum())
    if (spread := work - work.mean()).any():
        each = float(spread @ seconds / (spread @ spread))
        constant = float(seconds.mean() - each * work.mean())
        if each < 0:
            constant, each = float(seconds.mean()), 0.0
        elif constant < 0:
            constant, each = 0.0, float(work @ seconds / (work @ work))
    return sum(constant + each * part for part in todo)


def rough_duration(seconds: float) -> str:
    """A duration as text in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
