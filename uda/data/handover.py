"""Hands pixels from loader processes to the main process, through memory that is reused.

A DataLoader puts every tensor into new shared memory. The system must clear and map each page of it, in two
processes. For a batch of photos that takes as long as reading and cropping them.
"""

import math
import mmap
import multiprocessing
import sys
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Handed:
    """The place of some pixels in a ring."""

    slot: int
    shape: tuple[int, ...]
    start: int = 0
    """Number of bytes of the slot that lie before them."""


class Ring:
    """Slots of memory that a process shares with the processes that it forks.

    Each slot is used for every `slots`-th batch. There must be one slot more than batches that are prepared at the
    same time. What `take` returns must be used before the next batch is requested.
    """

    def __init__(self, slots: int, slot_bytes: int):
        self._slots = slots
        self._slot_bytes = max(1, slot_bytes)
        self._memory = mmap.mmap(-1, slots * self._slot_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)

    @staticmethod
    def possible() -> bool:
        """Whether loader processes share memory. They do if they are forked, which is the default on Linux."""
        # Without allow_none this call would set the start method of the whole program.
        chosen = multiprocessing.get_start_method(allow_none=True)
        return chosen == "fork" if chosen else sys.platform == "linux"

    def space(self, number: int, shape: tuple[int, ...], start: int = 0) -> torch.Tensor | None:
        """Memory for the pixels of batch `number`, uint8 (B, C, H, W). None if they do not fit.

        `start`: number of bytes of the batch's slot that are used for other pixels.
        """
        fits = start + math.prod(shape) <= self._slot_bytes
        return self.take(Handed(number % self._slots, shape, start)) if fits else None

    def put(self, number: int, pixels: torch.Tensor, start: int = 0) -> torch.Tensor | Handed:
        """Store the pixels of batch `number`, uint8 (B, C, H, W). They may already lie in its `space`.

        Pixels that are not uint8 or do not fit are returned unchanged.
        """
        space = self.space(number, tuple(pixels.shape), start)
        if pixels.dtype != torch.uint8 or space is None:
            return pixels
        if pixels.data_ptr() != space.data_ptr():
            space.copy_(pixels)
        return Handed(number % self._slots, tuple(pixels.shape), start)

    def take(self, handed: Handed) -> torch.Tensor:
        """The pixels, uint8 (B, C, H, W) in channels-last order, without a copy."""
        batch, channels, height, width = handed.shape
        start = handed.slot * self._slot_bytes + handed.start
        count = batch * channels * height * width
        flat = torch.frombuffer(self._memory, dtype=torch.uint8, count=count, offset=start)
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
