"""Pixels from loader processes to the main one, through memory that is used again and again.

A DataLoader gives every tensor a new piece of shared memory, and the system has to clear and map each of its pages
anew in both processes: for a batch of photos that takes as long as reading and cropping them.
"""

import math
import mmap
import multiprocessing
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Handed:
    """Where in a ring some pixels lie."""

    slot: int
    shape: tuple[int, ...]


class Ring:
    """Slots of memory that a process shares with those that it forks.

    A slot serves every `slots`-th batch: there must be one more than batches can be under way, and what `take` gives
    is to be used up before the next batch is asked for.
    """

    def __init__(self, slots: int, slot_bytes: int):
        self._slots = slots
        self._slot_bytes = max(1, slot_bytes)
        self._memory = mmap.mmap(-1, slots * self._slot_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    @staticmethod
    def possible() -> bool:
        """Whether loader processes share memory: they are forked on Linux, unless the program has chosen otherwise."""
        # Without allow_none the question itself would settle the method for the whole program.
        chosen = multiprocessing.get_start_method(allow_none=True)
        return chosen == "fork" if chosen else sys.platform == "linux"

    def space(self, number: int, shape: tuple[int, ...]) -> torch.Tensor | None:
        """Memory for the pixels of batch `number`, uint8 (B, C, H, W); None where they do not fit."""
        return self.take(Handed(number % self._slots, shape)) if math.prod(shape) <= self._slot_bytes else None

    def put(self, number: int, pixels: torch.Tensor) -> torch.Tensor | Handed:
        """Leave the pixels of batch `number`, uint8 (B, C, H, W), which may lie in its `space` already.

        Those that do not fit come back as they are.
        """
        space = self.space(number, tuple(pixels.shape))
        if pixels.dtype != torch.uint8 or space is None:
            return pixels
        if pixels.data_ptr() != space.data_ptr():
            space.copy_(pixels)
        return Handed(number % self._slots, tuple(pixels.shape))

    def take(self, handed: Handed) -> torch.Tensor:
        """The pixels, uint8 (B, C, H, W) in channels-last order, where they lie."""
        batch, channels, height, width = handed.shape
        start = handed.slot * self._slot_bytes
        count = batch * channels * height * width
        flat = torch.frombuffer(self._memory, dtype=torch.uint8, count=count, offset=start)
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
