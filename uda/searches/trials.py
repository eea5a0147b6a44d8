"""The trials of a search. The record of a trial holds no figure that needs target labels."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from uda.core.errors import UserError
from uda.core.files import write_json
from uda.training.records import plain, read_record

State = Literal["running", "finished", "pruned", "failed"]


@dataclass
class Trial:
    """A run with some values of the settings."""

    number: int
    """Number from 0. Trial 0 is the config as it is."""
    values: dict[str, Any]
    """Value of each setting of the space, by dotted key."""
    state: State = "running"
    """`finished`, `pruned` (ended early, because its scores are low), `failed`, or `running`, also if interrupted."""
    scores: list[float | None] = field(default_factory=list)
    """The validator's score at each report, that of the source model first."""
    validators: dict[str, float | None] = field(default_factory=dict)
    """Score of every validator at the last report."""
    seconds: float = 0.0
    """Duration of the run."""
    error: str | None = None
    """Why a failed trial failed."""

    @property
    def score(self) -> float | None:
        """The validator's score at the last report."""
        return self.scores[-1] if self.scores else None

    @property
    def ended(self) -> bool:
        """Whether the trial has an end. A trial without one is run on by the next start."""
        return self.state != "running"


def trial_folder(folder: Path, number: int) -> Path:
    """The run folder of a trial."""
    return folder / "trials" / f"{number:03d}"


def _file(folder: Path, number: int) -> Path:
    return trial_folder(folder, number).with_suffix(".json")


def write_trial(folder: Path, trial: Trial) -> None:
    """Write a trial's record beside its run folder."""
    write_json(_file(folder, trial.number), plain(asdict(trial)))


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a search, in order. Raises UserError for a record that is broken or missing."""
    files = sorted((folder / "trials").glob("[0-9]*.json"))
    found = []
    for number in range(len(files)):
        path = _file(folder, number)
        record = read_record(path)
        try:
            trial = Trial(**record)
            known = trial.number == number and isinstance(trial.values, Mapping) and isinstance(trial.scores, Sequence)
        except TypeError:
            known = False
        if not known:
            raise UserError(f"{path} is broken; delete it and all trials after it, and give the same command again")
        found.append(trial)
    return found


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The finished trial with the highest score; the first one if several are equal. None if there is none."""
    finished = [trial for trial in trials if trial.state == "finished" and trial.score is not None]
    return max(finished, key=lambda trial: trial.score, default=None)
