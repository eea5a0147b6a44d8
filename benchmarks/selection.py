"""Selection (angles, thresholds, choice) against the matrix product of the logits, which it needs in any case."""

import torch

from benchmarks.contest import BENCHMARKS, Contest


@BENCHMARKS.register("select_1000000x12")
def select_visda_like(scale: float) -> Contest:
    """AVC scores, thresholds and selection, 1,000,000 images of 12 classes, against the logits' matrix product."""
    return _selection(max(12, round(1_000_000 * scale)), 12)


@BENCHMARKS.register("select_100000x1000")
def select_imagenet_like(scale: float) -> Contest:
    """AVC scores, thresholds and selection, 100,000 images of 1,000 classes, against the logits' matrix product."""
    return _selection(max(1000, round(100_000 * scale)), 1000)


def _selection(num_images: int, num_classes: int, width: int = 512) -> Contest:
    """Selection from post-ReLU features (num_images, width) with portion 0.2. The logits are given, as in a run."""
    from uda.selection.selectors import SELECTORS
    from uda.selection.thresholds import class_balanced_thresholds, select

    generator = torch.Generator().manual_seed(0)
    # In place, because the peak of a copy would hide the peak of the measured work.
    features = torch.randn(num_images, width, generator=generator).relu_()
    weight = torch.randn(num_classes, width, generator=generator)
    logits = features @ weight.T

    def ours() -> object:
        scores = SELECTORS["avc"](features, logits, weight)
        return select(scores, class_balanced_thresholds(scores, 0.2))

    return Contest(ours, floor=lambda: features @ weight.T)
