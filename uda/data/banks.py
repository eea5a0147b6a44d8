"""Feature banks: a folder with one file of features per domain, which runs read in place of images.

`uda bank` writes `<domain>.safetensors`: `features` (N, D) float32, `ids` (the N names as UTF-8, separated by a zero
byte), `labels` (N,) int64, `views` (N, V, D) float32 if there are augmented views, and a description as JSON. The
features are memory-mapped, so a bank may be larger than memory.

A user's own arrays need no images. They are files of the same folder, one per domain:

- `<domain>.npz` with `features`, `ids` and, if known, `labels` (class names or numbers);
- `<domain>.npy` with the features, beside `<domain>.txt` with a line for each row: its id or, if known, its id, a tab
  and its label;
- `<domain>.parquet` with the columns `features` (lists of numbers), `id` (or `path`) and, if known, `label`.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS, ClassOrder, KnownBy, check_same_classes, sample, unknown_note
from uda.data.features import FeatureArray
from uda.data.listing import Listing
from uda.data.text import read_lines

#: Ending of the files that `uda bank` writes, and the endings of a user's own arrays.
SUFFIX, OWN = ".safetensors", (".npz", ".npy", ".parquet")
FORMAT = 1
#: Key of the description in the metadata of a file.
KEY = "uda_bank"
#: Rows whose numbers are checked or written at a time.
CHUNK = 4096


@dataclass(frozen=True, eq=False)
class BankDomain:
    """A domain of a bank."""

    file: Path
    name: str
    """The domain, as its config names it."""
    features: torch.Tensor
    """(N, D) float32."""
    views: torch.Tensor | None
    """(N, V, D) float32."""
    ids: list[str]
    labels: np.ndarray
    """(N,) int64, numbers in `classes`, or NO_LABEL."""
    classes: tuple[str, ...]
    """Class names in label order. Empty: the labels are numbers without names, or there are none."""
    checksum: str
    """Digest of everything in the file."""
    recipe: str
    """Digest of what the features were made of and by: images, labels, network and transforms. Unlike `checksum` it is
    the same on every machine. Of a user's own arrays it is the checksum."""
    made_by: Mapping[str, Any] = field(default_factory=dict)
    """`backbone`, `weights`, `digest` of the weights, `transform` and `views`. Empty for a user's own arrays."""

    def array(self, places: np.ndarray | None = None) -> FeatureArray:
        """The features as images."""
        return FeatureArray(self.features, self.ids, self.views, self.made_by, self.checksum, places)

    def listing(self, order: ClassOrder | None, labels: bool = True, is_target: bool = False) -> Listing:
        """Names and labels as those of image files. `root` is the bank's file.

        Args:
            order: the classes. None: those of this file.
            labels: whether to read labels.
            is_target: whether the labels are a target's. An unlabelled target is no error then.

        Raises:
            UserError: other classes than in `order`, or numbers whose meaning is uncertain.
        """
        if not labels or not (self.labels != NO_LABEL).any():
            return Listing(self.file, self.ids, np.full(len(self.ids), NO_LABEL), ())
        found = np.unique(self.labels[self.labels != NO_LABEL])
        known: KnownBy = "sorted" if order is None else order.known
        if not self.classes:
            return self._of_numbers(found, order)
        if order is None:
            return Listing(self.file, self.ids, self.labels, self.classes, known)
        names = [self.classes[label] for label in found]
        lenience = {"may_lack": order.may_lack, "may_add": order.may_add}
        check_same_classes(names, order.names, str(self.file), order.where, is_target=is_target, **lenience)
        index = {name: label for label, name in enumerate(order.names)}
        numbers = np.array([*(index.get(name, UNKNOWN_CLASS) for name in self.classes), NO_LABEL])
        mapped = numbers[self.labels]  # NO_LABEL is -1, the last entry
        by_name = dict(zip(names, found, strict=True))
        counts = {name: int((self.labels == by_name[name]).sum()) for name in names if name not in index}
        notes = (unknown_note(str(self.file), counts),) if counts else ()
        return Listing(self.file, self.ids, mapped, order.names, known, notes)

    def _of_numbers(self, found: np.ndarray, order: ClassOrder | None) -> Listing:
        if order is None:
            names = tuple(str(number) for number in range(int(found.max()) + 1))
            return Listing(self.file, self.ids, self.labels, names, "numbered")
        if set(map(str, found)) <= set(order.names):
            index = {int(name): label for label, name in enumerate(order.names) if name.isdecimal()}
            mapped = np.array([NO_LABEL if label == NO_LABEL else index[label] for label in self.labels.tolist()])
            return Listing(self.file, self.ids, mapped, order.names, order.known)
        if order.known == "sorted":
            raise UserError(
                f"{self.file}: its labels are numbers, but {order.where} names classes ({sample(order.names, 3)}); "
                "write the labels as class names, or set data.classes"
            )
        if found.max() >= len(order.names) and not order.may_add:
            raise UserError(
                f"{self.file}: label {found.max()}, but {order.where} has {len(order.names)} classes (0 to "
                f"{len(order.names) - 1})"
            )
        labels = np.where(self.labels < len(order.names), self.labels, UNKNOWN_CLASS)
        return Listing(self.file, self.ids, labels, order.names, order.known)


def find_domain(bank: str | os.PathLike, name: str) -> BankDomain:
    """A domain of a bank.

    Args:
        bank: the bank's folder.
        name: the domain, as in `data.source`. A path stands for its last part.

    Raises:
        UserError: no such folder or domain, or a file that cannot be used. The message names it.
    """
    folder = Path(bank)
    if not folder.is_dir():
        cure = f"make it with `uda bank --cfg CONFIG --output {folder}`, or give a folder with your own arrays"
        raise UserError(f"data.features: no such folder: {folder}; {cure}")
    files = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (SUFFIX, *OWN)}
    if not files:
        raise UserError(
            f"data.features: {folder} holds no features; it needs a file {SUFFIX}, {', '.join(OWN)} for each domain"
        )
    stem = file_stem(name)
    if stem not in files:
        known = ", ".join(files)
        raise UserError(f"data.features: {folder} has no domain '{stem}'{nearest(stem, list(files))} (it has {known})")
    file = files[stem]
    return _read(file, *_stamp(file), *_stamp(file.with_suffix(".txt")))


def identity(bank: str | os.PathLike, names: Iterable[str]) -> str:
    """What some domains of a bank are, wherever it lies: `tf_efficientnet_lite0 3f2a91c07b5d`.

    The text has the backbone, and a digest of the images, the labels, the network and the transforms. A bank that is
    made again from the same ones has the same text. Empty for no domains. Raises UserError, as `find_domain` does.
    """
    found = [find_domain(bank, name) for name in names]
    if not found:
        return ""
    kept = json.dumps([(domain.file.stem, domain.recipe) for domain in found])
    return f"{found[0].made_by.get('backbone', 'arrays')} {hashlib.sha256(kept.encode()).hexdigest()[:12]}"


def file_stem(name: str) -> str:
    """The name of a domain's file in a bank, without its ending."""
    path = Path(name)
    return path.stem if path.suffix in (SUFFIX, *OWN, ".txt") else path.name


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=32)
def _read(file: Path, *_stamps: int) -> BankDomain:
    """Read a file. A process that runs many runs reads it once, until it changes."""
    reader = {".npz": _read_npz, ".npy": _read_npy, ".parquet": _read_parquet}.get(file.suffix, _read_own)
    try:
        found = reader(file)
    except UserError:
        raise
    except Exception as error:  # broken bytes may raise anything
        raise UserError(
            f"{file}: cannot be read as features ({type(error).__name__}: {error}); make it again"
        ) from None
    _check(found)
    return found


def _check(domain: BankDomain) -> None:
    """Raise UserError for features or ids that cannot be used."""
    file, features, ids = domain.file, domain.features, domain.ids
    if features.ndim != 2 or not features.shape[0] or not features.shape[1]:
        raise UserError(f"{file}: features must be (images, width), but they have the shape {tuple(features.shape)}")
    if len(ids) != len(features):
        raise UserError(f"{file}: {len(features):,} rows of features, but {len(ids):,} ids; each row needs one")
    if len(domain.labels) != len(features):
        raise UserError(f"{file}: {len(features):,} rows of features, but {len(domain.labels):,} labels")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))
        raise UserError(f"{file}: the id '{twice}' is given twice")
    if domain.labels.min() < NO_LABEL:
        raise UserError(f"{file}: label {domain.labels.min()}; labels are class numbers from 0, or -1 for no label")
    for start in range(0, len(features), CHUNK):
        for tensor in (features, domain.views):
            if tensor is None:
                continue
            finite = torch.isfinite(tensor[start : start + CHUNK]).flatten(1).all(1)
            if not finite.all():
                bad = ids[start + int((~finite).nonzero()[0, 0])]
                raise UserError(f"{file}: the features of '{bad}' are not finite (NaN or infinite); make them again")


def _read_own(file: Path) -> BankDomain:
    """A file that `uda bank` wrote."""
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        told = json.loads((content.metadata() or {}).get(KEY, "null"))
        if told is None:
            raise UserError(f"{file}: not written by `uda bank`; give your own features as {', '.join(OWN)}")
        if told["format"] > FORMAT:
            raise UserError(f"{file}: written by a newer version of uda; update uda, or make the bank again")
        features = content.get_tensor("features")
        views = content.get_tensor("views") if "views" in content.keys() else None  # noqa: SIM118 (not a dict)
        ids = bytes(content.get_tensor("ids").numpy()).decode("utf-8", "surrogateescape").split("\0")
        labels = content.get_tensor("labels").numpy()
    classes = tuple(told["classes"])
    checksum, made_by = told["checksum"], told["made_by"]
    kept = json.dumps({key: told[key] for key in ("images", "labels", "classes", "made_by")}, sort_keys=True)
    recipe = hashlib.sha256(kept.encode()).hexdigest()
    return BankDomain(file, told["domain"], features, views, ids, labels, classes, checksum, recipe, made_by)


def _read_npz(file: Path) -> BankDomain:
    with np.load(file, allow_pickle=False) as arrays:
        names = list(arrays)
        for needed in ("features", "ids"):
            if needed not in names:
                raise UserError(f"{file}: it has no array '{needed}' (it has {', '.join(names) or 'none'})")
        features, ids = arrays["features"], arrays["ids"]
        labels = arrays["labels"] if "labels" in names else None
    return _of_arrays(file, features, ids, labels)


def _read_npy(file: Path) -> BankDomain:
    names = file.with_suffix(".txt")
    if not names.is_file():
        raise UserError(
            f"{file}: no ids: {names.name} beside it must have a line for each row, with its id and, if known, a tab "
            "and its label"
        )
    lines = [text.split("\t") for _, text in read_lines(names)]
    lengths = {len(line) for line in lines}
    if lengths - {1, 2} or len(lengths) > 1:
        raise UserError(f"{names}: each line needs an id, or an id, a tab and a label; all or no lines have a label")
    labels = np.array([line[1] for line in lines]) if lengths == {2} else None
    if labels is not None and all(label.isdecimal() for label in labels.tolist()):
        labels = labels.astype(np.int64)
    features = np.load(file, mmap_mode="r", allow_pickle=False)
    return _of_arrays(file, features, np.array([line[0] for line in lines]), labels)


def _read_parquet(file: Path) -> BankDomain:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    names = table.column_names
    key = next((name for name in ("id", "path") if name in names), None)
    if key is None or "features" not in names:
        lacking = "features" if key is not None else "id"
        raise UserError(f"{file}: it has no column '{lacking}' (it has {', '.join(names)})")
    column = table["features"].combine_chunks()
    if column.null_count:
        raise UserError(f"{file}: {column.null_count} rows have no features")
    lengths = np.unique(pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False))
    if len(lengths) != 1:
        raise UserError(f"{file}: rows of features have different lengths, {lengths.min()} to {lengths.max()}")
    features = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, int(lengths[0]))
    labels = np.array(table["label"].to_pylist()) if "label" in names and not table["label"].null_count else None
    return _of_arrays(file, features, np.array(table[key].to_pylist()), labels)


def _of_arrays(file: Path, features: np.ndarray, ids: np.ndarray, labels: np.ndarray | None) -> BankDomain:
    """A domain from a user's own arrays: features (N, D), ids (N,) and labels (N,), names or numbers."""
    if not np.issubdtype(features.dtype, np.floating):
        raise UserError(f"{file}: features must be floating numbers, but they are {features.dtype}")
    tensor = torch.from_numpy(np.ascontiguousarray(features, np.float32))
    names = [str(name) for name in np.asarray(ids).reshape(-1).tolist()]
    classes: tuple[str, ...] = ()
    numbers = np.full(len(tensor), NO_LABEL)
    if labels is not None:
        labels = np.asarray(labels).reshape(-1)
        if np.issubdtype(labels.dtype, np.integer):
            numbers = labels.astype(np.int64)
        elif labels.dtype.kind in "US":
            found, numbers = np.unique(labels.astype(str), return_inverse=True)
            classes = tuple(found.tolist())
        else:
            raise UserError(f"{file}: labels must be class names or whole numbers, but they are {labels.dtype}")
    digest = hashlib.sha256(tensor.numpy().tobytes())
    digest.update("\0".join(names).encode("utf-8", "surrogateescape") + numbers.tobytes())
    checksum = digest.hexdigest()
    return BankDomain(file, file.stem, tensor, None, names, numbers, classes, checksum, checksum)


def header(domain: Mapping[str, Any], shapes: Mapping[str, tuple[str, Sequence[int]]]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a bank's file, and the place of each tensor in the file.

    Args:
        domain: the description.
        shapes: type in the words of safetensors and shape of each tensor, in order.
    """
    places, end = {}, 0
    entries: dict[str, Any] = {"__metadata__": {KEY: json.dumps(domain)}}
    sizes = {"F32": 4, "I64": 8, "U8": 1}
    for name, (kind, shape) in shapes.items():
        start, end = end, end + sizes[kind] * int(np.prod(shape, dtype=np.int64))
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        places[name] = start
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + start for name, start in places.items()}
