"""What a classifier's outputs say about each labelled image: how hard it is, how sure the classifier is.

x is the input of the last linear layer, w_1..w_K the rows of its weight, z the logits, p their softmax, y the label,
theta_k the angle of x and w_k.
"""

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor

from uda.angular import angles, avc, avh
from uda.atomic import write_bytes, write_text
from uda.errors import UserError
from uda.models import Prediction
from uda.registry import Registry

#: Entries of a chunk's largest array.
CHUNK_ENTRIES = 4_000_000


@dataclass(frozen=True)
class Outputs:
    """What scores are made of, some rows of a prediction."""

    features: Tensor
    """(N, D) float32."""
    logits: Tensor
    """(N, K) float64."""
    weight: Tensor
    """(K, D) float32."""
    labels: Tensor
    """(N,) int64, 0..K-1."""

    @property
    def log_p(self) -> Tensor:
        """(N, K), in nats."""
        return self.logits.log_softmax(1)

    def own(self, values: Tensor) -> Tensor:
        """The label's column of values (N, K)."""
        return values.gather(1, self.labels[:, None])[:, 0]


Score = Callable[[Outputs], Tensor]
#: Functions of `Outputs` to (N,) float64.
SCORES: Registry[Score] = Registry("score")
#: 1 where a larger score is meant to go with an image that more people pick, -1 where a smaller one is.
EASIER: dict[str, int] = {}


def score(name: str, easier: int) -> Callable[[Score], Score]:
    """Register a score; `easier`: 1 if easy images should have a large one, -1 if a small one."""

    def register(function: Score) -> Score:
        EASIER[name] = easier
        return SCORES.register(name)(function)

    return register


@score("avh", easier=-1)
def angular_visual_hardness(outputs: Outputs) -> Tensor:
    """AVH: theta_y / sum_k theta_k, 0..1 (Chen et al., ICML 2020, definition 1)."""
    return avh(outputs.features.double(), outputs.weight, outputs.labels)


@score("angle", easier=-1)
def own_angle(outputs: Outputs) -> Tensor:
    """theta_y alone, radians in [0, pi]: AVH without its denominator."""
    return outputs.own(angles(outputs.features.double(), outputs.weight))


@score("avc", easier=1)
def angular_visual_confidence(outputs: Outputs) -> Tensor:
    """AVC of the label: (pi - theta_y) / sum_k (pi - theta_k), 0..1."""
    return outputs.own(avc(outputs.features.double(), outputs.weight))


@score("top_avc", easier=1)
def top_angular_visual_confidence(outputs: Outputs) -> Tensor:
    """The largest AVC, whatever the label."""
    return avc(outputs.features.double(), outputs.weight).amax(1)


@score("confidence", easier=1)
def confidence(outputs: Outputs) -> Tensor:
    """Softmax probability of the label, p_y, the paper's model confidence."""
    return outputs.own(outputs.log_p).exp()


@score("top_confidence", easier=1)
def top_confidence(outputs: Outputs) -> Tensor:
    """The largest softmax probability, whatever the label."""
    return outputs.log_p.amax(1).exp()


@score("margin", easier=1)
def margin(outputs: Outputs) -> Tensor:
    """Logit of the label less the largest other one; below 0 for an image that is classified wrongly."""
    others = outputs.logits.scatter(1, outputs.labels[:, None], -torch.inf)
    return outputs.own(outputs.logits) - others.amax(1)


@score("entropy", easier=-1)
def entropy(outputs: Outputs) -> Tensor:
    """Entropy of the softmax, nats."""
    log_p = outputs.log_p
    return -(log_p.exp() * log_p).sum(1)


@score("loss", easier=-1)
def loss(outputs: Outputs) -> Tensor:
    """Cross-entropy with the label, -log p_y in nats: p_y in another order of magnitude, not in another order."""
    return -outputs.own(outputs.log_p)


@score("norm", easier=1)
def norm(outputs: Outputs) -> Tensor:
    """|x|, the length of the feature."""
    return outputs.features.double().norm(dim=1)


@dataclass(frozen=True)
class ScoreTable:
    """Scores of N images."""

    ids: tuple[str, ...]
    """Names of the images, each one once."""
    labels: tuple[str, ...]
    """Class that each image shows."""
    predicted: tuple[str, ...]
    """Class that the classifier says."""
    scores: Mapping[str, np.ndarray]
    """By name (N,) float64."""
    others: tuple[str, ...] = ()
    """Columns of its file that were not asked for."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def right(self) -> np.ndarray:
        """(N,) bool: where the classifier is right."""
        return np.array(self.labels) == np.array(self.predicted)


def compute_scores(
    prediction: Prediction, labels: np.ndarray, names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Scores of every image of a prediction by name, (N,) float64; of `names`, or all of SCORES.

    Args:
        prediction: features (N, D), logits (N, K), weight (K, D).
        labels: (N,) int64, 0..K-1.
        names: scores to compute.
    """
    functions = {name: SCORES[name] for name in (SCORES if names is None else names)}
    weight = torch.from_numpy(np.asarray(prediction.weight))
    found = {name: np.empty(len(labels)) for name in functions}
    step = max(1, CHUNK_ENTRIES // max(prediction.logits.shape[1], prediction.features.shape[1]))
    for start in range(0, len(labels), step):
        rows = slice(start, start + step)
        outputs = Outputs(
            torch.from_numpy(prediction.features[rows]),
            torch.from_numpy(prediction.logits[rows]).double(),
            weight,
            torch.from_numpy(np.asarray(labels[rows], dtype=np.int64)),
        )
        for name, function in functions.items():
            found[name][rows] = function(outputs).numpy()
    return found


def make_table(
    ids: Sequence[str],
    prediction: Prediction,
    labels: np.ndarray,
    classes: Sequence[str],
    names: Sequence[str] | None = None,
) -> ScoreTable:
    """Scores of a prediction with the images' names and classes."""
    predicted = prediction.logits.argmax(1)
    return ScoreTable(
        tuple(ids),
        tuple(classes[label] for label in labels),
        tuple(classes[label] for label in predicted),
        compute_scores(prediction, labels, names),
    )


def write_scores(table: ScoreTable, path: Path) -> None:
    """Write a table as CSV, or as Parquet where the path ends so: image, label, predicted, and a column a score.

    Raises UserError for Parquet without pyarrow.
    """
    columns = {"image": table.ids, "label": table.labels, "predicted": table.predicted, **table.scores}
    if path.suffix == ".parquet":
        arrow, parquet = _parquet()
        sink = arrow.BufferOutputStream()
        parquet.write_table(arrow.table({name: list(values) for name, values in columns.items()}), sink)
        write_bytes(path, sink.getvalue().to_pybytes())
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(v.tolist() if isinstance(v, np.ndarray) else v for v in columns.values()), strict=True))
    write_text(path, text.getvalue())


def read_scores(path: Path, names: Sequence[str] | None = None) -> ScoreTable:
    """Read what `write_scores` wrote, or any table with a column `image` and columns of numbers.

    Args:
        path: a .csv, or a .parquet.
        names: columns to read as scores where they are there; None: all but `image`, `label` and `predicted`.

    Raises:
        UserError: no such file, no column `image`, an image twice, a score that is no finite number.
    """
    if not path.is_file():
        raise UserError(f"`tables`: no such file: {path}")
    if path.suffix == ".parquet":
        arrow, parquet = _parquet()
        try:
            columns = {name: list(values) for name, values in parquet.read_table(path).to_pydict().items()}
        except arrow.ArrowInvalid as error:
            raise UserError(f"{path}: not a Parquet file: {error}") from None
    else:
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.reader(file)
                lines = [(reader.line_num, row) for row in reader if row]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: not a table: {error}") from None
        head, rows = (lines[0][1] if lines else []), [row for _, row in lines[1:]]
        uneven = next((number for number, row in lines if len(row) != len(head)), None)
        if uneven is not None:
            raise UserError(f"{path}, line {uneven}: not as many cells as the head has")
        twice = next((name for name in head if head.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path}: two columns are called '{twice}'")
        columns = dict(zip(head, map(list, zip(*rows, strict=True)), strict=True)) if rows else {}
    if not columns.get("image"):
        raise UserError(f"{path}: no rows, or no column 'image'; `uda hardness score` writes such a table")
    ids = tuple(map(str, columns["image"]))
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{path}: the image {twice} stands twice")
    empty = ("",) * len(ids)
    labels, predicted = (tuple(map(str, columns.get(key, empty))) for key in ("label", "predicted"))
    texts = ("image", "label", "predicted")
    wanted = [name for name in columns if (name not in texts if names is None else name in names)]
    if "" in wanted:
        raise UserError(
            f"{path}: column {list(columns).index('') + 1} has no name: leave it out (pandas: index=False), or name "
            "the scores by `scores`"
        )
    numbers = {name: columns[name] for name in wanted}
    others = tuple(name for name in columns if name not in (*texts, *wanted))
    scores = {name: _numbers(values, name, path) for name, values in numbers.items()}
    return ScoreTable(ids, labels, predicted, scores, others)


def named_tables(words: Sequence[str], names: Sequence[str] | None = None) -> dict[str, ScoreTable]:
    """Tables from `file` or `name=file` words, by name.

    A run's folder stands for the scores.csv in it, whose name is the run's and its seed's; else it is the file's, or
    its folder's where files are named alike.

    Raises UserError for two of one name, and as `read_scores` does.
    """
    found: dict[str, Path] = {}
    split = [("", word) if Path(word).exists() or "=" not in word else word.split("=", 1) for word in words]
    files = [Path(os.path.expanduser(file)) for _, file in split]
    paths = [file / "scores.csv" if file.is_dir() else file for file in files]
    stems = [path.stem for path in paths]
    for (given, _), path, stem in zip(split, paths, stems, strict=True):
        name = given or _run_of(path) or (stem if stems.count(stem) == 1 else path.absolute().parent.name)
        if name in found:
            raise UserError(f"`tables`: {found[name]} and {path} would both be '{name}'; give names: NAME=FILE")
        found[name] = path
    return {name: read_scores(path, names) for name, path in found.items()}


def _run_of(path: Path) -> str | None:
    """The run in whose folder a table lies, by its config."""
    try:
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        return f"{config['name']}, seed {config['seed']}"
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None


def _numbers(values: Sequence[object], name: str, path: Path) -> np.ndarray:
    try:
        found = np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: column '{name}' is not of numbers ({error}); `scores` names those that are") from None
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        raise UserError(f"{path}: column '{name}' has {found[row]} in row {row + 1}: a score must be a finite number")
    return found


def _parquet():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError('Parquet needs pyarrow: pip install "uda-toolkit[parquet]", or name a .csv file') from None
    return pyarrow, pyarrow.parquet
