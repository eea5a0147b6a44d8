"""What a run will do and what it will cost, for a person to read before it starts."""

import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from uda.device import describe
from uda.thresholds import portion_schedule

if TYPE_CHECKING:
    from uda.config import Config
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
    config, network = run.config, run.engine.network
    source, target = run.domains.source.images, run.domains.target.images
    parameters = sum(p.numel() for p in network.parameters())
    if config.source.checkpoint:
        start = f"checkpoint {config.source.checkpoint}"
    elif not config.trains_source:
        start = "no stage of its own"
    else:
        start = f"{source_steps(run):,} steps of {config.source.batch_size}"
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
        lines.append(
            f"adapts   {adaptation.steps:,} steps of {batch.source} source + {batch.target} target images, a report "
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


def source_steps(run: "Run") -> int:
    """Optimiser steps of the source stage."""
    settings = run.config.source
    if not run.config.trains_source:
        return 0
    return sum(epoch_steps(len(run.feeds.source(0, None)), settings.epochs, settings.steps))


def round_steps(run: "Run") -> int:
    """Optimiser steps of all rounds, as if every class kept its portion."""
    counts = (len(domain.images) for domain in (run.domains.source, run.domains.target))
    return sum(steps_of_rounds(run.config, *counts)) if run.rounds else 0


def steps_of_rounds(config: "Config", num_source: int, num_target: int) -> list[int]:
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


def predicted_images(config: "Config", rounds: int, num_target: int) -> int:
    """Images that go through the network in eval mode: predict passes, and AdaBN's where it is asked for.

    `rounds`: or reports of a method without rounds.
    """
    from uda.methods import METHODS

    training = config.adaptation if METHODS[config.method].adapts else config.self_training
    predicted = (1 + rounds) * num_target
    if rounds and training.adapt_batch_norm:
        predicted += num_target + (1 + rounds) * min(training.adapt_images, num_target)
    return predicted


def dry_run(run: "Run", measured_steps: int = 3) -> str:
    """Check config, data and network, time a few steps on real batches; writes nothing. The run is spent afterwards."""
    config, engine = run.config, run.engine
    text = plan(run)
    training, adaptation = config.self_training, config.adaptation
    if run.method.adapts:
        method, size = run.method, adaptation.batch.source + adaptation.batch.target
        batches = None if method.prepares else run.feeds.adaptation(None, method.views).window(0, measured_steps + 1)
        rounds, later = math.ceil(adaptation.steps / adaptation.interval), adaptation.steps
    else:
        batches, rounds, later = None, run.rounds, round_steps(run)
    if batches is None:
        method, size = run.source_method, config.source.batch_size
        batches = run.feeds.source(0, measured_steps + 1)
    optimization = engine.optimization(method, config.source.optim, measured_steps + 1)
    moments = [time.monotonic()]

    def timed():
        for batch in batches:
            yield batch
            moments.append(time.monotonic())

    engine.fit(method, timed(), optimization, label="dry run", steps=measured_steps + 1)
    step_seconds = float(np.median(np.diff(moments[1:])))
    images = run.domains.target.images
    started = time.monotonic()
    first = next(iter(run.feeds.predict(images, engine.predict_batch_size, workers=0)))
    engine.predict([first], len(first))
    predict_seconds = (time.monotonic() - started) / len(first)

    in_round = training.batch.mixed or training.batch.source + training.batch.selected + training.batch.unlabelled
    in_later = adaptation.batch.source + adaptation.batch.target if run.method.adapts else in_round
    steps = source_steps(run)
    predicted = predicted_images(config, rounds, len(images))
    trained = steps * config.source.batch_size + later * in_later
    total = step_seconds * trained / size + predict_seconds * predicted
    cost = (
        f"{steps + later:,} training steps, {step_seconds:.3f} s for {size} images; {predicted:,} images predicted, "
        f"{1 / predict_seconds:,.0f} a second: about {rough_duration(total)} on {engine.device}"
    )
    but = " but the decoded store" if config.data.cache == "store" else ""
    return f"{text}\ncost     {cost}\ndry run: config, data and network are right; nothing was written{but}"


def rough_duration(seconds: float) -> str:
    """An estimate in the unit that people would use: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
