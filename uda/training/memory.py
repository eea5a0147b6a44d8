"""Memory: what is said when it runs out, and room for arrays that are too large for it."""

import re
import tempfile
from pathlib import Path

import numpy as np
import torch

from uda.core.files import OutputError, reserve

#: Larger arrays of features are in a temporary file. The system keeps as much of it in memory as there is room for.
MOST_BYTES = 512 * 2**20

#: CUDA raises torch.OutOfMemoryError. Its libraries, MPS and the CPU's allocators raise a RuntimeError with this text.
_SHORTAGE = re.compile(r"out of memory|can't allocate memory|not enough memory|_STATUS_ALLOC_FAILED")

_AMOUNT = r"([\d.]+ (?:bytes|[KMGT]i?B))"
_ASKED = re.compile(rf"tried to allocate {_AMOUNT}", re.IGNORECASE)
_CUDA = re.compile(rf"total capacity of {_AMOUNT} of which {_AMOUNT} is free")
_MPS = re.compile(rf"max allowed: {_AMOUNT}")


def shortage(error: Exception) -> str | None:
    """A sentence about memory that has run out, from an error; None if the error has another cause."""
    text = str(error)
    if not isinstance(error, torch.OutOfMemoryError) and not _SHORTAGE.search(text):
        return None
    told = []
    if asked := _ASKED.search(text):
        told.append(f"{_readable(asked[1])} more were requested")
    if has := _CUDA.search(text):
        told.append(f"the GPU has {has[1]}, of which {has[2]} are free")
    if allowed := _MPS.search(text):
        told.append(f"at most {allowed[1]} are allowed")
    return ", ".join(["out of memory", *told])


def room_for(count: int, width: int, folder: Path | None = None) -> np.ndarray:
    """An empty array for the features of `count` images, float32 (count, width).

    A large one is a temporary file without a name, which is gone when the array is, or when the process is killed.

    Args:
        count, width: N and D.
        folder: folder of the file. None, or a folder that does not exist: the system's folder for temporary files.

    Raises:
        OutputError: the disk has too little space.
    """
    size = 4 * count * width
    if size <= MOST_BYTES:
        return np.empty((count, width), np.float32)
    folder = folder if folder is not None and folder.is_dir() else Path(tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, size)
            return np.asarray(np.memmap(file, np.float32, "w+", shape=(count, width)))
    except OSError as error:
        raise OutputError(folder / "features of a prediction", error) from error


def _readable(amount: str) -> str:
    number, unit = amount.split()
    return amount if unit != "bytes" else f"{float(number) / 2**30:,.2f} GiB"
