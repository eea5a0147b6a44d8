"""Class vectors from a file: the first weights of a classifier, such as the text embeddings of a CLIP model."""

import hashlib
import json
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from uda.core.errors import UserError
from uda.data.class_names import closest, sample
from uda.data.text import printable, same_form
from uda.models.network import Network

KEY = "model.classifier"
#: Names of the array with the vectors. A safetensors file has the first one.
ARRAYS = ("weight", "vectors")
#: Vectors that are no longer than this have no direction. `torch.nn.functional.normalize` has the same limit.
SHORTEST = 1e-12

_SAVE = "numpy.savez(FILE, weight=VECTORS, classes=NAMES)"


@dataclass(frozen=True)
class _Content:
    """What a file holds, before it is compared with a run."""

    weight: np.ndarray
    bias: np.ndarray | None
    names: Sequence[str] | None
    """Class names of the rows, in their order; None if the file has none."""


def identity(path: str | Path) -> str:
    """What a file of class vectors is, wherever it lies: its name and a digest of its content, `clip.npz 3f2a91c07b5d`.

    Raises UserError if the file cannot be read.
    """
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{KEY}: {file} is a folder; name a .npy, .npz or .safetensors file in it")
    try:
        with open(file, "rb") as opened:
            return f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()[:12]}"
    except FileNotFoundError:
        raise UserError(
            f"{KEY}: no such file: {file}; give a .npy, .npz or .safetensors file with a vector for each class, or null"
        ) from None
    except OSError as error:
        raise UserError(f"{KEY}: {file} cannot be read: {error.strerror}") from None


def start_from_class_vectors(network: Network, path: str | Path, classes: Sequence[str]) -> None:
    """Make the vectors in a file the weights of a network's classifier. Its biases become the file's, or 0.

    Args:
        network: gets the weights.
        path: a .npy file (K, D); a .npz file with the array `weight` or `vectors`, optional `classes` (names) and
            `bias`; or a .safetensors file with the tensor `weight`, optional `bias`, and names as a JSON list in its
            metadata `classes`.
        classes: K class names of the run, in their order. Without names in the file, its rows are in this order.

    Raises:
        UserError: the file cannot be read, or does not fit the network or the classes. Names the file and the cure.
    """
    identity(path)  # raises if there is no such file
    file = Path(path)
    found = _in_order(file, _read(file), classes)
    _check_width(file, found.weight.shape[1], network)
    if found.bias is not None and network.classifier.bias is None:
        raise UserError(f"{KEY}: {file} has biases, but model.bias is false; set model.bias=true or remove `bias`")
    bias = None if found.bias is None else torch.from_numpy(found.bias)
    network.classifier.start_from(torch.from_numpy(found.weight), bias)


# Reading


def _read(file: Path) -> _Content:
    readers = {".npy": _read_npy, ".npz": _read_npz, ".safetensors": _read_safetensors}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{KEY}: {file} is none of .npy, .npz, .safetensors; save the vectors with {_SAVE}")
    try:
        return reader(file)
    except UserError:
        raise
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, SafetensorError) as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{KEY}: {file} holds Python objects, which may run code and are never loaded; save numbers and texts "
                "only: numpy.savez(FILE, weight=numpy.stack(VECTORS).astype('float32'), classes=numpy.array(NAMES, "
                "str))"
            ) from None
        reason = str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"{KEY}: {file} is not a complete {file.suffix} file ({reason}); write it again") from None


def _read_npy(file: Path) -> _Content:
    with open(file, "rb") as opened:
        begin = opened.read(2)
    if begin and not begin.startswith((b"\x93N", b"PK", b"\x80")):  # numpy takes all other files for pickles
        raise ValueError("it does not begin as one")
    array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise UserError(f"{KEY}: {file} is a .npz file under another name; rename it to {file.stem}.npz")
    return _Content(array, None, None)


def _read_npz(file: Path) -> _Content:
    opened = np.load(file, allow_pickle=False)
    if isinstance(opened, np.ndarray):
        raise UserError(f"{KEY}: {file} is a .npy file under another name; rename it to {file.stem}.npy")
    with opened:
        arrays = {name: opened[name] for name in (*ARRAYS, "bias", "classes") if name in opened.files}
        if raw := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{raw[0]} is no array")
        weight = _vectors(file, arrays, opened.files)
    return _Content(weight, arrays.get("bias"), _texts(file, arrays["classes"]) if "classes" in arrays else None)


def _read_safetensors(file: Path) -> _Content:
    with safe_open(file, framework="pt") as opened:  # numpy has no bfloat16
        names, metadata = list(opened.keys()), opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in (*ARRAYS, "bias") if name in names}
    arrays = {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in tensors.items()}
    classes = None
    if "classes" in metadata:
        try:
            classes = json.loads(metadata["classes"])
        except ValueError:
            classes = None
        if not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
            raise UserError(
                f"{KEY}: {file}: its metadata `classes` is not a JSON list of names; save it with "
                "metadata={'classes': json.dumps(NAMES)}"
            )
    return _Content(_vectors(file, arrays, names), arrays.get("bias"), classes)


def _vectors(file: Path, arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """The array with the class vectors."""
    has = [name for name in ARRAYS if name in arrays]
    if len(has) > 1:
        raise UserError(f"{KEY}: {file} has both `weight` and `vectors`; keep one of them")
    if not has:
        raise UserError(f"{KEY}: {file} has no array `weight` (it has {sample(sorted(names)) or 'none'}); save {_SAVE}")
    return arrays[has[0]]


def _texts(file: Path, names: np.ndarray) -> list[str]:
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(
            f"{KEY}: {file}: `classes` is not a list of names, but {names.dtype} of shape {names.shape}; save "
            "classes=numpy.array(NAMES, str)"
        )
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names.tolist()]


# Comparison with the run


def _in_order(file: Path, found: _Content, classes: Sequence[str]) -> _Content:
    """The content with rows in the run's class order, in float32. Raises UserError for everything that is wrong."""
    shape, count = found.weight.shape, len(classes)
    for name, array in (("vectors", found.weight), ("`bias`", found.bias)):
        if array is not None and array.dtype.kind not in "fiu":
            raise UserError(f"{KEY}: {file}: its {name} are {array.dtype}, not numbers; save them as float32")
    if len(shape) != 2:
        raise UserError(f"{KEY}: {file} has an array of shape {shape}; class vectors are (K, D), a row for each class")
    if found.bias is not None and found.bias.shape != shape[:1]:
        raise UserError(
            f"{KEY}: {file}: `bias` has shape {found.bias.shape}; {shape[0]} class vectors need {shape[:1]}"
        )
    rows = np.arange(count)
    if found.names is not None:
        rows = _rows_by_name(file, shape[0], found.names, classes)
    elif shape[0] != count:
        cure = f"save one row for each of {sample(classes)}, in this order"
        if shape[1] == count:
            cure = "it may be (D, K): save its transpose"
        raise UserError(f"{KEY}: {file} has {shape[0]} class vectors, but the run has {count} classes; {cure}")
    with np.errstate(over="ignore"):  # the next lines tell what became infinite
        weight = np.ascontiguousarray(found.weight[rows], np.float32)
        bias = None if found.bias is None else np.ascontiguousarray(found.bias[rows], np.float32)
    lengths = np.linalg.norm(weight.astype(np.float64), axis=1)
    for wrong, what in (
        (~np.isfinite(lengths), "NaN, infinite or too large numbers in the vector"),
        (lengths <= SHORTEST, "only zeros, and so no direction, in the vector"),
        (np.zeros(count, bool) if bias is None else ~np.isfinite(bias), "no finite bias"),
    ):
        if wrong.any():
            named = sample([classes[k] for k in np.flatnonzero(wrong)])
            raise UserError(f"{KEY}: {file} has {what} of {named}; compute it again and save it as float32")
    return _Content(weight, bias, classes)


def _rows_by_name(file: Path, count: int, names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(K,) the file's row of each class of the run."""
    if len(names) != count:
        raise UserError(
            f"{KEY}: {file} has {len(names)} names in `classes` for {count} class vectors; give one for each"
        )
    place = {same_form(name): row for row, name in enumerate(names)}
    if len(place) < count:
        twice = next(name for name, times in Counter(map(same_form, names)).items() if times > 1)
        raise UserError(f"{KEY}: {file} names the class '{printable(twice)}' twice; give each class one vector")
    wanted = [same_form(name) for name in classes]
    lacking, more = [name for name in wanted if name not in place], [name for name in place if name not in wanted]
    if lacking or more:
        told = [f"lacks {sample(lacking)}{closest(lacking[0], more)}"] if lacking else []
        told += [f"has {sample(more)}, which the run does not have"] if more else []
        raise UserError(
            f"{KEY}: {file} {' and '.join(told)}; its `classes` must be the {len(wanted)} classes of the run"
        )
    return np.array([place[name] for name in wanted])


def _check_width(file: Path, width: int, network: Network) -> None:
    """Raise UserError unless D is the width of x."""
    wanted = network.classifier.in_features
    if width == wanted:
        return
    told = f"{KEY}: {file} has vectors of width {width}"
    first = next((part for part in network.head.modules() if isinstance(part, torch.nn.Linear)), None)
    if first is None:
        raise UserError(
            f"{told}, but without a head (model.head=null) x has the width of the backbone's or the bank's features, "
            f"{wanted}; use vectors and features of the same model"
        )
    if first.in_features == width:
        cure = f"set model.head=null, because the features before the head have width {width}"
    else:
        cure = (
            f"set model.head=null and use vectors of width {first.in_features}, that of the features before the head, "
            f"or end the head with {width}"
        )
    raise UserError(f"{told}, but x has width {wanted}, that of the head (model.head); {cure}")
