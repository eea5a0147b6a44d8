"""Places of features on a plane: PCA, or t-SNE and UMAP. The map of a finished run's images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np

from uda.core.errors import UserError
from uda.evaluation.validators import CHUNK_ENTRIES
from uda.models.network import Prediction
from uda.report.image_table import ImageTable

Projection = Literal["pca", "tsne", "umap"]
TITLES = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
#: Images that a projection is fitted to at most.
MOST_POINTS = 20_000


def places(features: np.ndarray, projection: Projection = "pca") -> np.ndarray:
    """Features (N, D) on a plane: (N, 2) float32. The same features give the same places.

    PCA is fitted to a random sample of at most 20,000 rows. t-SNE and UMAP need all rows at once. Features without a
    plane (fewer than three rows, one column, or values that are not finite) are all at the same place.

    Raises:
        UserError: UMAP is not installed.
    """
    step = max(1, CHUNK_ENTRIES // max(1, features.shape[1]))  # features may be larger than memory
    parts = (features[start : start + step] for start in range(0, len(features), step))
    if len(features) < 3 or features.shape[1] < 2 or not all(np.isfinite(part).all() for part in parts):
        return np.zeros((len(features), 2), np.float32)
    if projection == "tsne":
        from sklearn.manifold import TSNE

        model = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), init="pca", random_state=0)
        return model.fit_transform(features).astype(np.float32)
    if projection == "umap":
        check_installed(projection)
        from umap import UMAP

        return UMAP(random_state=0).fit_transform(features).astype(np.float32)
    return _principal_axes(features)


def _principal_axes(features: np.ndarray) -> np.ndarray:
    """PCA without scikit-learn, whose import takes longer than the work of a small run."""
    from scipy.linalg import eigh

    sample = features[sample_rows(len(features), MOST_POINTS)]
    mean = sample.mean(0, dtype=np.float64).astype(features.dtype)
    centred = sample - mean
    last = features.shape[1] - 1
    _, axes = eigh(centred.T @ centred, subset_by_index=[last - 1, last])
    axes = axes[:, ::-1]
    axes *= np.sign(axes[np.abs(axes).argmax(0), [0, 1]])  # else the sign would be the library's choice
    found = np.empty((len(features), 2), np.float32)
    step = max(1, CHUNK_ENTRIES // features.shape[1])
    for start in range(0, len(features), step):
        found[start : start + step] = (features[start : start + step] - mean) @ axes
    return found


def check_installed(projection: str) -> None:
    """Raise UserError if the projection needs a package that is not installed."""
    if projection == "umap" and find_spec("umap") is None:
        raise UserError("report.map: 'umap' needs the package umap-learn; pip install umap-learn")


def sample_rows(count: int, most: int) -> np.ndarray:
    """At most `most` of `count` rows, in ascending order: the same random ones each time."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def shares_of(counts: Sequence[int], most: int) -> list[int]:
    """How many rows of each domain to take, so that there are at most `most` and small domains are whole."""
    left, shares = most, [0] * len(counts)
    for place, domain in enumerate(np.argsort(counts, kind="stable")):
        shares[domain] = min(counts[domain], left // (len(counts) - place))
        left -= shares[domain]
    return shares


@dataclass(frozen=True)
class MapPart:
    """n images on the map."""

    prediction: Prediction
    """Their prediction by the final model."""
    paths: Sequence[str]
    """Their names."""
    labels: np.ndarray
    """(n,) their classes. Those of target images may be unknown."""
    domain: np.ndarray
    """(n,) place of their domain in the map's list of domains."""
    rows: np.ndarray | None = None
    """(n,) their rows in the tables of the target; None if they are not of the target."""


def map_table(
    classes: Sequence[str],
    domains: Sequence[str],
    parts: Sequence[MapPart],
    projection: Projection,
    columns: Mapping[str, np.ndarray] | None = None,
) -> ImageTable:
    """The content of `map.parquet`: images on a plane, by their features in the final model.

    `columns`: further columns, with a value for every image of all parts.
    """
    found = {
        "label": np.concatenate([part.labels for part in parts]),
        "prediction": np.concatenate([part.prediction.logits.argmax(1) for part in parts]),
        "row": np.concatenate([np.full(len(part.paths), -1) if part.rows is None else part.rows for part in parts]),
        **(columns or {}),
    }
    features = np.concatenate([part.prediction.features for part in parts])
    found["x"], found["y"] = places(features, projection).T
    paths = [path for part in parts for path in part.paths]
    domain = np.concatenate([part.domain for part in parts])
    return ImageTable(tuple(classes), paths, domain, tuple(domains), found, {"projection": projection})
