"""How long a training step and a predict pass take on this machine, measured on a few batches of the real thing."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sized
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

#: Steps that are not timed: cuDNN chooses its algorithms in them, torch.compile compiles, memory is allocated.
WARM_UP = 2
#: Batches that are timed, and the seconds after which no further one is.
MEASURED, MOST_SECONDS = 8, 6.0
#: Warming up is over, however few its steps, once it takes so many seconds.
WARM_SECONDS = 1.0
#: A larger share of the time spent on waiting for images than this is worth a word.
WAITING = 0.1


@dataclass(frozen=True)
class Pace:
    """Seconds of a batch, means over some. Of a job's processes the slowest counts."""

    images: float
    """Images of a batch in one process."""
    waiting: float
    """Seconds until the batch has come from the loader, with the device idle."""
    working: float
    """Seconds until the device has done with it."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.waiting + self.working

    @property
    def waits(self) -> bool:
        """Whether the loader, which works ahead, gives images more slowly than the device takes them."""
        return self.waiting > WAITING * self.seconds

    def describe_step(self, several: bool, loads: bool) -> str:
        """A training step, for people; `several`: there are several processes; `loads`: waiting counts."""
        seconds = self.seconds if loads else self.working
        each = " in each process" if several else ""
        return f"{seconds:.3f} s a step of {self.images:.0f} images{each}{self._share_of_waiting(loads)}"

    def describe_rate(self, several: bool, loads: bool) -> str:
        """The same of a predict pass."""
        rate = self.images / (self.seconds if loads else self.working)
        return f"{rate:,.0f} images a second{' in each process' if several else ''}{self._share_of_waiting(loads)}"

    def _share_of_waiting(self, loads: bool) -> str:
        return f", {100 * self.waiting / self.seconds:.0f} % of it waiting for images" if loads else ""


class Stopwatch:
    """Times a loop over batches. The device is waited for after every batch, so that work is timed, not its start.

    Args:
        device: what computes.
        skip: first batches that are not timed. Loader processes give their first batches all at once, and have made
            them while nobody asked.
        most_seconds: no further batch is given after so many; one is always timed.
        ranks: the processes of the job, which stop together.
    """

    def __init__(self, device: torch.device, skip: int, most_seconds: float, ranks: Ranks):
        self.device = device
        self.skip = skip
        self.most_seconds = most_seconds
        self.ranks = ranks
        self._rows: list[tuple[int, float, float]] = []

    def over(self, batches: Iterable[B]) -> Iterator[B]:
        """Pass batches on, timed from one request for a batch to the next."""
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
        """The means of what was timed."""
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
    """How long a training step takes. The network is trained by it.

    Args:
        engine, method, optimization: what trains.
        batches: of the stage.
        workers: loader processes that they come from.
        freeze_batch_norm: BatchNorm in eval mode.
    """
    first = 0
    for skip, steps, seconds in ((0, WARM_UP, WARM_SECONDS), (workers, MEASURED, MOST_SECONDS)):
        watch = Stopwatch(engine.device, skip, seconds, engine.ranks)
        window = batches.window(first, skip + steps)
        # One step more than there are: what ends an epoch is no part of a step.
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
    """How long a batch of a predict pass takes, and the prediction of the images that were timed.

    Every process predicts images of its own, from the first on.

    Args:
        engine: what predicts.
        images: all images of the pass.
        transform: what they are seen in.
    """
    size, world, workers = engine.predict_batch_size, engine.ranks.world, engine.workers(images.in_memory)

    def delivered(count: int, workers: int) -> Iterable[torch.Tensor]:
        some = mine.take(np.arange(min(count, len(mine))))
        return engine.delivered(predict_batches(some, transform, batch_size=size, workers=workers))

    # As many on every process: they look at the clock together.
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
    """A prediction of `count` images that repeats that of a few, to try out what comes after a predict pass."""
    features, logits = (np.resize(array, (count, array.shape[1])) for array in (sample.features, sample.logits))
    return Prediction(features, logits, sample.weight)


def peak_memory(device: torch.device) -> str | None:
    """What a CUDA device has held at most, and has, for people; None on other devices."""
    if device.type != "cuda":
        return None
    gib = 2**30
    held, whole = (
        torch.cuda.max_memory_reserved(device) / gib,
        torch.cuda.get_device_properties(device).total_memory / gib,
    )
    return f"{held:.1f} GiB of the {whole:.1f} GiB of {device} at the peak"


@dataclass(frozen=True)
class Trials:
    """How long the parts of a run take, tried out, and how often it does each."""

    stages: Mapping[str, tuple[int, Pace]]
    """Of each stage by name: its steps, and the pace of one."""
    predicted: int
    """Images of all predict passes."""
    predict: Pace
    """The pace of a batch of them."""

    def cost(self, engine: "Engine", workers: int, loads: bool = True) -> str:
        """What the whole run will take, in lines; without `loads` as if images came by themselves.

        Args:
            engine: what it was tried out on.
            workers: loader processes, which work ahead.
            loads: whether waiting for images counts.
        """
        world = engine.ranks.world

        def seconds(pace: Pace) -> float:
            return pace.seconds if loads else pace.working

        total = sum(steps * seconds(pace) for steps, pace in self.stages.values())
        total += self.predicted / world * seconds(self.predict) / self.predict.images
        steps = sum(steps for steps, _ in self.stages.values())
        todo, time = f"{steps:,} training steps, {self.predicted:,} images predicted", rough_duration(total)
        lines = [
            f"cost     {todo}: about {time} on {engine.device}, without choosing, reports and checkpoints",
            *(f"pace     {name:<8} {pace.describe_step(world > 1, loads)}" for name, (_, pace) in self.stages.items()),
            f"pace     predict  {self.predict.describe_rate(world > 1, loads)}",
        ]
        paces = {name: pace for name, (_, pace) in self.stages.items()} | {"predict": self.predict}
        if loads and workers and (slow := [name for name, pace in paces.items() if pace.waits]):
            lines.append(
                f"loading  is slower than the network in {', '.join(slow)}: more runtime.workers, data.cache=store or "
                "data.load_size=256 may help"
            )
        if memory := peak_memory(engine.device):
            lines.append(f"memory   {memory}")
        return "\n".join(lines)


def rough_duration(seconds: float) -> str:
    """An estimate in the unit that people would use: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
