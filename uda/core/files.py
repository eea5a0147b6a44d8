"""Writes files atomically: a file is either complete or missing."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from uda.core.errors import UserError


class OutputError(UserError):
    """A file of the run cannot be written: the disk is full, or the folder is write-protected or missing."""

    def __init__(self, path: Path, error: OSError):
        super().__init__(
            f"{path} cannot be written: {error.strerror or error}; nothing that was written before is lost; remove the "
            "cause (for example, free some space) and give the same command again"
        )


@contextmanager
def atomic_path(path: Path, durable: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, to write to. It replaces `path` when the block ends without an error.

    `durable`: wait until the file is on the disk. Without it, a power cut may undo or damage it, but a kill may not.

    Raises OutputError if the file cannot be written. `path` is then unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
        if durable:
            _sync(path.parent)  # so that the new name survives a power cut
    except OSError as error:
        raise OutputError(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    """Delete the temporary files of killed processes in a folder and below it."""
    for leftover in Path(folder).rglob(".*.tmp"):
        with suppress(OSError):
            leftover.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: object) -> None:
    """Write strict JSON (no NaN, no infinity) atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def reserve(file: IO[bytes], size: int) -> None:
    """Make an open file at least `size` bytes long, before it is mapped. Raises OSError if the disk is full.

    Without room on the disk, a write to the mapped file would end the process by a signal.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    else:
        file.truncate(size)


def _sync(path: Path) -> None:
    folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not folder:  # Windows cannot open folders, and some file systems cannot sync them
            raise
