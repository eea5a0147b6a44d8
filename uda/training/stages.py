"""The stages of runs, and the numbers that their seeds begin with."""

from dataclasses import dataclass

_claimed: dict[int, str] = {}


def seed_number(number: int, use: str) -> int:
    """Claim a number for one use of randomness. Seeds of this use begin with it, and no other use can claim it.

    Raises:
        ValueError: another use has claimed the number.
    """
    if _claimed.setdefault(number, use) != use:
        raise ValueError(f"seeds that begin with {number} belong to {_claimed[number]}, not to {use}")
    return number


INITIAL_WEIGHTS = seed_number(0, "initial weights")


@dataclass(frozen=True)
class Stage:
    """A stage of training. Creating one registers it. Its seeds begin with its number."""

    name: str
    """Name in checkpoints."""
    number: int
    """First number of the stage's seeds."""
    title: str
    """Name for people; {round} stands for the number of the round."""
    batches: str
    """The setting for the size of its batches."""
    unit: str = "epoch"
    """What the stage counts: epochs, or intervals between reports."""

    def __post_init__(self):
        seed_number(self.number, f"stage '{self.name}'")
        STAGES[self.name] = self


#: The stages of all kinds of run that are imported, by name.
STAGES: dict[str, Stage] = {}
