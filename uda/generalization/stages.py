"""The stage of a run of domain generalisation. A method with several stages trains in it several times."""

from uda.training.stages import Stage

GENERALIZATION_STAGE = Stage("generalization", 6, "stage {round}", "training.batch_size", unit="interval")
