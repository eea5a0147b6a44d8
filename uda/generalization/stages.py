"""The stage of a run of domain generalisation. If a method has several stages, each one uses this stage."""

from uda.training.stages import Stage

GENERALIZATION_STAGE = Stage("generalization", 6, "stage {round}", "training.batch_size", unit="interval")
