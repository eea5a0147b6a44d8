"""Feature banks for tests: a user's own arrays of blobs, one per class, which a linear classifier can tell apart."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

CLASSES = ("ant", "bee", "cat", "dog")


def blobs(
    per_class: int = 8, width: int = 12, shift: float = 0.0, seed: int = 0, classes: Sequence[str] = CLASSES
) -> dict[str, np.ndarray]:
    """`features` (N, width) float32, `ids` and `labels` of N images, class by class. `shift` moves the domain."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 2, (len(classes), width))
    labels = np.repeat(np.arange(len(classes)), per_class)
    features = centres[labels] + shift + random.normal(0, 0.5, (len(labels), width))
    ids = [f"{classes[label]}/{number}.jpg" for number, label in enumerate(labels)]
    return {"features": features.astype(np.float32), "ids": np.array(ids), "labels": np.array(classes)[labels]}


def write_npz(folder: Path, **domains: dict[str, np.ndarray]) -> Path:
    """A bank of .npz files, one per domain; gives back the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, arrays in domains.items():
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def blob_bank(folder: Path) -> Path:
    """A bank of the domains `drawn` and `photos`, of four classes with eight images each."""
    return write_npz(folder, drawn=blobs(), photos=blobs(shift=0.3, seed=1))
