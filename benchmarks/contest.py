"""What a benchmark is: our code and a floor, ready to run on the same inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from uda.core.registry import Registry


@dataclass(frozen=True)
class Contest:
    """Our code and its floor, ready to run on the same inputs; a call returns when its work is done.

    `benchmarks.run_bench` builds one in each of two processes and calls one side in either. So building must not do
    what only one side should feel (settings of the whole process): see `at_first_call`.
    """

    ours: Callable[[], object]
    floor: Callable[[], object]
    per_call: int = 1
    """Units of work in a call, for example training steps; seconds are given per unit."""
    bar: float | None = None
    """The ratio that is good enough; None: the row is there to be watched."""
    limit_seconds: float | None = None
    """What ours may take at most, where it is the time itself that counts and not its ratio to a floor."""
    before_ours: Callable[[], object] = lambda: None
    """Called before every call of ours, and not timed."""


#: name -> function of `scale` (share of the full amount of work, in (0, 1]) that builds the inputs and the Contest.
BENCHMARKS: Registry[Callable[[float], Contest]] = Registry("benchmark")


def at_first_call(prepare: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """One side of a contest whose preparation waits for the first call, which is never timed."""
    prepared = cache(prepare)
    return lambda: prepared()()
