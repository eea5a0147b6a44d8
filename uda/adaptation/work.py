"""The work of a config: steps of every stage, and images of the predict passes."""

import math
from dataclasses import dataclass

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.data.loaders import epoch_batches
from uda.selection.thresholds import portion_schedule
from uda.training.session import epoch_steps


@dataclass(frozen=True)
class Work:
    """The work of a run, if every class selects exactly its portion of the target images."""

    source_steps: int
    """Optimiser steps of the source stage."""
    source_images: int
    """Images in each step of the source stage, of all processes."""
    later_steps: int
    """Optimiser steps of all rounds of all selectors, or of the adaptation."""
    later_images: int
    """Images in each later step, of all processes. An image in two views counts twice."""
    reports: int
    """Rounds of all selectors, or intervals of the adaptation. Each ends with a predict pass."""
    predicted: int
    """Images of all predict passes, and of AdaBN if it is on."""

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return self.source_steps + self.later_steps


def work_of(config: AdaptationConfig, num_source: int, num_target: int, parts: int = 1) -> Work:
    """The work of a config.

    Args:
        config: the config.
        num_source, num_target: images of all source and of all target domains.
        parts: parts that a batch is divided into, processes times `runtime.accumulate`.
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
    several = len(config.branches)
    # The first round or preparation needs an extra predict pass, unless it can use the source model's prediction.
    begins = bool(reports) and (method.rounds or method.prepares)
    zero_shot = config.model.classifier is not None
    first = int(begins and bool(stage.adapt_batch_norm or not has_source_model or several))
    ema = config.ema
    if begins and ema.decay is not None and ema.pseudo_labels != ema.evaluated:  # each choice has a pass of its own
        first = reports
    reports, passes = (max(1, several) * count for count in (reports, reports + first))
    networks = 1 + (ema.decay is not None)  # AdaBN gives the teacher statistics of its own
    adapted = passes * stage.adapt_batch_norm * networks + has_source_model * source.adapt_batch_norm
    passes += zero_shot + has_source_model + bool(several)  # of several selectors, the model kept predicts once more
    return Work(
        source_steps,
        source.batch_size + labelled,
        max(1, several) * sum(steps),
        images + labelled,
        reports,
        passes * num_target + adapted * min(stage.adapt_images, num_target),
    )


def steps_of_rounds(config: AdaptationConfig, num_source: int, num_target: int) -> list[int]:
    """Optimiser steps of each round, if every class selects exactly its portion of the target images."""
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
