"""Exact class-balanced thresholds from a stream of scores, in memory that does not grow with the number of scores.

The thresholds lambda (K,) are the same, bit for bit, as those of
`uda.selection.thresholds.class_balanced_thresholds` on all rows at once. There may be any number of rows (in
segmentation every pixel is a row), on any number of processes. If all scores fit in memory, use that function, which is
simpler.

No single pass can be exact in bounded memory (Munro & Paterson, Theoretical Computer Science 1980). So the search reads
the same rows more than once. Positive floats have the same order as the integers with the same bits, so this is a radix
search. A pass counts the scores of each class in bins of these integers. The bin with the wanted rank is the class's
interval in the next pass. A pass also keeps the scores in the intervals while there is room. If the scores of all
processes fit, the rest is done in memory. One pass is enough for a million rows, and two or three for most larger
numbers. Many equal scores are only counted.

    search = ThresholdSearch(num_classes, portion)
    while not search.done:
        for scores in chunks():             # the same rows in every pass, in any order and grouping
            search.update(scores)
        search.finish_pass()
    search.thresholds

With several processes, each process passes its own rows, if it has any, and `reduce` sums int64 arrays over all
processes. Every decision depends only on these sums, so all processes make the same passes and find the same
thresholds.
"""

from collections.abc import Callable, Iterable
from math import floor

import numpy as np
from numpy.typing import NDArray

from uda.selection.thresholds import ArrayLike, best_classes, exact_portion, refuse_unusable, score_matrix, to_numpy

#: Takes a one-dimensional int64 array and returns its sum over all processes. It may work in place.
Reduce = Callable[[NDArray[np.int64]], NDArray[np.int64]]

DEFAULT_MEMORY = 32 << 20

# At most 2^14 bins for each class: the bins of twenty classes then stay in a core's cache, where counting is fast.
_MOST_BITS = 14
_BLOCK_ROWS = 1 << 15
_HELD_BYTES = 12
# Keys of the first pass's bins: the eight octaves from 1/128 to 2, which hold nearly all scores. The first and the last
# bin also take the scores below and above.
_OCTAVE_BITS = 52
_FIRST_START, _FIRST_BITS = int(np.float64(2**-7).view(np.int64)), _OCTAVE_BITS + 3
_KEY_OF_INFINITY = int(np.float64(np.inf).view(np.int64))
# Number of low bits that are 0 in the float64 of a float32.
_FLOAT32_SPARE_BITS = 29


class ThresholdSearch:
    """A search for lambda (K,) in passes over the same rows.

    In each pass, call `update` with every chunk and then `finish_pass`. Repeat this until `done`.

    num_classes: K.
    portion: share of each class to select, in [0, 1].
    reduce: sums arrays over the processes. None if there is one process.
    memory: approximate number of bytes that the search may use. Less memory means more passes. It must be the same on
        all processes.
    """

    passes: int = 0
    """Number of finished passes."""

    def __init__(
        self, num_classes: int, portion: float, *, reduce: Reduce | None = None, memory: int = DEFAULT_MEMORY
    ) -> None:
        """Raises ValueError for a portion outside of [0, 1] or fewer than one class."""
        self._share = exact_portion(portion)
        if num_classes < 1:
            raise ValueError(f"thresholds need at least one class, got {num_classes}")
        self.num_classes = num_classes
        self._reduce = reduce
        # An eighth for the bins, because a sum over processes makes copies, and a half for scores.
        bins = memory // 8 // 8 // num_classes
        self._bits = min(max(bins.bit_length() - 1, 1), _MOST_BITS)
        self._tally = self._empty_tally()
        room = memory // 2 // _HELD_BYTES
        self._held_classes, self._held_keys = np.empty(room, np.int32), np.empty(room, np.int64)
        self._num_held = 0

        self._thresholds = np.full(num_classes, np.inf)
        self._counts = np.zeros(num_classes, np.int64)
        # lambda_k is the rank_k-th largest of the scores whose key lies in [low_k, low_k + width_k). The width is 0 for
        # a class whose threshold is known. The bins of a class are 2^shift_k keys wide and begin at start_k.
        self._rank = np.zeros(num_classes, np.int64)
        self._low = np.zeros(num_classes, np.int64)
        self._width = np.full(num_classes, _KEY_OF_INFINITY, np.uint64)
        self._start = np.full(num_classes, _FIRST_START, np.int64)
        self._shift = np.full(num_classes, _FIRST_BITS - self._bits, np.int64)
        self._num_inside = np.zeros(num_classes, np.int64)
        self._spare_bits = 0

    @property
    def done(self) -> bool:
        """Whether the thresholds are known. It is the same on all processes."""
        return not self._width.any()

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Lambda, (K,) float64. +inf for a class that no image may get as label. Raises RuntimeError before `done`."""
        if not self.done:
            raise RuntimeError("the thresholds are not known yet: make another pass over the rows")
        return self._thresholds.copy()

    def update(self, scores: ArrayLike) -> None:
        """Add a chunk of scores (n, K).

        Raises ValueError as `class_balanced_thresholds` does, and for another K. Raises RuntimeError when done.
        """
        scores = score_matrix(scores)
        if scores.shape[1] != self.num_classes:
            raise ValueError(f"scores must have {self.num_classes} columns, one for each class, got {scores.shape[1]}")
        self.update_best(*best_classes(scores))

    def update_best(self, classes: ArrayLike, best: ArrayLike) -> None:
        """Add a chunk as each row's best class and its score: (n,) integers in 0..K-1, (n,).

        Raises ValueError for shapes or classes that do not fit, and for scores that are NaN, infinite or not above 0.
        Raises RuntimeError when done.
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
        """End a pass. It narrows each class's interval. After the last pass, `done` is True.

        All processes must call it. Raises ValueError if the number of rows, or of scores in the intervals, differs from
        the pass before. Raises RuntimeError when done.
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
                f"pass {self.passes + 1} got other scores than the pass before ({counts.sum()} rows after "
                f"{self._counts.sum()}): every pass must read the same rows, from the first row on"
            )
        self.passes += 1
        all_held = histogram.sum() <= len(self._held_keys)
        self._narrow(histogram)
        while all_held and not self.done:
            self._recount_held()
            self._narrow(self._sums()[-1])
        self._num_held = 0

    def _recount_held(self) -> None:
        """Count the held scores in the narrowed intervals. Only scores inside are still held."""
        num_held, self._num_held = self._num_held, 0
        for begin in range(0, num_held, _BLOCK_ROWS):
            block = slice(begin, min(begin + _BLOCK_ROWS, num_held))
            # The kept scores are a copy and are written to places that were already read.
            self._hold(*self._count(self._held_classes[block].astype(np.int64), self._held_keys[block]))

    def _count(self, classes: NDArray[np.int64], keys: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
        """Count keys in the bins of their classes. Returns classes and keys of those inside their class's interval."""
        if self.passes == 0:
            bins = keys - _FIRST_START
            bins >>= self._shift[0]
            np.clip(bins, 0, (1 << self._bits) - 1, out=bins)
        else:
            offsets = keys - self._low[classes]
            # A key below the interval has a negative offset, which is huge as an unsigned number.
            inside = np.flatnonzero(offsets.view(np.uint64) < self._width[classes])
            classes, keys = classes[inside], keys[inside]
            bins = offsets[inside] >> self._shift[classes]
        bins += classes << self._bits
        np.add.at(self._tally[self.num_classes + 1 :], bins, 1)
        return classes, keys

    def _hold(self, classes: NDArray[np.int64], keys: NDArray[np.int64]) -> None:
        """Hold a pass's candidates. Once there are too many, no more are held."""
        stop = self._num_held + len(keys)
        if stop <= len(self._held_keys):
            self._held_classes[self._num_held : stop] = classes
            self._held_keys[self._num_held : stop] = keys
        self._num_held = stop

    def _narrow(self, histogram: NDArray[np.int64]) -> None:
        """Narrow each open class's interval to the bin that holds its rank: histogram (K, bins) over all processes."""
        last_bin = histogram.shape[1] - 1
        for k in np.flatnonzero(self._width).tolist():
            # Ranks count from the best score, which is in the last bin.
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
        """Sums over all processes: rows of each class (K,), rows in more than single precision, and bins (K, bins).

        The counts start again from 0.
        """
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

    `chunks()` is called once for each pass and must give the same rows each time. A chunk is scores (n, K), or a pair
    of best classes (n,) and their scores (n,). The other arguments and the errors are those of `ThresholdSearch`.
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
