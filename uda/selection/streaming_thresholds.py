"""Class-balanced thresholds from a stream of scores: exact, in memory that does not grow with their number.

The same lambda (K,), bit for bit, as `uda.selection.thresholds.class_balanced_thresholds` gives on all rows at once.
There may be any number of rows (in segmentation every pixel is one), on any number of processes. While all scores fit
in one memory, that function is the simpler way.

No single pass can be exact in bounded memory (Munro & Paterson, Theoretical Computer Science 1980), so the same rows
are gone through more than once. Positive floats order as the integers that their bits spell, which makes this a radix
search: a pass counts the scores of each class in bins of such integers, and the bin that holds the wanted rank is the
class's next interval. A pass also holds on to the scores in the intervals while there is room; once those of all
processes were few enough, the rest is done in memory. One pass suffices for a million rows, two or three do for most
others. Of many equal scores only the number is kept.

    search = ThresholdSearch(num_classes, portion)
    while not search.done:
        for scores in chunks():             # the same rows in every pass, in any order and grouping
            search.update(scores)
        search.finish_pass()
    search.thresholds

Across processes each feeds its own rows, if any, and `reduce` adds up int64 arrays over all of them. Every decision
rests on such sums, so that all processes make the same passes and find the same thresholds.
"""

from collections.abc import Callable, Iterable
from math import floor

import numpy as np
from numpy.typing import NDArray

from uda.selection.thresholds import ArrayLike, best_classes, exact_portion, refuse_unusable, score_matrix, to_numpy

#: Takes an int64 array of one dimension and returns its sum over all processes; it may work in place.
Reduce = Callable[[NDArray[np.int64]], NDArray[np.int64]]

DEFAULT_MEMORY = 32 << 20

# 2^14 bins a class: the bins of twenty classes stay in a core's cache, where counting is fast.
_MOST_BITS = 14
_BLOCK_ROWS = 1 << 15
_HELD_BYTES = 12
# Keys of the first pass's bins: the eight octaves from 1/128 to 2, in which nearly all scores lie. The outermost two
# bins take what lies beyond.
_OCTAVE_BITS = 52
_FIRST_START, _FIRST_BITS = int(np.float64(2**-7).view(np.int64)), _OCTAVE_BITS + 3
_KEY_OF_INFINITY = int(np.float64(np.inf).view(np.int64))
# A float32 leaves these low bits of its float64 at 0.
_FLOAT32_SPARE_BITS = 29


class ThresholdSearch:
    """A search for lambda (K,) in passes over the same rows: `update` with every chunk, `finish_pass`, until `done`.

    num_classes: K. portion: share of each class to select, in [0, 1].
    reduce: sums arrays over the processes; None where there is one.
    memory: bytes, about, that the search may take; less of it means more passes. Each process needs the same.
    """

    passes: int = 0
    """Passes finished."""

    def __init__(
        self, num_classes: int, portion: float, *, reduce: Reduce | None = None, memory: int = DEFAULT_MEMORY
    ) -> None:
        """Raises ValueError for a portion outside of [0, 1] and for fewer than one class."""
        self._share = exact_portion(portion)
        if num_classes < 1:
            raise ValueError(f"thresholds need one class or more, got {num_classes}")
        self.num_classes = num_classes
        self._reduce = reduce
        # An eighth for the bins, since a sum over processes makes copies; a half for scores.
        bins = memory // 8 // 8 // num_classes
        self._bits = min(max(bins.bit_length() - 1, 1), _MOST_BITS)
        self._tally = self._empty_tally()
        room = memory // 2 // _HELD_BYTES
        self._held_classes, self._held_keys = np.empty(room, np.int32), np.empty(room, np.int64)
        self._num_held = 0

        self._thresholds = np.full(num_classes, np.inf)
        self._counts = np.zeros(num_classes, np.int64)
        # lambda_k is the rank_k-th largest of the scores whose key lies in [low_k, low_k + width_k); a class whose
        # threshold is known has a width of 0. The bins of a class are 2^shift_k keys wide and begin at start_k.
        self._rank = np.zeros(num_classes, np.int64)
        self._low = np.zeros(num_classes, np.int64)
        self._width = np.full(num_classes, _KEY_OF_INFINITY, np.uint64)
        self._start = np.full(num_classes, _FIRST_START, np.int64)
        self._shift = np.full(num_classes, _FIRST_BITS - self._bits, np.int64)
        self._num_inside = np.zeros(num_classes, np.int64)
        self._spare_bits = 0

    @property
    def done(self) -> bool:
        """Whether the thresholds are known; the same on all processes."""
        return not self._width.any()

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Lambda, (K,) float64; +inf for a class that nothing may be labelled with. RuntimeError before `done`."""
        if not self.done:
            raise RuntimeError("the thresholds are not known yet: go through the rows once more")
        return self._thresholds.copy()

    def update(self, scores: ArrayLike) -> None:
        """Take in a chunk of scores (n, K).

        Raises ValueError as `class_balanced_thresholds` does and for another K, RuntimeError when done.
        """
        scores = score_matrix(scores)
        if scores.shape[1] != self.num_classes:
            raise ValueError(f"scores must have {self.num_classes} columns, one for each class, got {scores.shape[1]}")
        self.update_best(*best_classes(scores))

    def update_best(self, classes: ArrayLike, best: ArrayLike) -> None:
        """Take in a chunk as each row's best class and that class's score: (n,) integers in 0..K-1, (n,).

        Raises ValueError for shapes or classes that do not fit and for scores that are NaN, infinite or not above 0,
        RuntimeError when done.
        """
        if self.done:
            raise RuntimeError("the thresholds are known already")
        classes, best = to_numpy(classes), to_numpy(best)
        if best.ndim != 1 or classes.shape != best.shape:
            raise ValueError(f"classes and best scores must both be (n,), got {classes.shape} and {best.shape}")
        if not len(best):
            return
        if not np.issubdtype(classes.dtype, np.integer) or not 0 <= classes.min() <= classes.max() < self.num_classes:
            raise ValueError(f"classes must be integers in 0..{self.num_classes - 1}, got {classes.dtype} in {classes}")
        refuse_unusable(best)
        for begin in range(0, len(best), _BLOCK_ROWS):
            block = slice(begin, begin + _BLOCK_ROWS)
            block_classes = classes[block].astype(np.int64)
            self._tally[: self.num_classes] += np.bincount(block_classes, minlength=self.num_classes)
            self._hold(*self._count(block_classes, best[block].astype(np.float64).view(np.int64)))
        if best.dtype != np.float32:
            self._tally[self.num_classes] += len(best)

    def finish_pass(self) -> None:
        """End a pass, on every process: narrows each class's interval, and sets `done` when no more passes are needed.

        Raises ValueError where the numbers of rows, or of scores in the intervals, are not those of the pass before,
        RuntimeError when done.
        """
        if self.done:
            raise RuntimeError("the thresholds are known already")
        counts, num_wide, histogram = self._sums()
        if self.passes == 0:
            self._counts = counts.copy()
            self._rank[:] = [floor(self._share * count) for count in counts.tolist()]
            self._width[self._rank == 0] = 0
            self._spare_bits = 0 if num_wide else _FLOAT32_SPARE_BITS
        elif not (np.array_equal(counts, self._counts) and np.array_equal(histogram.sum(axis=1), self._num_inside)):
            raise ValueError(
                f"pass {self.passes + 1} saw other scores than the one before ({counts.sum()} rows after "
                f"{self._counts.sum()}): every pass must go through the same rows from the first on"
            )
        self.passes += 1
        all_held = histogram.sum() <= len(self._held_keys)
        self._narrow(histogram)
        while all_held and not self.done:
            self._recount_held()
            self._narrow(self._sums()[-1])
        self._num_held = 0

    def _recount_held(self) -> None:
        """Count the held scores in the narrowed intervals, and hold on to those inside only."""
        num_held, self._num_held = self._num_held, 0
        for begin in range(0, num_held, _BLOCK_ROWS):
            block = slice(begin, min(begin + _BLOCK_ROWS, num_held))
            # What is kept is a copy, and goes to places that have been read.
            self._hold(*self._count(self._held_classes[block].astype(np.int64), self._held_keys[block]))

    def _count(self, classes: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
        """Count keys in the bins of their classes; classes and keys of those inside of their class's interval."""
        if self.passes == 0:
            bins = keys - _FIRST_START
            bins >>= self._shift[0]
            np.clip(bins, 0, (1 << self._bits) - 1, out=bins)
        else:
            offsets = keys - self._low[classes]
            # A key below the interval has a negative offset: a huge one, without its sign.
            inside = np.flatnonzero(offsets.view(np.uint64) < self._width[classes])
            classes, keys = classes[inside], keys[inside]
            bins = offsets[inside] >> self._shift[classes]
        bins += classes << self._bits
        np.add.at(self._tally[self.num_classes + 1 :], bins, 1)
        return classes, keys

    def _hold(self, classes: NDArray[np.int64], keys: NDArray[np.int64]) -> None:
        """Keep a pass's candidates; once there are too many, none after."""
        stop = self._num_held + len(keys)
        if stop <= len(self._held_keys):
            self._held_classes[self._num_held : stop] = classes
            self._held_keys[self._num_held : stop] = keys
        self._num_held = stop

    def _narrow(self, histogram: NDArray[np.int64]) -> None:
        """Each open class's interval becomes the bin that holds its rank: histogram (K, bins) over all processes."""
        last_bin = histogram.shape[1] - 1
        for k in np.flatnonzero(self._width).tolist():
            # Ranks count from the best score, which lies in the last bin.
            reached = np.cumsum(histogram[k, ::-1])
            place = int(np.searchsorted(reached, self._rank[k]))
            chosen = last_bin - place
            low, start, shift = int(self._low[k]), int(self._start[k]), int(self._shift[k])
            end = low + int(self._width[k])
            if chosen < last_bin:
                end = min(end, start + ((chosen + 1) << shift))
            if chosen > 0:
                low = start + (chosen << shift)
            width = end - low
            if width <= 1 << self._spare_bits:
                self._thresholds[k] = np.int64(low).view(np.float64)
                width = 0
            self._rank[k] -= reached[place - 1] if place else 0
            self._num_inside[k] = histogram[k, chosen] if width else 0
            self._low[k] = self._start[k] = low
            self._width[k] = width
            self._shift[k] = max((width - 1).bit_length() - self._bits, self._spare_bits)

    def _sums(self) -> tuple[NDArray[np.int64], int, NDArray[np.int64]]:
        """Of all processes: rows a class (K,), rows of more than single precision, bins (K, bins). Counts anew."""
        tally, self._tally = self._tally, self._empty_tally()
        if self._reduce is not None:
            tally = self._reduce(tally)
        counts, bins = tally[: self.num_classes], tally[self.num_classes + 1 :]
        return counts, int(tally[self.num_classes]), bins.reshape(self.num_classes, -1)

    def _empty_tally(self) -> NDArray[np.int64]:
        return np.zeros(self.num_classes * (1 + (1 << self._bits)) + 1, np.int64)


def stream_thresholds(
    chunks: Callable[[], Iterable[ArrayLike | tuple[ArrayLike, ArrayLike]]],
    portion: float,
    num_classes: int,
    *,
    reduce: Reduce | None = None,
    memory: int = DEFAULT_MEMORY,
) -> NDArray[np.float64]:
    """Thresholds lambda that keep the best `portion` of each class, from chunks of rows: (K,) float64.

    `chunks()` is called once a pass and gives the same rows each time: scores (n, K), or pairs of best classes (n,) and
    their scores (n,). The other arguments and the errors are those of `ThresholdSearch`.
    """
    search = ThresholdSearch(num_classes, portion, reduce=reduce, memory=memory)
    while not search.done:
        for chunk in chunks():
            if isinstance(chunk, tuple):
                search.update_best(*chunk)
            else:
                search.update(chunk)
        search.finish_pass()
    return search.thresholds
