"""Groups of images by their human selection frequency: [e0, e1], (e1, e2], ..."""

from collections.abc import Sequence

import numpy as np

from uda.core.errors import UserError

#: The paper's edges.
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def parse_bins(text: str) -> tuple[float, ...]:
    """Edges of bins from a text such as `0,.2,1`: two or more rising numbers in 0..1. Otherwise raises UserError."""
    try:
        edges = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"`bins`: must be numbers with commas, such as 0,0.2,0.4,0.6,0.8,1; got '{text}'") from None
    if len(edges) < 2 or not all(0 <= edge <= 1 for edge in edges) or list(edges) != sorted(set(edges)):
        raise UserError(f"`bins`: must be two or more rising edges in 0..1; got '{text}'")
    return edges


def bin_name(number: int, bins: Sequence[float]) -> str:
    """The name of a bin: `[0, 0.2]` for the first, `(0.2, 0.4]` for the second."""
    return f"{'(' if number else '['}{bins[number]:g}, {bins[number + 1]:g}]"


def bin_numbers(frequencies: np.ndarray, bins: Sequence[float]) -> np.ndarray:
    """The bin number of each frequency, (N,) -> (N,) int64; -1 outside of all bins."""
    numbers = np.searchsorted(bins, frequencies, side="left") - 1
    numbers[frequencies == bins[0]] = 0
    numbers[frequencies > bins[-1]] = -1
    return numbers
