"""Read the records of a supervised run from its folder."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from uda.core.errors import UserError
from uda.training.records import read_results


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """The records of a finished run's epochs, in order. The first is the record of the untrained network.

    Raises UserError if a record is missing or broken.
    """
    try:
        return read_results(folder / "results.json")[1]
    except UserError as error:
        raise UserError(f"{error}; run `uda hardness dynamics` again to write it") from None


def read_epoch_scores(folder: Path, name: str) -> np.ndarray:
    """A score, or `right`, of every test image at every epoch: (E, N), in the order of `scores.csv`.

    Raises UserError if an epoch's file is missing or broken, or lacks the score. It cannot be written again without
    another training.
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
