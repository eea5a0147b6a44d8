"""Reads weight files of any program and finds a network's tensors in them, or says why it cannot.

Nothing that executes code is ever loaded.
"""

import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from uda.core.errors import UserError

#: Keys of a moving average of the weights, or of DINO's teacher. Authors report results of these.
_AVERAGES = ("state_dict_ema", "model_ema", "teacher")
#: Names of MoCo's second encoder, which its authors do not use after training.
_SECOND_ENCODERS = {"encoder_k", "momentum_encoder"}
#: First bytes of files that people mistake for weights.
_FOREIGN = {
    b"version https://git-lfs": "is a Git LFS pointer and not the file itself; fetch the file with `git lfs pull`",
    b"\x89HDF": "is an HDF5 file, as Keras writes them; PyTorch weights are needed",
    b"\x1f\x8b": "is a compressed archive; unpack it and name the file in it",
    b"7z\xbc\xaf": "is a compressed archive; unpack it and name the file in it",
    b"\x93NUMPY": "is a NumPy array; PyTorch weights are needed",
}


def file_of(path: str | Path) -> Path:
    """The file that a path means. For a run folder, or the checkpoints folder in it, it is the final weights."""
    path = Path(path)
    inside = (path / "checkpoints" / "final.safetensors", path / "final.safetensors")
    return next((file for file in inside if file.is_file()), path)


def read_weights(path: str | Path, key: str) -> Any:
    """The content of a .safetensors or .pth file: mappings with tensors in them, nested as in the file.

    A pickle that would run code is refused. Raises UserError if there is no such file or it has no PyTorch weights. The
    message begins with `key` and says what the file is and what to do.
    """
    file = file_of(path)
    if file.is_dir():
        seeds = sorted(child.name for child in file.glob("seed*") if child.is_dir())
        which = f"; name one of {', '.join(seeds)} in it" if seeds else "; a run writes this file at its end"
        raise UserError(f"{key}: {file} is a folder without checkpoints/final.safetensors{which}")
    if not file.exists():
        raise UserError(f"{key}: no such file: {file}")
    try:
        with open(file, "rb") as opened:
            head = opened.read(512)
    except OSError as error:
        raise UserError(f"{key}: {file} cannot be read: {error.strerror}") from None
    if head[8:9] == b"{":
        try:
            return load_file(file)
        except (SafetensorError, ValueError) as error:
            raise UserError(f"{key}: {file} is not a complete safetensors file: {error}; get it again") from None
    if why := _not_weights(file, head):
        raise UserError(f"{key}: {file} {why}")
    try:
        with warnings.catch_warnings(action="ignore"):  # the errors below name unusual pickles
            content = torch.load(file, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load can raise any error for files of other programs
        code = re.search(r"GLOBAL (\S+)", str(error))
        why = "it is truncated, damaged, or of another program; get it again"
        if code:
            why = (
                f"it also holds {code[1]}, which may run code and is never loaded; if you trust the file, save only "
                "its tensors: torch.save(STATE, 'weights.pth'), where STATE is torch.load(FILE, weights_only=False)"
                "['state_dict'] or, for a whole module, its .state_dict()"
            )
        raise UserError(f"{key}: {file} is not a file of plain tensors: {why}") from None
    if not isinstance(content, Mapping):
        raise UserError(f"{key}: {file} holds a {type(content).__name__}, not a mapping of names to tensors")
    if {"version", "progress", "network"} <= content.keys():
        raise UserError(
            f"{key}: {file} is a checkpoint for resuming its run; name final.safetensors in the same folder instead"
        )
    return content


def _not_weights(file: Path, head: bytes) -> str | None:
    """What a file without PyTorch weights is, by its first bytes, and the cure. None if it may have weights."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty; get it again"
    if found := next((what for begin, what in _FOREIGN.items() if head.startswith(begin)), None):
        return found
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page and not the file itself; download the file by its direct link"
    if file.suffix.lower() == ".onnx":
        return "is an ONNX graph; PyTorch weights are needed"
    if head.isascii() and "".join(head.decode().split()).isprintable():
        return "is a text file without weights; name the file with the weights"
    if not head.startswith(b"PK"):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError):
        return "is truncated or damaged; get it again"
    if "constants.pkl" in names:
        return (
            "is a TorchScript archive, which holds code; if you trust the file, save only its tensors: "
            "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
        )
    return None if "data.pkl" in names else "is an archive without PyTorch weights; unpack it and name the file in it"


@dataclass(frozen=True)
class Fit:
    """The part of a file that fits a network best."""

    found: dict[str, Tensor]
    """The file's tensors by the network's names, without their common prefix in the file."""
    differences: tuple[str, ...]
    """The tensors of the network that are missing in the file or have another shape there."""
    count: int
    """Number of tensors of the network that fit, out of `needed`."""
    needed: int

    def require(self, what: str) -> dict[str, Tensor]:
        """The tensors. Raises UserError if some are missing. The message begins with `what`."""
        if self.differences:
            more = len(self.differences) - 3
            named = "; ".join(self.differences[:3]) + (f"; and {more} more" if more > 0 else "")
            raise UserError(f"{what}: {self.count} of {self.needed} tensors fit; {named}")
        return self.found


def best_fit(content: Mapping[str, Any], wanted: Mapping[str, Tensor], what: str) -> Fit:
    """Find a network's tensors in a file, under any key (`state_dict`) and prefix (`module.`).

    BatchNorm's batch counters may be missing, because PyTorch before 0.4.1 did not have them. They are then those of
    `wanted`.

    Args:
        content: the content of the file.
        wanted: the network's state dict.
        what: the begin of the message.

    Raises:
        UserError: several parts of one mapping fit, such as a student and a teacher.
    """
    counters = {name: value for name, value in wanted.items() if name.endswith("num_batches_tracked")}
    needed = {name: value for name, value in wanted.items() if name not in counters}
    fits: dict[str, dict[str, Fit]] = {}
    for place, mapping in _mappings(content):
        for prefix in _prefixes(mapping, needed):
            under = {name.removeprefix(prefix): value for name, value in mapping.items() if name.startswith(prefix)}
            differences = shape_differences(needed, under)
            count = len(needed) - len(differences)
            fits.setdefault(place, {})[prefix] = Fit(counters | under, tuple(differences), count, len(needed))
    if not fits:
        missing = tuple(f"{name} is missing" for name in sorted(needed))
        return Fit({}, missing, 0, len(needed))
    whole = {place: {p: fit for p, fit in found.items() if not fit.differences} for place, found in fits.items()}
    places = [place for place in (*_AVERAGES, *whole) if whole.get(place)]
    if not places:
        return max((fit for found in fits.values() for fit in found.values()), key=lambda fit: fit.count)
    found = whole[places[0]]
    first = [prefix for prefix in found if not _SECOND_ENCODERS & set(prefix.split("."))]
    if len(first) > 1 and "" not in first:
        raise UserError(f"{what}: {len(first)} parts of the file fit, {', '.join(sorted(first))}: keep one of them")
    return found["" if "" in first else (first or list(found))[0]]


def _mappings(content: Mapping[Any, Any], place: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping that holds tensors by name, with its key. Outer mappings come first."""
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in content.items():
        if isinstance(value, Mapping) and depth < 3:
            yield from _mappings(value, str(key), depth + 1)


def _prefixes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Prefixes of the network's names in the file, the most frequent first."""
    counts: Counter[str] = Counter()
    for name in tensors:
        ends = [0, *(place + 1 for place, letter in enumerate(name) if letter == ".")]
        counts.update(name[:end] for end in ends if name[end:] in wanted)
    return [prefix for prefix, _ in counts.most_common(8)]


def shape_differences(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Tensors of `wanted` that are missing in `found` or have another shape or type there, by name."""
    differences = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    for name in wanted.keys() & found.keys():
        old, new = found[name], wanted[name]
        if old.shape != new.shape:
            differences.append(f"{name} is {tuple(old.shape)}, not {tuple(new.shape)}")
        elif old.is_floating_point() != new.is_floating_point():
            differences.append(f"{name} is of {old.dtype}, not {new.dtype}")
    return sorted(differences)
