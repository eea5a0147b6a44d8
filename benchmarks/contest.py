"""The definition of a benchmark: our code and a floor, with the same inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from uda.core.registry import Registry


@dataclass(frozen=True)
class Contest:
    """Our code and its floor, ready to run on the same inputs. A call returns when its work is done.

    `benchmarks.run_bench` builds the contest in two processes, and calls one side in each. Building must not change
    settings of the process that are for one side only. `at_first_call` delays such changes.
    """

    ours: Callable[[], object]
    floor: Callable[[], object]
    per_call: int = 1
    """Units of work in a call, for example training steps. Seconds are reported per unit."""
    bar: float | None = None
    """The smallest ratio that is good enough; None: no requirement."""
    limit_seconds: float | None = None
    """The longest time of ours, if the time counts and not its ratio to the floor; None: no limit."""
    before_ours: Callable[[], object] = lambda: None
    """Called before every call of ours, without timing."""


#: Functions that build the inputs and the Contest. `scale` is the share of the full amount of work, in (0, 1].
BENCHMARKS: Registry[Callable[[float], Contest]] = Registry("benchmark")


def at_first_call(prepare: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """One side of a contest that is prepared at its first call. The first call is never timed."""
    prepared = cache(prepare)
    return lambda: prepared()()
