"""Groups of images by their human selection frequency: [e0, e1], (e1, e2], ..."""

from collections.abc import Sequence

import numpy as np

from uda.core.errors import UserError

#: The paper's edges.
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def parse_bins(text: str) -> tuple[float, ...]:
    """`0,.2,1` -> edges of bins. Raises UserError unless they are two or more, rising, within 0..1."""
    try:
        edges = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"`bins`: numbers with commas are meant, as in 0,0.2,0.4,0.6,0.8,1; got '{text}'") from None
    if len(edges) < 2 or not all(0 <= edge <= 1 for edge in edges) or list(edges) != sorted(set(edges)):
        raise UserError(f"`bins`: two or more rising edges within 0..1 are meant, got '{text}'")
    return edges


def bin_name(number: int, bins: Sequence[float]) -> str:
    """`[0, 0.2]` of the first bin, `(0.2, 0.4]` of the second."""
    return f"{'(' if number else '['}{bins[number]:g}, {bins[number + 1]:g}]"


def bin_numbers(frequencies: np.ndarray, bins: Sequence[float]) -> np.ndarray:
    """(N,) frequencies to (N,) int64, the bin of each, -1 outside all."""
    numbers = np.searchsorted(bins, frequencies, side="left") - 1
    numbers[frequencies == bins[0]] = 0
    numbers[frequencies > bins[-1]] = -1
    return numbers
