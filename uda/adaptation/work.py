"""The work that a config asks for: steps of every stage, and images of the predict passes."""

import math
from dataclasses import dataclass

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.data.loaders import epoch_batches
from uda.selection.thresholds import portion_schedule
from uda.training.session import epoch_steps


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


def work_of(config: AdaptationConfig, num_source: int, num_target: int, parts: int = 1) -> Work:
    """The work that a config asks for.

    Args:
        config: the config.
        num_source, num_target: images of all source and of all target domains.
        parts: that a batch is dealt out to, processes times `runtime.accumulate`.
    """
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


def steps_of_rounds(config: AdaptationConfig, num_source: int, num_target: int) -> list[int]:
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
