"""The inputs of a run besides its config: images, labels and classes. A run resumes only with the same ones."""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from uda.data.features import features_of
from uda.data.images import Images


class Checksummed(Protocol):
    """Labels that tell a checksum."""

    @property
    def checksum(self) -> str:
        """Eight hexadecimal digits."""


@dataclass(frozen=True)
class InputImages:
    """The images of a run in one role."""

    names: Sequence[str]
    """N names, in order."""
    labels: np.ndarray | Checksummed | None
    """(N,) class numbers, or labels of which only the checksum is read: target labels for evaluation, label maps."""
    features: str = ""
    """Digest of the features that are read in place of images; empty for images."""

    @classmethod
    def of(cls, images: Images, labels: np.ndarray | Checksummed | None) -> "InputImages":
        """The images of a domain, or their features, with labels."""
        return cls(images.ids, labels, " ".join(features.checksum for features in features_of(images)))

    @property
    def checksum(self) -> str:
        """Checksum of the labels, eight hexadecimal digits; empty if there are no labels."""
        if self.labels is None:
            return ""
        if not isinstance(self.labels, np.ndarray):
            return self.labels.checksum
        return _checksum(np.asarray(self.labels, np.int64).tobytes())

    def state(self) -> dict[str, object]:
        """State for a checkpoint: the compressed names, and the labels or, for target labels, their checksum."""
        readable = isinstance(self.labels, np.ndarray)
        return {
            "names": torch.frombuffer(bytearray(zlib.compress(_joined(self.names))), dtype=torch.uint8),
            "labels": torch.from_numpy(self.labels.astype(np.int32)) if readable else self.checksum,
            "features": self.features,
        }


@dataclass(frozen=True)
class Inputs:
    """All images of a run by role (`source`, `target`), and its K classes."""

    classes: Sequence[str]
    images: Mapping[str, InputImages]

    def describe(self) -> str:
        """A line that the processes of a job compare."""
        parts = [
            f"{len(part.names)} {role} images ({_checksum(_joined(part.names))}, labels {part.checksum or 'none'}"
            + (f", features {_checksum(part.features.encode())})" if part.features else ")")
            for role, part in self.images.items()
        ]
        return ", ".join([*parts, f"{len(self.classes)} classes ({_checksum(_joined(self.classes))})"])

    @cached_property
    def state(self) -> dict[str, object]:
        """State for a checkpoint: tensors and strings."""
        images = {role: part.state() for role, part in self.images.items()}
        return {"classes": list(self.classes), "images": images}

    def change_since(self, state: Mapping[str, object]) -> str | None:
        """The difference from a checkpoint's state: `images: of 32 target images 1 is gone (a.png)`; None if equal."""
        then = state["classes"]
        if then != list(self.classes):
            return f"classes: {_difference(then, self.classes, 'classes')}"
        for role, part in self.images.items():
            names = zlib.decompress(state["images"][role]["names"].numpy().tobytes()).decode(*_CODE).split("\0")
            if names != list(part.names):
                return f"images: {_difference(names, part.names, f'{role} images')}"
        for role, part in self.images.items():
            if state["images"][role].get("features", "") != part.features:
                return f"features: those of the {role} images have changed"
        for role, part in self.images.items():
            labels = state["images"][role]["labels"]
            if isinstance(labels, str):
                if labels != part.checksum:
                    return f"labels: the {role} labels are not the ones that the run was evaluated with so far"
                continue
            changed = np.flatnonzero(labels.numpy() != part.labels)
            if len(changed):
                first = changed[0]
                was, now = self.classes[int(labels[first])], self.classes[int(part.labels[first])]
                example = f"{part.names[first]}: {was}, now {now}"
                return f"labels: {len(changed)} of {len(labels)} {role} labels changed ({example})"
        return None


#: File names may be any bytes.
_CODE = ("utf-8", "surrogateescape")


def _joined(names: Sequence[str]) -> bytes:
    return "\0".join(names).encode(*_CODE)


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]


def _difference(then: Sequence[str], now: Sequence[str], what: str) -> str:
    """`of 32 target images 1 is gone (a.png), 2 are new (b.png...)`."""
    sides = [(set(then) - set(now), "gone"), (set(now) - set(then), "new")]
    told = [
        f"{len(names)} {'is' if len(names) == 1 else 'are'} {word} ({min(names)}{'...' * (len(names) > 1)})"
        for names, word in sides
        if names
    ]
    return f"of {len(then)} {what} {', '.join(told) or 'all are present, in another order'}"
