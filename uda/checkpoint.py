"""All state of a run in one file, written atomically; what stands on disk is always a whole checkpoint.

A run's randomness is a function of (seed, stage, round, epoch), so no generator's state has to be saved: the state is
the progress, the network, the optimiser and the pseudo-labels of the round under way.
"""

import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from uda.atomic import atomic_path
from uda.errors import UserError

#: Raised with every change of the format; an older program refuses a newer file.
VERSION = 1


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    stage: str = "source"
    """`source`, `round` or `done`."""
    round: int = 0
    """The round under way."""
    epoch: int = 0
    """Finished epochs of the stage."""
    seconds: float = 0.0
    """Time spent so far, over all starts."""

    def describe(self) -> str:
        """For people: `round 3, epoch 1`."""
        if self.stage == "source":
            return f"the source stage, epoch {self.epoch}"
        return f"round {self.round}, epoch {self.epoch}" if self.stage == "round" else "the end"


def save_checkpoint(folder: Path, progress: Progress, state: Mapping[str, object]) -> None:
    """Write `last.pt` in `folder`: tensors, numbers and strings only."""
    with atomic_path(Path(folder) / "last.pt") as temporary:
        torch.save({"version": VERSION, "progress": asdict(progress), **state}, temporary)


def load_checkpoint(folder: Path) -> tuple[Progress, dict[str, object]] | None:
    """The last checkpoint in `folder`, or None where there is none yet.

    Raises:
        UserError: a file that cannot be read, or one from a newer version.
    """
    path = Path(folder) / "last.pt"
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        version = state.pop("version")
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is not a whole checkpoint ({reason}); delete it to begin the run again") from None
    if version > VERSION:
        raise UserError(
            f"{path} was written by a newer version of uda (format {version}, this one reads up to {VERSION})"
        )
    return Progress(**state.pop("progress")), state
