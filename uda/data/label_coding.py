"""Which values in label maps stand for which class."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from uda.core.errors import UserError

#: A pixel without a class, in every label map of train ids.
VOID = 255

#: Most classes. The numbers above stand for unknown values and for VOID.
MOST_CLASSES = 254

_UNKNOWN = 254
#: Values of label maps that a coding can name.
_VALUES = 1 << 16


class UnknownIdsError(UserError):
    """A label map holds values that its coding does not know.

    Args:
        path: the file.
        values: the unknown values, each with its number of pixels.
        coding: the coding.
    """

    def __init__(self, path: str | Path, values: Mapping[int, int], coding: "LabelCoding"):
        shown = ", ".join(f"{value} ({count:,} pixels)" for value, count in list(values.items())[:6])
        more = f" and {len(values) - 6} more" if len(values) > 6 else ""
        super().__init__(
            f"{path}: the label map holds values without a class: {shown}{more}; known are {coding.described}: "
            f"add them to `ids` or `ignore` of {coding.place}"
        )
        self.values = dict(values)


@dataclass(frozen=True)
class LabelCoding:
    """How the values in a label map's file become train ids, 0..K-1 or VOID.

    Raises ValueError for values outside of 0..65535, for train ids above 253, and for a value that is both.
    """

    ids: Mapping[int, int]
    """Value in the file -> train id."""
    ignore: frozenset[int] = frozenset({VOID})
    """Values in the file that become VOID."""
    channel: int | None = None
    """Channel that holds the class, from 0, in the file's own order (red is 0). None: the map must have one channel."""
    place: str = field(default="the card of the data set", compare=False)
    """Where the coding was written, for messages."""

    def __post_init__(self):
        known = {*self.ids, *self.ignore}
        if any(not 0 <= value < _VALUES for value in known):
            raise ValueError(f"values of label maps must be 0..{_VALUES - 1}: {sorted(known)}")
        if any(not (0 <= number < MOST_CLASSES or number == VOID) for number in self.ids.values()):
            raise ValueError(f"train ids must be 0..{MOST_CLASSES - 1}: {sorted(set(self.ids.values()))}")
        if both := self.ids.keys() & self.ignore:
            raise ValueError(f"values in `ids` and in `ignore`: {sorted(both)}")

    @classmethod
    def plain(
        cls, num_classes: int, place: str = "a card, and name its domain in place of the folder"
    ) -> "LabelCoding":
        """The coding of maps that hold train ids 0..K-1, and 255 for void."""
        return cls({number: number for number in range(num_classes)}, frozenset({VOID}), place=place)

    @property
    def described(self) -> str:
        """The known values, `0-10, 255`."""
        values, pieces = sorted({*self.ids, *self.ignore}), []
        for value in values:
            if pieces and value == pieces[-1][1] + 1:
                pieces[-1][1] = value
            else:
                pieces.append([value, value])
        return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in pieces)

    @cached_property
    def _table(self) -> np.ndarray:
        table = np.full(_VALUES, _UNKNOWN, np.uint8)
        for value, number in self.ids.items():
            table[value] = number
        table[list(self.ignore)] = VOID
        return table

    def train_ids(self, values: np.ndarray, path: str | Path) -> np.ndarray:
        """Values of a map (H, W) -> train ids, uint8 (H, W). Raises UnknownIdsError, which names `path`."""
        if values.dtype.itemsize > 2:
            inside = (values >= 0) & (values < _VALUES)
            numbers = np.where(inside, self._table[np.where(inside, values, 0)], np.uint8(_UNKNOWN))
        else:
            numbers = self._table[values]
        unknown = numbers == _UNKNOWN
        if unknown.any():
            found, counts = np.unique(values[unknown], return_counts=True)
            raise UnknownIdsError(path, dict(zip(found.tolist(), counts.tolist(), strict=True)), self)
        return numbers
