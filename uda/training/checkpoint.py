"""All state of a run in one file: written whole or not at all, checked when read, the one before it kept.

A file is named after its content, `state-<number>-<first 16 digits of its SHA-256>.pt`, as torch.hub names weights:
one rename brings file and checksum at once, and `torch.load(path, weights_only=True)` opens it. A run's randomness is a
function of (seed, stage, round, epoch, step), so no generator's state has to be saved, nor a sampler's place.
"""

import hashlib
import io
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from uda.core.errors import UserError
from uda.core.files import write_bytes
from uda.training.stages import STAGES

#: Raised with every change of the format; an older program refuses a newer file.
VERSION = 4

#: So many times its own cost passes between two checkpoints that are not needed: they take 1 % of the time at most.
COST_FACTOR = 100

_NAME = re.compile(r"state-(\d{6,})-([0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    stage: str = "source"
    """Name of a stage of its kind of run, or `done`."""
    round: int = 0
    """The round under way, or the stage of a method of domain generalisation."""
    epoch: int = 0
    """Finished epochs of the stage."""
    step: int = 0
    """Finished steps of the epoch under way."""
    seconds: float = 0.0
    """Time spent so far, over all starts."""

    @property
    def begun(self) -> bool:
        """Whether the stage's training has begun: its optimiser, and a round's choice, are in the checkpoint."""
        return bool(self.epoch or self.step)

    def describe(self) -> str:
        """For people: `round 3, 1 epoch done and 40 steps of the next`."""
        if self.stage == "done":
            return "the end"
        stage = STAGES[self.stage]
        title = stage.title.format(round=self.round)
        epochs = f"{title}, {self.epoch} {stage.unit}{'' if self.epoch == 1 else 's'} done"
        return epochs + (f" and {self.step} step{'s' * (self.step > 1)} of the next" if self.step else "")


class Checkpoints:
    """The folder `checkpoints/` of a run: the newest state and the one before it.

    Args:
        folder: where the files lie.
        warn: told of a damaged file.
        every: seconds between checkpoints that are not needed for anything but a power cut.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = print, every: float = 300.0):
        self.folder = Path(folder)
        self.warn = warn
        self.every = every
        self.seconds_spent = 0.0
        """Time that saving took since the start."""
        self.newest: Path | None = None
        """The newest whole file, as far as this object knows."""
        self._saved_at = time.monotonic()
        self._cost = 0.0

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for a new one that nothing but caution asks for."""
        return time.monotonic() - self._saved_at >= max(self.every, COST_FACTOR * self._cost)

    def save(self, progress: Progress, state: Mapping[str, object]) -> None:
        """Write the next file, tensors, numbers and strings only, and remove all but the one before it.

        Raises OutputError when the disk does not take it; the files of before are then all there.
        """
        started = time.monotonic()
        files = self._files()
        number = files[0][0] + 1 if files else 1
        buffer = io.BytesIO()  # first into memory: torch.save dies badly of a full disk
        torch.save({"version": VERSION, "progress": asdict(progress), **state}, buffer)
        path = self.folder / f"state-{number:06d}-{_digest(buffer.getbuffer())}.pt"
        write_bytes(path, buffer.getbuffer())
        before = self.newest or (files[0][2] if files else None)
        for _, _, old in files:
            if old != before:
                with suppress(OSError):
                    old.unlink()
        self.newest = path
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - started
        self.seconds_spent += self._cost

    def read(self) -> bytes | None:
        """Content of the newest whole file, None where there is none yet. A damaged one is named and passed over.

        Raises UserError when there are files and all of them are damaged.
        """
        files, problems = self._files(), []
        for _, digest, path in files:
            try:
                content = path.read_bytes()
            except OSError as error:
                problems.append(f"{path.name} cannot be read ({error.strerror})")
                continue
            if _digest(content) == digest:
                for problem in problems:
                    self.warn(f"warning: {problem}; going on from the one before it, {path.name}")
                self.newest = path
                return content
            problems.append(f"{path.name} is damaged (its content does not match the checksum in its name)")
        if problems:
            raise UserError(
                f"{self.folder}: no whole checkpoint: {'; '.join(problems)}; delete that folder to begin the run again"
            )
        return None

    def _files(self) -> list[tuple[int, str, Path]]:
        """Number, checksum and path of each file, the newest first."""
        found = []
        try:
            for path in self.folder.iterdir():
                if match := _NAME.fullmatch(path.name):
                    found.append((int(match[1]), match[2], path))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError as error:
            raise UserError(f"{self.folder} cannot be read: {error.strerror}") from None
        return sorted(found, reverse=True)


def parse(content: bytes, name: str = "checkpoint") -> tuple[Progress, dict[str, object]]:
    """Progress and state from a file's content.

    Raises:
        UserError: a file that carries code or anything else than plain state, or one from a newer version.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        version, progress = state.pop("version"), state.pop("progress")
    except Exception as error:  # torch.load meets foreign files with errors of every kind
        reason = str(error).split("\n")[0]
        raise UserError(f"{name}: refused, it is not a checkpoint of plain tensors ({reason})") from None
    if version > VERSION:
        raise UserError(
            f"{name} was written by a newer version of uda (format {version}, this one reads up to {VERSION}); update "
            "uda, or choose another output=..."
        )
    if version < VERSION:
        raise UserError(
            f"{name} was written by an older version of uda (format {version}); go on with that version, or choose "
            "another output=..."
        )
    return Progress(**progress), state


def load_checkpoint(folder: Path) -> tuple[Progress, dict[str, object]] | None:
    """The newest whole checkpoint of a folder, None where there is none. Raises UserError as `read` and `parse` do."""
    content = Checkpoints(folder).read()
    return None if content is None else parse(content, str(folder))


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
