"""What a benchmark is: our code and a floor, ready to run on the same inputs."""

from collections.abc import Callable
from dataclasses import dataclass

from uda.registry import Registry


@dataclass(frozen=True)
class Contest:
    """Our code and its floor, ready to run on the same inputs; a call returns when its work is done."""

    ours: Callable[[], object]
    floor: Callable[[], object]
    per_call: int = 1
    """Units of work in a call, for example training steps; seconds are given per unit."""
    bar: float | None = None
    """The ratio that is good enough; None: the row is there to be watched."""


#: name -> function of `scale` (share of the full amount of work, in (0, 1]) that builds the inputs and the Contest.
BENCHMARKS: Registry[Callable[[float], Contest]] = Registry("benchmark")
