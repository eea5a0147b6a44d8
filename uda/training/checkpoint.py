"""Checkpoints. One file holds all state of a run. It is written completely or not at all, and checked when read.

The file before the newest is kept. A file is named after its content, as torch.hub does:
`state-<number>-<first 16 digits of its SHA-256>.pt`. One rename brings file and checksum together, and
`torch.load(path, weights_only=True)` opens it. A run's randomness is a function of (seed, stage, round, epoch, step),
so no state of a generator or sampler is saved.
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

#: Version of the format, increased with every change. An older program refuses a newer file.
VERSION = 5

#: Least time between two optional checkpoints, as a multiple of what one costs. They take at most 1 % of the time.
COST_FACTOR = 100

_NAME = re.compile(r"state-(\d{6,})-([0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class Progress:
    """The point that a run has reached."""

    stage: str = "source"
    """Name of a stage of its kind of run, or `done`."""
    round: int = 0
    """The current round, or the stage of a method of domain generalisation."""
    epoch: int = 0
    """Finished epochs of the stage."""
    step: int = 0
    """Finished steps of the current epoch."""
    seconds: float = 0.0
    """Time spent so far, over all starts."""

    @property
    def begun(self) -> bool:
        """Whether training of the stage has begun. Then the checkpoint has its optimiser and a round's choice."""
        return bool(self.epoch or self.step)

    def describe(self) -> str:
        """Text for people: `round 3, 1 epoch done and 40 steps of the next`."""
        if self.stage == "done":
            return "the end"
        stage = STAGES[self.stage]
        title = stage.title.format(round=self.round)
        epochs = f"{title}, {self.epoch} {stage.unit}{'' if self.epoch == 1 else 's'} done"
        return epochs + (f" and {self.step} step{'s' * (self.step > 1)} of the next" if self.step else "")


class Checkpoints:
    """The folder `checkpoints/` of a run, with the newest state and the one before it.

    Args:
        folder: the folder.
        warn: receives a warning about a damaged file.
        every: seconds between optional checkpoints, which only help after a crash.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = print, every: float = 300.0):
        self.folder = Path(folder)
        self.warn = warn
        self.every = every
        self.seconds_spent = 0.0
        """Time spent on saving since the start."""
        self.newest: Path | None = None
        """The newest complete file that this object has read or written."""
        self._saved_at = time.monotonic()
        self._cost = 0.0

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for an optional one."""
        return time.monotonic() - self._saved_at >= max(self.every, COST_FACTOR * self._cost)

    def save(self, progress: Progress, state: Mapping[str, object]) -> None:
        """Write the next file and remove all except the one before it. `state`: tensors, numbers and strings only.

        Raises OutputError if the file cannot be written. Then the earlier files are all kept.
        """
        started = time.monotonic()
        files = self._files()
        number = files[0][0] + 1 if files else 1
        buffer = io.BytesIO()  # in memory first, because torch.save gives no clear error if the disk is full
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
        """Content of the newest complete file; None if there is no file yet. Damaged files are skipped with a warning.

        Raises UserError if there are files and all are damaged.
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
                    self.warn(f"warning: {problem}; the run resumes from the one before it, {path.name}")
                self.newest = path
                return content
            problems.append(f"{path.name} is damaged (its content does not match the checksum in its name)")
        if problems:
            raise UserError(
                f"{self.folder}: all checkpoints are damaged: {'; '.join(problems)}; delete that folder to start again"
            )
        return None

    def _files(self) -> list[tuple[int, str, Path]]:
        """Number, checksum and path of each file, newest first."""
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
        UserError: the file holds code or anything except plain state, or another version has written it.
    """
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        version, progress = state.pop("version"), state.pop("progress")
    except Exception as error:  # torch.load raises errors of many types for other files
        reason = str(error).split("\n")[0]
        raise UserError(f"{name}: not a checkpoint of plain tensors ({reason})") from None
    if version > VERSION:
        raise UserError(
            f"{name} was written by a newer version of uda (format {version}, this one reads up to {VERSION}); update "
            "uda, or choose another output=..."
        )
    if version < VERSION:
        raise UserError(
            f"{name} was written by an older version of uda (format {version}); resume with that version, or choose "
            "another output=..."
        )
    return Progress(**progress), state


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
