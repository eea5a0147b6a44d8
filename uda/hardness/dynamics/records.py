"""What a supervised run has left on disk, epoch by epoch."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from uda.core.errors import UserError
from uda.training.records import read_results


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The records of a finished run's epochs, in order; the first is that of the network before training.

    Raises UserError where one is missing or broken.
    """
    try:
        return read_results(folder / "results.json")[1]
    except UserError as error:
        raise UserError(f"{error}; `uda hardness dynamics` writes it anew when it is run again") from None


def read_epoch_scores(folder: Path, name: str) -> np.ndarray:
    """A score, or `right`, of every test image at every epoch: (E, N), in the order of `scores.csv`.

    Raises UserError where an epoch's file is missing, broken or without it: no other file has what it held.
    """
    found = []
    for epoch in range(len(read_epochs(folder))):
        path = folder / "epochs" / f"{epoch:02d}.npz"
        try:
            with np.load(path) as scores:
                found.append(scores[name])
        except (KeyError, ValueError, OSError, EOFError, BadZipFile):
            raise UserError(f"{path} is missing or broken; delete {folder} to train again") from None
    return np.stack(found)
