"""The stages of runs, and the numbers from which their randomness is derived."""

from dataclasses import dataclass

_claimed: dict[int, str] = {}


def seed_number(number: int, use: str) -> int:
    """Claim the first number of derived seeds for one use of randomness, so that no two uses share one.

    Raises:
        ValueError: another use has it.
    """
    if _claimed.setdefault(number, use) != use:
        raise ValueError(f"seeds that begin with {number} belong to {_claimed[number]}, not to {use}")
    return number


INITIAL_WEIGHTS = seed_number(0, "initial weights")


@dataclass(frozen=True)
class Stage:
    """A stage of training, as a kind of run registers it. Its seeds begin with its number."""

    name: str
    """What checkpoints call it."""
    number: int
    """First number of the seeds that are derived in it."""
    title: str
    """What people call it; {round} is the number of the round."""
    batches: str
    """The setting that says how large its batches are."""
    unit: str = "epoch"
    """What it counts: epochs, or intervals between reports."""

    def __post_init__(self):
        seed_number(self.number, f"stage '{self.name}'")
        STAGES[self.name] = self


#: Every stage of every kind of run that is imported, by name.
STAGES: dict[str, Stage] = {}
