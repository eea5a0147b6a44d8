"""Feature banks: a folder with one file of features per domain, which runs read in place of images.

`uda bank` writes `<domain>.safetensors`: `features` (N, D) float32, `ids` (the N names as UTF-8, separated by a zero
byte), `labels` (N,) int64, `views` (N, V, D) float32 if there are augmented views, and a description as JSON. The
features are memory-mapped, so a bank may be larger than memory.

A user's own arrays need no images. They are files of the same folder, one per domain:

- `<domain>.npz` with `features`, `ids`, if known `labels` (class names or numbers), and `views` if there are any;
- `<domain>.npy` with the features, beside `<domain>.txt` with a line for each row: its id or, if known, its id, a tab
  and its label;
- `<domain>.parquet` with the columns `features` (lists of numbers), `id` (or `path`) and, if known, `label`.

A row without a label has an empty name, the number -1, or null.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from uda.data.text import printable, read_lines, same_form

#: Ending of the files that `uda bank` writes, and the endings of a user's own arrays.
SUFFIX, OWN = ".safetensors", (".npz", ".npy", ".parquet")
ENDINGS = (SUFFIX, *OWN)
FORMAT = 1
#: Key of the description in the metadata of a file.
KEY = "uda_bank"
#: The first word of the identity of a user's own arrays, in place of a backbone.
_ARRAYS = "arrays"
#: Parts of `made_by` that tell where the weights were. The digest of the weights tells whether they are the same.
TRACES = ("run", "seed", "weights")
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
    notes: tuple[str, ...] = ()
    """Lines for the log about what looks like a mistake in the file."""

    @property
    def width(self) -> int:
        """D."""
        return self.features.shape[1]

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
            notes = self.notes if labels else ()
            return Listing(self.file, self.ids, np.full(len(self.ids), NO_LABEL), (), notes=notes)
        found = np.unique(self.labels[self.labels != NO_LABEL])
        known: KnownBy = "sorted" if order is None else order.known
        if not self.classes:
            return self._of_numbers(found, order)
        if order is None:
            return Listing(self.file, self.ids, self.labels, self.classes, known)
        names = [self.classes[label] for label in found]
        # The rows without a label may be of the classes that are missing.
        may_lack = order.may_lack or bool((self.labels == NO_LABEL).any())
        lenience = {"may_lack": may_lack, "may_add": order.may_add}
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


def find_domain(bank: str | os.PathLike, name: str, key: str = "data.features") -> BankDomain:
    """A domain of a bank.

    Args:
        bank: the bank's folder.
        name: the domain, as in `data.source`. A path stands for its last part.
        key: the setting that names the domain, for messages.

    Raises:
        UserError: no such folder or domain, or a file that cannot be used. The message names it.
    """
    folder = Path(bank)
    files = _files_of(folder)
    stem = file_stem(name)
    if stem not in files:
        known = ", ".join(files)
        raise UserError(f"{key}: {folder} has no domain '{stem}'{nearest(stem, list(files))} (it has {known})")
    return read_domain(files[stem])


def read_domains(bank: str | os.PathLike) -> dict[str, BankDomain]:
    """All domains of a bank by their names. Raises UserError, as `find_domain` does."""
    return {name: read_domain(file) for name, file in _files_of(Path(bank)).items()}


def passed_over(bank: str | os.PathLike) -> list[str]:
    """Names of the files in a bank's folder that no run reads, because of their endings."""
    files = [path for path in sorted(Path(bank).iterdir()) if path.is_file() and not path.name.startswith(".")]
    used = {path.with_suffix(".txt") for path in files if path.suffix == ".npy"}  # ids and labels of the rows
    return [path.name for path in files if path.suffix not in ENDINGS and path not in used]


def check_one_bank(domains: Sequence[BankDomain]) -> None:
    """Raise UserError if the features of some domains are not of the same network and transform."""
    first = domains[0]
    for other in domains[1:]:
        if other.width != first.width:
            raise UserError(
                f"{first.file} and {other.file}: features of different widths, {first.width} and {other.width}; "
                "make one bank of both"
            )
        differing = [
            key for key in ("backbone", "digest", "transform") if first.made_by.get(key) != other.made_by.get(key)
        ]
        if differing:
            raise UserError(
                f"{first.file} and {other.file}: made with another {' and '.join(differing)}; make one bank of both"
            )


def _files_of(folder: Path) -> dict[str, Path]:
    """The files of a bank by the names of their domains."""
    if not folder.is_dir():
        cure = f"make it with `uda bank --cfg CONFIG --output {folder}`, or give a folder with your own arrays"
        raise UserError(f"data.features: no such folder: {folder}; {cure}")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix not in ENDINGS or path.name.startswith("."):
            continue
        if path.stem in files:
            raise UserError(
                f"data.features: {folder} has two files of the domain '{path.stem}', {files[path.stem].name} and "
                f"{path.name}; remove one"
            )
        files[path.stem] = path
    if not files:
        raise UserError(
            f"data.features: {folder} holds no features; it needs a file for each domain, with one of the endings "
            f"{', '.join(ENDINGS)}"
        )
    return files


def read_domain(file: Path) -> BankDomain:
    """The domain in a file. A process that runs many runs reads it once, until it changes.

    Raises UserError that names the file if it cannot be used.
    """
    return _read(file.absolute(), *_stamp(file), *_stamp(file.with_suffix(".txt")))


def identity(bank: str | os.PathLike, wanted: Iterable[tuple[str, str]]) -> str:
    """What some domains of a bank are, wherever it lies: `tf_efficientnet_lite0 3f2a91c07b5d`.

    The text has the backbone, and a digest of the images, the labels, the network and the transforms. A bank that is
    made again from the same ones has the same text. Empty for no domains. Raises UserError, as `find_domain` does.

    Args:
        bank: the bank's folder.
        wanted: the domains, each with the setting that names it: `("data.source", "photo")`.
    """
    found = [find_domain(bank, name, key) for key, name in wanted]
    if not found:
        return ""
    kept = json.dumps([(domain.file.stem, domain.recipe) for domain in found])
    return f"{found[0].made_by.get('backbone', _ARRAYS)} {hashlib.sha256(kept.encode()).hexdigest()[:12]}"


def own_arrays(identity: str) -> bool:
    """Whether the `identity` of a bank is that of a user's own arrays."""
    return identity.startswith(f"{_ARRAYS} ")


def file_stem(name: str) -> str:
    """The name of a domain's file in a bank, without its ending."""
    path = Path(name)
    return path.stem if path.suffix in (*ENDINGS, ".txt") else path.name


def _stamp(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=32)
def _read(file: Path, *_stamps: int) -> BankDomain:
    reader = _READERS.get(file.suffix, _read_made)
    try:
        found = reader(file)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no such file: {file}") from None
    except Exception as error:  # broken bytes may raise anything
        if "Object arrays" in str(error):  # numpy would unpickle them, which can execute code
            raise UserError(
                f"{file}: ids, labels or features are Python objects; write them as np.array(names, str), or as numbers"
            ) from None
        # numpy takes broken bytes for a pickle, and says how to load one unsafely.
        why = "" if "pickle" in str(error) else f" ({type(error).__name__}: {error})"
        raise UserError(
            f"{file}: cannot be read as features{why}; it is damaged, or no {file.suffix} file: write it again"
        ) from None
    _check(found)
    return found


def _check(domain: BankDomain) -> None:
    """Raise UserError for features, ids or labels that cannot be used."""
    file, features, ids = domain.file, domain.features, domain.ids
    if features.ndim != 2 or not features.shape[0] or not features.shape[1]:
        raise UserError(f"{file}: features must be (images, width), but they have the shape {tuple(features.shape)}")
    views, shape = domain.views, tuple(features.shape)
    if views is not None and (views.ndim != 3 or not views.shape[1] or (len(views), views.shape[2]) != shape):
        raise UserError(
            f"{file}: views must be (images, views, width) of the features {shape}, but they have the shape "
            f"{tuple(views.shape)}"
        )
    for number, what in ((len(ids), "ids; each row needs one"), (len(domain.labels), "labels")):
        if number != len(features):
            raise UserError(f"{file}: {len(features):,} rows of features, but {number:,} {what}")
    if "" in ids:
        raise UserError(f"{file}: row {ids.index('')} has no id; each row needs one")
    if odd := [name for name in ids if "\0" in name or not _is_utf8(name)]:
        raise UserError(
            f"{file}: an id is not text in UTF-8, or holds a zero byte; rename it: {printable(repr(odd[0]))}"
        )
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))
        raise UserError(f"{file}: the id '{printable(twice)}' is given twice")
    if domain.labels.min() < NO_LABEL:
        raise UserError(f"{file}: label {domain.labels.min()}; labels are class numbers from 0, or -1 for no label")
    for tensor in (features, views):
        bad = None if tensor is None else _first_not_finite(tensor)
        if bad is not None:
            raise UserError(
                f"{file}: the features of '{printable(ids[bad])}' are not finite (NaN or infinite); make them again"
            )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _first_not_finite(tensor: torch.Tensor) -> int | None:
    """Number of the first row with NaN or infinity; None: there is none. Reads some rows at a time."""
    for start in range(0, len(tensor), CHUNK):
        part = tensor[start : start + CHUNK]
        if torch.isfinite(part.sum()):  # quick, and never so if a value is not finite
            continue
        finite = torch.isfinite(part).flatten(1).all(1)
        if not finite.all():
            return start + int((~finite).nonzero()[0, 0])
    return None


def _read_made(file: Path) -> BankDomain:
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
    kept = {key: told[key] for key in ("images", "labels", "classes")}
    kept["made_by"] = {key: value for key, value in made_by.items() if key not in TRACES}
    recipe = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return BankDomain(file, told["domain"], features, views, ids, labels, classes, checksum, recipe, made_by)


def read_description(file: Path) -> dict[str, Any]:
    """The description of a file that `uda bank` wrote. Raises UserError if the file is another or broken."""
    read_domain(file)
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        return json.loads(content.metadata()[KEY])


def _read_npz(file: Path) -> BankDomain:
    with np.load(file, allow_pickle=False) as arrays:
        names = list(arrays)
        _check_names(file, "array", names, ("features", "ids"), ("labels", "views"))
        labels, views = (arrays[name] if name in names else None for name in ("labels", "views"))
        return _of_arrays(file, arrays["features"], arrays["ids"].reshape(-1).tolist(), labels, views)


def _check_names(file: Path, what: str, names: Sequence[str], needed: Sequence[str], others: Sequence[str]) -> None:
    """Raise UserError if an array or a column that a file needs is not there, or if one seems to be misspelt.

    Args:
        file: the file.
        what: the word for its parts, for messages.
        names: the names of its parts.
        needed, others: the parts that it needs, and those that it may have.
    """
    for name in (*needed, *others):
        near = next((other for other in names if other.lower().rstrip("s") == name.rstrip("s")), None)
        if name in names or (near is None and name in others):
            continue
        cure = f"name it so in place of '{near}'" if near else f"write it too, it needs {' and '.join(needed)}"
        raise UserError(f"{file}: it has no {what} '{name}' (it has {', '.join(names) or 'none'}); {cure}")


def _read_npy(file: Path) -> BankDomain:
    names = file.with_suffix(".txt")
    if not names.is_file():
        raise UserError(
            f"{file}: no ids: {names.name} beside it must have a line for each row, with its id and, if known, a tab "
            "and its label"
        )
    texts = [text for _, text in read_lines(names)]
    lines = [text.split("\t") for text in texts]
    if any(len(line) > 2 for line in lines):
        raise UserError(f"{names}: each line needs an id, or an id, a tab and a label")
    labels: list[Any] = [line[1].strip() if len(line) > 1 else "" for line in lines]
    if all(re.fullmatch(r"-?[0-9]+|", label) for label in labels):
        labels = [int(label or NO_LABEL) for label in labels]
    features = np.load(file, mmap_mode="c", allow_pickle=False)  # "c": torch warns of arrays that are not writable
    found = _of_arrays(file, features, [line[0] for line in lines], np.array(labels))
    return replace(found, notes=(_space_note(names, texts),)) if _spaces_for_tabs(texts) else found


def _spaces_for_tabs(lines: Sequence[str]) -> bool:
    """Whether ids and labels seem to be apart by spaces: no line has a tab, and all end in one of a few words."""
    ends = {line.rpartition(" ")[2] for line in lines}
    return all(" " in line and "\t" not in line for line in lines) and 2 * len(ends) <= len(lines)


def _space_note(file: Path, lines: Sequence[str]) -> str:
    return (
        f"note: {file}: no line has a tab, so each line is an id without a label, such as '{printable(lines[0])}'; if "
        "the last word is a label, write a tab before it, not a space"
    )


def _read_parquet(file: Path) -> BankDomain:
    import pyarrow.compute
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(file)
    names = table.column_names
    key = "path" if "path" in names and "id" not in names else "id"
    _check_names(file, "column", names, ("features", key), ("label",))
    column = table["features"].combine_chunks()
    kinds = pyarrow.types
    if not any(is_list(column.type) for is_list in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list)):
        raise UserError(f"{file}: a row of 'features' must be a list of numbers, but it is of type {column.type}")
    if column.null_count:
        raise UserError(f"{file}: {column.null_count:,} rows have no features")
    lengths = np.unique(pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise UserError(f"{file}: rows of features have different lengths, {lengths.min()} to {lengths.max()}")
    features = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    ids, labels = (table[name].to_pylist() if name in names else None for name in (key, "label"))
    if labels is not None:
        missing = "" if any(isinstance(label, str) for label in labels) else NO_LABEL
        labels = np.array([missing if label is None else label for label in labels])
    return _of_arrays(file, features, ["" if name is None else name for name in ids], labels)


_READERS: dict[str, Callable[[Path], BankDomain]] = {
    ".npz": _read_npz,
    ".npy": _read_npy,
    ".parquet": _read_parquet,
}


def _of_arrays(
    file: Path, features: np.ndarray, ids: Sequence[Any], labels: np.ndarray | None, views: np.ndarray | None = None
) -> BankDomain:
    """A domain from a user's own arrays: features (N, D), N ids, labels (N,), names or numbers, and views (N, V, D)."""
    for array in (features, views):
        if array is not None and not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{file}: features must be floating numbers, but they are {array.dtype}")
    tensor, of_views = _tensor(features), None if views is None else _tensor(views)
    if odd := [name for name in ids if not isinstance(name, str | bytes | int)]:
        raise UserError(f"{file}: ids must be names or whole numbers, but one is {odd[0]!r}")
    names = [_text(name) for name in ids]
    classes: tuple[str, ...] = ()
    numbers = np.full(len(tensor), NO_LABEL)
    if labels is not None:
        labels = np.asarray(labels).reshape(-1)
        if np.issubdtype(labels.dtype, np.integer):
            numbers = labels.astype(np.int64)
        elif labels.dtype.kind in "US":
            of_rows = [same_form(_text(label)) for label in labels.tolist()]
            classes = tuple(sorted({*of_rows} - {""}))
            index = {name: number for number, name in enumerate(classes)} | {"": NO_LABEL}
            numbers = np.array([index[name] for name in of_rows])
        else:
            raise UserError(f"{file}: labels must be class names or whole numbers, but they are {labels.dtype}")
    digest = hashlib.sha256("\0".join(names).encode("utf-8", "surrogateescape") + numbers.tobytes())
    for array in (tensor, of_views) if of_views is not None else (tensor,):
        for part in chunks(array.numpy()):
            digest.update(part)
    checksum = digest.hexdigest()
    return BankDomain(file, file.stem, tensor, of_views, names, numbers, classes, checksum, checksum)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """float32. Not copied if the array is float32, contiguous and writable; torch warns of those that are not."""
    return torch.from_numpy(np.require(np.atleast_1d(array), np.float32, ["C", "W"]))


def _text(name: str | bytes | int) -> str:
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def chunks(array: np.ndarray) -> Iterable[bytes]:
    """The bytes of an array (N, ...), some rows at a time."""
    return (array[start : start + CHUNK].tobytes() for start in range(0, len(array), CHUNK))


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
