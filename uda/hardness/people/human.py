"""Human selection frequencies (HSF) of images, from the files in which they are published.

HSF is the share of an image's annotators who pick the image's class.
"""

import csv
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uda.core.errors import UserError
from uda.core.registry import Registry, nearest
from uda.data.cards import CARDS

#: File beside the images of CIFAR-10's test set. It has their names in the official order, one per line.
ORDER_FILE = "test_order.txt"
_COUNTS = "human_"
_COUNTED = ("image", "true_class")
_RAW = ("cifar10_test_test_idx", "is_attn_check", "true_category", "chosen_category")
_ANNOTATIONS = ("id", "wnid", "selected")
_FLAGS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass(frozen=True)
class HumanFrequencies:
    """HSF of N images. Raises UserError if an id is named twice or a frequency is outside of 0..1."""

    ids: tuple[str, ...]
    """Names of the images, paths with forward slashes."""
    frequencies: np.ndarray
    """(N,) float64 in 0..1."""
    classes: tuple[str, ...] | None = None
    """Class of each image; None: not in the file."""
    annotators: np.ndarray | None = None
    """Number of each image's annotators, (N,) int64; None: not in the file."""

    def __post_init__(self):
        good = (self.frequencies >= 0) & (self.frequencies <= 1)
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            raise UserError(
                f"`human`: a frequency must be a share in 0..1, but {self.ids[first]} has {self.frequencies[first]:g} "
                f"({int((~good).sum())} of {len(good)} are outside; divide per cent by 100 first)"
            )
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            twice = next(name for name in self.ids if name in seen or seen.add(name))
            raise UserError(f"`human`: the image {twice} is named twice; give ids with folders, such as cat/0000.jpg")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: np.ndarray) -> "HumanFrequencies":
        """The images with the given numbers."""
        return HumanFrequencies(
            tuple(self.ids[i] for i in indices),
            self.frequencies[indices],
            None if self.classes is None else tuple(self.classes[i] for i in indices),
            None if self.annotators is None else self.annotators[indices],
        )


Adapter = Callable[..., HumanFrequencies]
#: Functions of a path to `HumanFrequencies`.
HUMAN: Registry[Adapter] = Registry("format of human frequencies")


def read_human(
    path: Path,
    kind: str | None = None,
    id_column: str | None = None,
    frequency_column: str | None = None,
    log: Callable[[str], None] = print,
) -> HumanFrequencies:
    """Human selection frequencies from a file.

    Args:
        path: the file.
        kind: one of HUMAN; None: recognised by the file's content and logged.
        id_column, frequency_column: columns, for the format `csv` only.
        log: called with a line about the file.

    Raises:
        UserError: the file does not exist, the format is unknown, or the file does not have this format.
    """
    if not path.is_file():
        raise UserError(f"`human`: no such file: {path}")
    columns = {"id_column": id_column, "frequency_column": frequency_column}
    named = {name: column for name, column in columns.items() if column is not None}
    chosen = kind or ("csv" if named else guess(path))
    if named and chosen != "csv":
        raise UserError(f"`id_column` and `frequency_column` are for `kind` csv, not for '{chosen}'")
    found = HUMAN[chosen](path, **named)
    told = "" if kind else ", recognised by its content (`kind` overrides this)"
    log(f"{path.name}: {len(found):,} images, read as '{chosen}'{told}")
    return found


def guess(path: Path) -> str:
    """The format of a file, by its extension and the names of its columns."""
    if path.suffix in (".npy", ".zip"):
        return "cifar10h"
    if path.suffix == ".json":
        return "imagenetv2"
    head = set(_rows(path)[0])
    counts = sum(name.startswith(_COUNTS) for name in head)
    if counts > 1 or (counts and head.issuperset(_COUNTED)) or head.issuperset(_RAW):
        return "cifar10h"
    return "imagenetv2" if head.issuperset(_ANNOTATIONS) else "csv"


@HUMAN.register("csv")
def read_csv(path: Path, id_column: str | None = None, frequency_column: str | None = None) -> HumanFrequencies:
    """Any table of images and frequencies: two columns by name, by default the first two."""
    head, *rows = _rows(path)
    if len(head) < 2:
        raise UserError(f"{path}: has only the column '{head[0]}'; it needs an id and a frequency with a comma between")
    places = [
        default if name is None else _column(head, name, path)
        for default, name in enumerate((id_column, frequency_column))
    ]
    ids = tuple(row[places[0]] for row in rows)
    cure = "; name the right columns in `id_column` and `frequency_column`" if frequency_column is None else ""
    shares = _floats([row[places[1]] for row in rows], head[places[1]], path, cure)
    odd = np.flatnonzero(~((shares >= 0) & (shares <= 1)))
    if len(odd):
        raise UserError(
            f"{path}: column '{head[places[1]]}' must have shares in 0..1, but has {shares[odd[0]]:g} in row "
            f"{odd[0] + 2} ({len(odd)} of {len(shares)} are outside; divide per cent by 100 first{cure})"
        )
    return HumanFrequencies(ids, shares)


@HUMAN.register("cifar10h")
def read_cifar10h(path: Path) -> HumanFrequencies:
    """CIFAR-10H (Peterson et al., ICCV 2019): about 51 labels for each image of CIFAR-10's test set.

    There are three forms. Ids are `test/<class>/<number within the class>`.

    - A CSV with one row per image: `image`, `true_class`, and votes `human_<class>`.
    - `cifar10h-counts.npy` or `cifar10h-probs.npy` of the authors (https://github.com/jcpeterson/cifar-10h): an array
      (10000, 10), images in the official order, classes in alphabetical order. It does not have the images' classes.
      They come from `test_order.txt`, which `uda hardness fetch cifar10` writes. This file must be beside the array or
      in CIFAR-10's folder.
    - `cifar10h-raw.csv` of the authors, or a .zip with it: one row per vote. The columns `cifar10_test_test_idx`,
      `true_category`, `chosen_category` and `is_attn_check` are read. Attention checks are left out.
    """
    if path.suffix == ".npy":
        return _of_arrays(path)
    head, *rows = _rows(path)
    if set(head).issuperset(_RAW):
        return _of_votes(head, rows, path)
    counts = [number for number, name in enumerate(head) if name.startswith(_COUNTS)]
    if not counts or not set(head).issuperset(_COUNTED):
        raise UserError(
            f"{path}: not a file of CIFAR-10H: its columns ({', '.join(head[:6])}...) have neither {', '.join(_RAW)} "
            f"(cifar10h-raw.csv) nor image, true_class and {_COUNTS}<class>...; `kind` csv reads any table"
        )
    classes = [head[number].removeprefix(_COUNTS) for number in counts]
    votes = np.stack([_floats([row[number] for row in rows], head[number], path) for number in counts], axis=1)
    shown, image = _column(head, "true_class", path), _column(head, "image", path)
    return _of_counts(tuple(row[image] for row in rows), votes, [row[shown] for row in rows], classes, path)


def _of_counts(
    ids: Sequence[str], votes: np.ndarray, shown: Sequence[str], classes: Sequence[str], path: Path
) -> HumanFrequencies:
    """Frequencies from votes (N, K): the share of each row's class. If the rows are shares, annotators are None."""
    place = {name: number for number, name in enumerate(classes)}
    odd = next((name for name in shown if name not in place), None)
    if odd is not None:
        raise UserError(f"{path}: there are no votes for the class '{odd}'{nearest(odd, list(place))}")
    totals = votes.sum(1)
    if (votes < 0).any() or not (totals > 0).all():
        row = int(np.flatnonzero((votes < 0).any(1) | ~(totals > 0))[0])
        raise UserError(f"{path}: the votes of row {row + 1} are impossible: {votes[row].tolist()}")
    own = votes[np.arange(len(votes)), [place[name] for name in shown]]
    shares = np.allclose(totals, 1) and not np.array_equal(votes, votes.round())
    annotators = None if shares else totals.round().astype(np.int64)
    # Shares are not divided by their sum, because rounding errors would move them across edges of bins.
    return HumanFrequencies(tuple(ids), np.clip(own if shares else own / totals, 0, 1), tuple(shown), annotators)


def _of_arrays(path: Path) -> HumanFrequencies:
    classes = CARDS["cifar10"].classes
    try:
        votes = np.load(path, allow_pickle=False).astype(float)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: not an array of numbers: {error}") from None
    if votes.ndim != 2 or votes.shape[1] != len(classes):
        raise UserError(f"{path}: an array of CIFAR-10H has shape (10000, 10), got {votes.shape}")
    places = [path.parent / ORDER_FILE]
    with suppress(UserError):
        places.append(CARDS["cifar10"].find_root() / ORDER_FILE)
    order = next((place for place in places if place.is_file()), None)
    if order is None:
        raise UserError(
            f"{path} does not have the images' classes, and there is no {' or '.join(map(str, places))}; "
            "`uda hardness fetch cifar10` writes this file, or give cifar10h-raw.csv, which does not need it"
        )
    ids = order.read_text(encoding="utf-8").split()
    if len(ids) != len(votes):
        raise UserError(f"{order} has {len(ids):,} lines, but {path} has {len(votes):,} rows")
    return _of_counts(ids, votes, [name.split("/")[-2] for name in ids], classes, path)


def _of_votes(head: Sequence[str], rows: Sequence[Sequence[str]], path: Path) -> HumanFrequencies:
    index, check, true, chosen = (_column(head, name, path) for name in _RAW)
    shown: dict[int, str] = {}
    tally: dict[int, list[int]] = {}
    for row in rows:
        if _FLAGS.get(row[check].lower()):
            continue
        if not row[index].isdecimal():
            raise UserError(f"{path}: column '{_RAW[0]}' has '{row[index]}'; it must have image numbers")
        number = int(row[index])
        if shown.setdefault(number, row[true]) != row[true]:
            raise UserError(f"{path}: image {number} has two classes, '{shown[number]}' and '{row[true]}'")
        entry = tally.setdefault(number, [0, 0])
        entry[0] += row[chosen] == row[true]
        entry[1] += 1
    if set(shown) != set(range(len(shown))):
        raise UserError(
            f"{path}: there must be votes for all images from number 0; there are votes for {len(shown):,} images"
        )
    counts = np.array([tally[number] for number in range(len(shown))])
    classes = tuple(shown[number] for number in range(len(shown)))
    return HumanFrequencies(tuple(number_within(classes)), counts[:, 0] / counts[:, 1], classes, counts[:, 1])


def number_within(classes: Sequence[str], domain: str = "test") -> list[str]:
    """Names `<domain>/<class>/<NNNN>` of CIFAR-10's images from their classes in the official order."""
    next_number: dict[str, int] = {}
    names = []
    for name in classes:
        number = next_number.get(name, 0)
        next_number[name] = number + 1
        names.append(f"{domain}/{name}/{number:04d}")
    return names


@HUMAN.register("imagenetv2")
def read_imagenetv2(path: Path) -> HumanFrequencies:
    """Selection frequencies of ImageNet's validation images and ImageNetV2's candidates (Recht et al., ICML 2019).

    Ids are `<WordNet id>/<image>`, because an image can be shown for several classes. There are two forms:

    - .json, {image: {WordNet id: frequency}}: the attribute `MTurkData.image_fraction_selected` of the authors' code
      (github.com/modestyachts/ImageNetV2), written as JSON. It is 0 if nobody was asked; leave these entries out.
    - .csv with columns `id`, `wnid`, `selected` (0 or 1), one row per vote: the pandas table of Engstrom et al.
      (Identifying Statistical Bias in Dataset Replication, ICML 2020), written as CSV.

    The names and the nesting come from the code of the two repositories. The authors publish the votes only as pickles.
    Pickles execute code, so they are not read. There is no published file of frequencies by image.
    """
    if path.suffix == ".json":
        shares, annotators = _nested(path), None
    else:
        head, *rows = _rows(path)
        image, wnid, selected = (_column(head, name, path) for name in _ANNOTATIONS)
        votes: dict[str, list[bool]] = {}
        for row in rows:
            if row[selected].lower() not in _FLAGS:
                raise UserError(f"{path}: column 'selected' has '{row[selected]}'; it must be 0 or 1")
            votes.setdefault(f"{row[wnid]}/{row[image]}", []).append(_FLAGS[row[selected].lower()])
        shares = {name: sum(given) / len(given) for name, given in votes.items()}
        annotators = np.array([len(given) for given in votes.values()])
    classes = tuple(name.split("/")[0] for name in shares)
    return HumanFrequencies(tuple(shares), np.array(list(shares.values()), dtype=float), classes, annotators)


def _nested(path: Path) -> dict[str, float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shares = {f"{wnid}/{image}": float(f) for image, entries in content.items() for wnid, f in entries.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"{path}: must have the form {{image: {{WordNet id: frequency}}}} ({error}); `kind` csv reads a CSV"
        ) from None
    if not shares:
        raise UserError(f"{path}: no images")
    return shares


def _rows(path: Path) -> list[list[str]]:
    """The head and the rows of a CSV, or of the CSV in a zip archive."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                name = next((name for name in archive.namelist() if name.endswith("raw.csv")), None)
                if name is None:
                    raise UserError(f"{path}: there is no cifar10h-raw.csv in it")
                text = archive.read(name).decode("utf-8-sig")
        else:
            text = path.read_text(encoding="utf-8-sig")  # spreadsheets begin with a byte order mark
        rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error}); save it in UTF-8") from None
    except (zipfile.BadZipFile, csv.Error) as error:
        raise UserError(f"{path}: not a table: {error}") from None
    if rows and len(rows[0]) == 1 and (mark := next((mark for mark in (";", "\t") if mark in rows[0][0]), None)):
        raise UserError(f"{path}: its columns are separated by {mark!r}; use commas, and decimal points in numbers")
    if len(rows) < 2:
        raise UserError(f"{path}: no rows; the first line must name the columns")
    uneven = next((number for number, row in enumerate(rows, 1) if len(row) != len(rows[0])), None)
    if uneven is not None:
        raise UserError(f"{path}: row {uneven} has {len(rows[uneven - 1])} cells, but the head has {len(rows[0])}")
    return rows


def _column(head: Sequence[str], name: str, path: Path) -> int:
    if name not in head:
        raise UserError(f"{path}: no column '{name}'{nearest(name, list(head))} (columns: {', '.join(head)})")
    return list(head).index(name)


def _floats(cells: Sequence[str], name: str, path: Path, cure: str = "") -> np.ndarray:
    found = np.empty(len(cells))
    for row, cell in enumerate(cells):
        try:
            found[row] = float(cell)
        except ValueError:
            raise UserError(
                f"{path}: column '{name}' must have numbers, but has '{cell}' in row {row + 2}{cure}"
            ) from None
    return found
