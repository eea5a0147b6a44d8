"""The stages of an adaptation and the seed numbers of its other random draws."""

from uda.training.stages import Stage, seed_number

SOURCE_STAGE = Stage("source", 1, "the source stage", "source.batch_size")
ROUND_STAGE = Stage("round", 2, "round {round}", "self_training.batch")
ADAPTATION_STAGE = Stage("adaptation", 5, "the adaptation", "adaptation.batch", unit="interval")

SOURCE_SHARE = seed_number(3, "the source images of a round")
ADAPTED_IMAGES = seed_number(4, "the target images of AdaBN")
