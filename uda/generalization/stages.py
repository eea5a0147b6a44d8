"""The stages of a run of domain generalisation. If a method has several stages, each one uses the same `Stage`."""

from itertools import pairwise

import numpy as np

from uda.generalization.config import GeneralizationConfig
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.training.session import epoch_steps
from uda.training.stages import Stage

GENERALIZATION_STAGE = Stage("generalization", 6, "stage {round}", "training.batch_size", unit="interval")


def stage_steps(config: GeneralizationConfig) -> list[list[int]]:
    """For each stage of the config's method, the number of steps in each interval between reports."""
    shares = np.cumsum([0, *GENERALIZATION_METHODS[config.method].stages])
    bounds = [round(float(share) * config.training.steps) for share in shares]
    return [epoch_steps(config.training.interval, 0, end - start) for start, end in pairwise(bounds)]
