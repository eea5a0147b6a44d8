"""Thresholds of a stream of scores, against torch.sort and torch.kthvalue of each class in memory."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.contest import BENCHMARKS, Contest

NUM_CLASSES = 19
PORTION = 0.2
_CHUNK_ROWS = 1 << 20


@BENCHMARKS.register("thresholds_1e6_sort")
def million_sort(scale: float) -> Contest:
    """Streamed thresholds of 1,000,000 scores in 19 classes, against torch.sort of each class."""
    return _thresholds(1_000_000, scale, _sorted)


@BENCHMARKS.register("thresholds_1e6_kthvalue")
def million_kthvalue(scale: float) -> Contest:
    """Streamed thresholds of 1,000,000 scores in 19 classes, against torch.kthvalue of each class."""
    return _thresholds(1_000_000, scale, _kthvalue)


@BENCHMARKS.register("thresholds_1e7_sort")
def ten_million_sort(scale: float) -> Contest:
    """Streamed thresholds of 10,000,000 scores in 19 classes, against torch.sort of each class."""
    return _thresholds(10_000_000, scale, _sorted)


@BENCHMARKS.register("thresholds_1e7_kthvalue")
def ten_million_kthvalue(scale: float) -> Contest:
    """Streamed thresholds of 10,000,000 scores in 19 classes, against torch.kthvalue of each class."""
    return _thresholds(10_000_000, scale, _kthvalue)


@BENCHMARKS.register("thresholds_1e8_sort")
def hundred_million_sort(scale: float) -> Contest:
    """Streamed thresholds of 100,000,000 scores in 19 classes, against torch.sort of each class."""
    return _thresholds(100_000_000, scale, _sorted)


@BENCHMARKS.register("thresholds_1e8_kthvalue")
def hundred_million_kthvalue(scale: float) -> Contest:
    """Streamed thresholds of 100,000,000 scores in 19 classes, against torch.kthvalue of each class."""
    return _thresholds(100_000_000, scale, _kthvalue)


def _thresholds(num_scores: int, scale: float, kth_largest: Callable[[Tensor, int], Tensor]) -> Contest:
    """`stream_thresholds` with chunks of a million rows, against a loop over the classes with all rows."""
    from uda.selection.streaming_thresholds import stream_thresholds

    classes, best = _rows(max(NUM_CLASSES, round(num_scores * scale)))

    def ours() -> object:
        return stream_thresholds(
            lambda: zip(classes.split(_CHUNK_ROWS), best.split(_CHUNK_ROWS), strict=True), PORTION, NUM_CLASSES
        )

    def floor() -> object:
        thresholds = np.full(NUM_CLASSES, np.inf)
        for k in range(NUM_CLASSES):
            scores = best[classes == k]
            keep = len(scores) // 5
            if keep > 0:
                thresholds[k] = kth_largest(scores, keep).item()
        return thresholds

    return Contest(ours, floor)


def _rows(count: int) -> tuple[Tensor, Tensor]:
    """Best class (int8) and its probability (float32) of each row. Classes differ in size; many scores are near 1."""
    generator = torch.Generator().manual_seed(0)
    classes, best = torch.empty(count, dtype=torch.int8), torch.empty(count)
    # By chunks and in place, because the peak of a copy would hide the peak of the measured work.
    for part, scores in zip(classes.split(_CHUNK_ROWS), best.split(_CHUNK_ROWS), strict=True):
        part.copy_(scores.uniform_(generator=generator).square_().mul_(NUM_CLASSES))
        scores.normal_(4, 4, generator=generator).abs_().sigmoid_()
    return classes, best


def _sorted(scores: Tensor, k: int) -> Tensor:
    return scores.sort(descending=True).values[k - 1]


def _kthvalue(scores: Tensor, k: int) -> Tensor:
    return scores.kthvalue(len(scores) - k + 1).values
