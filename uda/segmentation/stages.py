"""The stages of a segmentation and the seed numbers of its other random draws."""

from uda.training.stages import Stage, seed_number

SOURCE_STAGE = Stage("scenes", 8, "the source stage", "source.batch_size")
ROUND_STAGE = Stage("scene round", 9, "round {round}", "self_training.batch")

SOURCE_SHARE = seed_number(10, "the source scenes of a round")
ADAPTED_IMAGES = seed_number(11, "the target images of AdaBN in segmentation")
