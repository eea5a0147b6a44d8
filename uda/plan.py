"""What a run will do and what it will cost, for a person to read before it starts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uda.data.loaders import epoch_batches
from uda.device import describe
from uda.pace import Pace, peak_memory, predict_pace, training_pace
from uda.thresholds import portion_schedule

if TYPE_CHECKING:
    from uda.adaptation.config import AdaptationConfig
    from uda.engine import Engine
    from uda.rounds import Run
    from uda.session import Session


def epoch_steps(natural: int, epochs: int, steps: int | None) -> list[int]:
    """Steps of each epoch of a stage: `epochs` whole ones, or as many as `steps` in all need, the last one cut."""
    if steps is None:
        return [natural] * epochs
    whole, rest = divmod(steps, natural)
    return [natural] * whole + ([rest] if rest else [])


def plan(run: "Run") -> str:
    """What will be done, in lines."""
    config, network, work = run.config, run.engine.network, work_of_run(run)
    source, target = run.domains.source.images, run.domains.target.images
    parameters = sum(p.numel() for p in network.parameters())
    if config.source.checkpoint:
        start = f"checkpoint {config.source.checkpoint}"
    elif not config.trains_source:
        start = "no stage of its own"
    else:
        start = f"{work.source_steps:,} steps of {config.source.batch_size}"
    lines = [
        f"run      {config.name}, seed {config.seed}, method {config.method} -> {run.folder.path}",
        f"data     {_images(len(source), 'labelled source', config.data.sources)}, "
        f"{_images(len(target), 'target', config.data.targets)}{_labels_known(run)}, {len(run.classes)} classes",
        f"network  {config.model.backbone}, features {network.weight.shape[1]}, {parameters:,} parameters",
        compute_line(run, source.in_memory),
        f"source   {start}",
    ]
    if run.domains.labelled is not None:
        lines.append(
            f"labelled {len(run.domains.labelled.images):,} target images with labels, "
            f"{config.data.labelled_per_batch} in every batch"
        )
    if run.rounds:
        training, portion = config.self_training, config.self_training.portion
        last = portion_schedule(run.rounds - 1, portion.start, portion.step, portion.max)
        epochs = f"{training.epochs} epoch{'s' if training.epochs > 1 else ''}"
        lines.append(
            f"rounds   {run.rounds}, selector {training.selector}, regularizer {training.regularizer}, "
            f"portion {portion.start:g} to {last:g}, {f'{training.steps:,} steps' if training.steps else epochs} each"
        )
    if run.method.adapts:
        adaptation = config.adaptation
        batch = adaptation.batch
        source_images = f"{batch.source} source + " if batch.source else ""
        lines.append(
            f"adapts   {adaptation.steps:,} steps of {source_images}{batch.target} target images, a report "
            f"every {adaptation.interval:,}"
        )
    return "\n".join(lines)


def _labels_known(run: "Run") -> str:
    """Of how many target images the label is known, where not of all: accuracies count no others."""
    labels, count = run.domains.target_labels, len(run.domains.target.images)
    if labels is None:
        return " without labels"
    return f" ({labels.count:,} with labels, which measure accuracy)" if labels.count < count else ""


def _images(count: int, what: str, domains: Sequence[str]) -> str:
    return f"{count:,} {what} images" + (f" of {len(domains)} domains" if len(domains) > 1 else "")


def compute_line(run: "Session", in_memory: bool) -> str:
    """How a run is computed on this machine; a resume may have found another one.

    `in_memory`: whether its training images are.
    """
    world = run.ranks.world
    job = f"{world} processes, each " if world > 1 else ""
    return f"compute  {job}{describe(run.engine.settings, run.engine.workers(in_memory))}"


@dataclass(frozen=True)
class Work:
    """What a run has to do, as if every class kept its portion of the target images."""

    source_steps: int
    """Optimiser steps of the source stage."""
    source_images: int
    """Images in each of them, of all processes."""
    later_steps: int
    """Optimiser steps of all rounds, or of the adaptation."""
    later_images: int
    """Images in each of them, of all processes; one in two views counts twice."""
    reports: int
    """Rounds, or intervals of the adaptation; a predict pass stands at the end of each."""
    predicted: int
    """Images that go through the network in eval mode: predict passes, and AdaBN's where it is asked for."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.source_steps + self.later_steps


def work_of(config: "AdaptationConfig", num_source: int, num_target: int, parts: int = 1) -> Work:
    """The work that a config asks for.

    Args:
        config: the config.
        num_source, num_target: images of all source and of all target domains.
        parts: that a batch is dealt out to, processes times `runtime.accumulate`.
    """
    from uda.methods import ADAPTATION_METHODS

    method, source = ADAPTATION_METHODS[config.method], config.source
    labelled = config.data.labelled_per_batch if config.data.target_labelled else 0
    source_steps = 0
    if config.trains_source:
        natural = epoch_batches(num_source, source.batch_size, least=2 * parts)
        source_steps = sum(epoch_steps(natural, source.epochs, source.steps))
    if method.adapts:
        stage, batch = config.adaptation, config.adaptation.batch
        steps, images = [stage.steps], batch.source + method.views * batch.target
        reports = math.ceil(stage.steps / stage.interval)
    else:
        stage, batch = config.self_training, config.self_training.batch
        images = batch.mixed or batch.source + batch.selected + batch.unlabelled
        steps = steps_of_rounds(config, num_source, num_target) if method.rounds else []
        reports = len(steps)
    has_source_model = config.trains_source or bool(source.checkpoint)
    # What the first round, or the first preparation, is made from: the source model's prediction unless AdaBN comes.
    begins = bool(reports) and (method.rounds or method.prepares)
    first = begins and (stage.adapt_batch_norm or not has_source_model)
    adapted = (reports + first) * stage.adapt_batch_norm + has_source_model * source.adapt_batch_norm
    return Work(
        source_steps,
        source.batch_size + labelled,
        sum(steps),
        images + labelled,
        reports,
        (has_source_model + reports + first) * num_target + adapted * min(stage.adapt_images, num_target),
    )


def steps_of_rounds(config: "AdaptationConfig", num_source: int, num_target: int) -> list[int]:
    """Optimiser steps of each round, for so many images of either domain, as if every class kept its portion."""
    training, batch = config.self_training, config.self_training.batch
    steps = []
    for index in range(training.rounds):
        source, selected = (
            portion_schedule(index, schedule.start, schedule.step, schedule.max) * count
            for schedule, count in ((training.source_share, num_source), (training.portion, num_target))
        )
        if batch.mixed:
            natural = (source + selected) / batch.mixed
        else:
            natural = max(source / batch.source, selected / batch.selected)
        steps.append(training.steps or math.ceil(natural) * training.epochs)
    return steps


def work_of_run(run: "Run") -> Work:
    """The work of a run on its own images."""
    domains, parts = run.domains, run.ranks.world * run.config.runtime.accumulate
    return work_of(run.config, len(domains.source.images), len(domains.target.images), parts)


def dry_run(run: "Run") -> str:
    """Check config, data and network, and time some steps and predict batches of every stage; for people.

    Nothing is written. Every process of a job calls it. The run is spent afterwards: its network has been trained.
    """
    but = " but the decoded store" if run.config.data.cache == "store" else ""
    return (
        f"{plan(run)}\n{cost(run, loads=True)}\ndry run: config, data and network are right; nothing was written{but}"
    )


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


def cost(run: "Run", loads: bool) -> str:
    """What the whole run will take by the pace of a few batches, in lines; see `Trials.cost`.

    Every process of a job calls it. The network is trained by it.
    """
    return _trials(run).cost(run.engine, run.engine.workers(run.domains.source.images.in_memory), loads)


def _trials(run: "Run") -> Trials:
    engine, config, work = run.engine, run.config, work_of_run(run)
    workers = engine.workers(run.domains.source.images.in_memory)
    stages = {}
    predict, sample = predict_pace(engine, run.domains.target.images, run.feeds.transforms["predict"])
    if work.source_steps:
        optimization = engine.optimization(run.source_method, config.source.optim, work.source_steps)
        batches = run.feeds.source(0, None)
        with engine.enough_memory("source", run.smaller_step(run.source_method, "source")):
            pace = training_pace(engine, run.source_method, optimization, batches, workers)
        stages["source"] = work.source_steps, pace
    if work.later_steps:
        stage = config.adaptation if run.method.adapts else config.self_training
        batches = run.trial_batches(sample)
        optimization = engine.optimization(run.method, stage.optim, len(batches))
        frozen = stage.batch_norm == "eval"
        name = "adapting" if run.method.adapts else "rounds"
        with engine.enough_memory(name, run.smaller_step(run.method, "adaptation" if run.method.adapts else "round")):
            pace = training_pace(engine, run.method, optimization, batches, workers, frozen)
        stages[name] = work.later_steps, pace
    return Trials(stages, work.predicted, predict)


def rough_duration(seconds: float) -> str:
    """An estimate in the unit that people would use: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
