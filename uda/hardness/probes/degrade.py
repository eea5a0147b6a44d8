"""How scores follow image degradation: curves over the levels, and how well each score keeps their order.

Source: Angular Visual Hardness (Chen et al., ICML 2020), which uses image degradation as a measure of hardness for
people. `uda.hardness.probes.degradations` has the degradations.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from uda.core.errors import UserError
from uda.core.progress import progress
from uda.core.statistics import share_interval
from uda.data.loaders import predict_batches
from uda.data.transforms import make_predict
from uda.hardness.probes.degradations import DEGRADATIONS, degraded, seed_of
from uda.hardness.probes.degrade_figures import add_curves, add_examples, add_tables
from uda.hardness.probes.pixels import Pixels
from uda.hardness.scoring.classifier import LoadedClassifier
from uda.hardness.scoring.images import LabelledImages, engine_for, in_order_of, stratified
from uda.hardness.scoring.scores import EASIER, compute_scores
from uda.report.findings import Findings, Row
from uda.training.settings import RuntimeSettings

#: Scores of the curves, in their order. The curves also show `accuracy`.
SCORE_NAMES = ("avh", "confidence", "top_confidence", "entropy", "norm")


@dataclass(frozen=True)
class Degraded:
    """Scores and predictions of a classifier for N images at L levels of each degradation."""

    model: str
    num_classes: int
    kinds: tuple[str, ...]
    levels: np.ndarray
    """(L,) in 0..1, rising from 0."""
    data: LabelledImages
    """The images, with labels in the classifier's order of classes."""
    scores: dict[str, np.ndarray]
    """Arrays (kinds, L, N) float64 by name."""
    predicted: np.ndarray
    """Class numbers, (kinds, L, N) int64."""

    @property
    def right(self) -> np.ndarray:
        """Whether each prediction is right, (kinds, L, N) bool."""
        return self.predicted == self.data.labels


def measure(
    classifier: LoadedClassifier,
    data: LabelledImages,
    kinds: Sequence[str],
    levels: int = 6,
    seed: int = 0,
    runtime: RuntimeSettings | None = None,
    log: Callable[[str], None] | None = print,
) -> Degraded:
    """Score every image at every level of every degradation. Each image is read once.

    Args:
        classifier: the classifier.
        data: the images, with labels in the classifier's order of classes.
        kinds: names of degradations.
        levels: number of levels, in equal steps from 0 to 1.
        seed: seed of the noise.
        runtime: device and precision.
        log: called with lines of progress.

    Raises:
        UserError: an unknown degradation, or fewer than two levels.
    """
    for kind in kinds:
        DEGRADATIONS[kind]  # an unknown name raises before anything is computed
    if levels < 2:
        raise UserError(f"`levels`: {levels}: must be at least 2 (the image itself and the strongest degradation)")
    strengths = np.linspace(0, 1, levels)
    engine = engine_for(classifier, runtime, log=None)
    pixels = Pixels(classifier.transforms, engine.device)
    transform, size = make_predict(classifier.transforms), engine.predict_batch_size
    workers = engine.workers(data.images.in_memory)
    batches = predict_batches(data.images, transform, batch_size=size, workers=workers).on(
        engine.device, engine.pin_memory
    )
    shape = (len(kinds), levels, len(data.labels))
    scores = {name: np.empty(shape) for name in SCORE_NAMES}
    predicted = np.empty(shape, np.int64)

    def variants(images: Tensor, seeds: Sequence[int]) -> Iterator[Tensor]:
        yield pixels.to_inputs(images)
        for kind in kinds:
            for level in strengths[1:].tolist():
                yield pixels.to_inputs(degraded(images, kind, level, seeds))

    done = 0
    for inputs in progress(batches, f"degrade, {classifier.name}", len(batches), log):
        rows = np.arange(done, done + len(inputs))
        seeds = [seed_of(data.images.ids[i], seed) for i in rows]
        seen = variants(pixels.of(inputs), seeds)
        prediction = engine.predict(seen, len(rows) * (1 + len(kinds) * (levels - 1)))
        found = compute_scores(prediction, np.tile(data.labels[rows], len(prediction.logits) // len(rows)), SCORE_NAMES)
        for name, values in found.items():
            scores[name][:, :, rows] = _by_level(values, shape, len(rows))
        predicted[:, :, rows] = _by_level(prediction.logits.argmax(1), shape, len(rows))
        done += len(rows)
    count = len(classifier.network.weight)
    return Degraded(classifier.name, count, tuple(kinds), strengths, data, scores, predicted)


def _by_level(values: np.ndarray, shape: tuple[int, ...], count: int) -> np.ndarray:
    """Arrange the values of one batch's variants as (kinds, L, count). All kinds share their level 0."""
    kinds, levels, _ = shape
    of_kinds = values[count:].reshape(kinds, levels - 1, count)
    itself = np.broadcast_to(values[:count], (kinds, 1, count))
    return np.concatenate([itself, of_kinds], axis=1)


def curve_rows(found: Degraded) -> list[Row]:
    """Means over the images with 95 % intervals, one row per degradation, level and quantity.

    `avh_k` is AVH in units of 1 / K. Intervals are normal for means and Wilson's for the accuracy.
    """
    values = {"avh_k": found.scores["avh"] * found.num_classes, **found.scores}
    count = len(found.data.labels)
    rows = []
    for k, kind in enumerate(found.kinds):
        for i, level in enumerate(found.levels.tolist()):
            where = {"model": found.model, "degradation": kind, "level": level}
            right = int(found.right[k, i].sum())
            low, high = share_interval(right, count)
            rows.append({**where, "quantity": "accuracy", "mean": right / count, "low": low, "high": high})
            for name, all_values in values.items():
                mean, low, high = _mean_of(all_values[k, i])
                rows.append({**where, "quantity": name, "mean": mean, "low": low, "high": high})
    return rows


def order_rows(found: Degraded) -> list[Row]:
    """How well each score keeps the order of the levels for each image, one row per degradation and score.

    The sign of every score is chosen so that larger means harder. `spearman` is the rank correlation of level and
    score, averaged over the images. It is 0 for an image with a constant score. `less_confidence` is `spearman` minus
    that of confidence, paired by image; None for confidence. Both have normal 95 % intervals. `harder_at_every_level`
    is the share of images whose score gets harder from each level to the next, with Wilson's interval.
    """
    rows = []
    count = len(found.data.labels)
    for k, kind in enumerate(found.kinds):
        harder = {name: -EASIER[name] * values[k] for name, values in found.scores.items()}
        each = {name: level_correlation(values) for name, values in harder.items()}
        for name, values in harder.items():
            ahead = (None, None, None) if name == "confidence" else _mean_of(each[name] - each["confidence"])
            hits = int((np.diff(values, axis=0) > 0).all(0).sum())
            rows.append({
                "model": found.model, "degradation": kind, "score": name,
                **_with_interval("spearman", _mean_of(each[name])), **_with_interval("less_confidence", ahead),
                "harder_at_every_level": hits / count,
                **dict(zip(("share_low", "share_high"), share_interval(hits, count), strict=True)),
            })  # fmt: skip
    return rows


def _mean_of(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over the images with its normal 95 % interval. For one image, both ends are the mean."""
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    mean = float(values.mean())
    return mean, mean - half, mean + half


def _with_interval(name: str, found: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def level_correlation(values: np.ndarray) -> np.ndarray:
    """Spearman correlation of each column with the row number: (L, N) -> (N,), 0 for a constant column."""
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(0)
    level = np.arange(len(values)) - (len(values) - 1) / 2
    length = np.sqrt((ranks**2).sum(0) * (level**2).sum())
    return level @ ranks / np.where(length > 0, length, 1)


def typical(found: Degraded) -> int:
    """The image to show: the correctly classified image of median AVH at level 0. If none is correct, among all."""
    candidates = np.flatnonzero(found.right[0, 0])
    candidates = candidates if len(candidates) else np.arange(len(found.data.labels))
    hardness = found.scores["avh"][0, 0, candidates]
    return int(candidates[np.argsort(hardness, kind="stable")[len(candidates) // 2]])


def example_rows(found: Degraded, index: int) -> list[Row]:
    """One image's scores at every level of every degradation."""
    names, data = found.data.classes, found.data
    return [
        {
            "model": found.model, "image": data.images.ids[index], "label": names[data.labels[index]],
            "degradation": kind, "level": level, "predicted": names[found.predicted[k, i, index]],
            "avh_k": float(found.scores["avh"][k, i, index]) * found.num_classes,
            **{name: float(values[k, i, index]) for name, values in found.scores.items()},
        }
        for k, kind in enumerate(found.kinds)
        for i, level in enumerate(found.levels.tolist())
    ]  # fmt: skip


def views(classifier: LoadedClassifier, found: Degraded, index: int, seed: int) -> np.ndarray:
    """The pixels of one image at each level of each degradation: (kinds, L, S, S, C) float32 in 0..1."""
    images = found.data.images.take(np.array([index]))
    inputs = make_predict(classifier.transforms)([images.read(0)], [0])
    pixels = Pixels(classifier.transforms).of(inputs)
    seeds = [seed_of(images.ids[0], seed)]
    looks = [[degraded(pixels, kind, level, seeds)[0] for level in found.levels.tolist()] for kind in found.kinds]
    return torch.stack([torch.stack(row) for row in looks]).permute(0, 1, 3, 4, 2).numpy()


def degrade(
    classifiers: Sequence[LoadedClassifier],
    data: LabelledImages,
    findings: Findings,
    *,
    images: int = 2000,
    levels: int = 6,
    kinds: Sequence[str] | None = None,
    seed: int = 0,
    runtime: RuntimeSettings | None = None,
    log: Callable[[str], None] | None = print,
    name: str = "degrade",
) -> dict[str, list[Row]]:
    """Measure how image degradation changes the scores of classifiers, and add the results to the findings.

    Args:
        classifiers: the classifiers; equal names are numbered.
        data: labelled images. Each classifier gets the labels in its own order of classes.
        findings: receives curves, examples and tables, with names `<name>_...`.
        images: number of images to draw, in proportion to the classes.
        levels: number of levels of each degradation, with level 0.
        kinds: names of degradations; None: all.
        seed: seed of the draw and of the noise.
        runtime, log: as in `measure`.
        name: first part of the names of figures and tables.

    Returns:
        `curves`: the rows of `curve_rows` of all models; `order`: the rows of `order_rows`.

    Raises:
        UserError: an unknown degradation, too few levels or images, or classes that a classifier does not have.
    """
    if images < 1:
        raise UserError(f"`images`: {images}: must be at least 1")
    kinds = list(DEGRADATIONS) if kinds is None else list(dict.fromkeys(kinds))
    taken = data.take(stratified(data.labels, images, seed))
    titles = _distinct([classifier.name for classifier in classifiers])
    ordered = [in_order_of(classifier, taken) for classifier in classifiers]  # raises before anything is computed
    found = []
    for classifier, own, title in zip(classifiers, ordered, titles, strict=True):
        result = measure(classifier, own, kinds, levels, seed, runtime, log)
        found.append(replace(result, model=title))
    curves = [row for result in found for row in curve_rows(result)]
    order = [row for result in found for row in order_rows(result)]
    add_curves(findings, curves, name)
    shown = typical(found[0])
    for number, (classifier, result) in enumerate(zip(classifiers, found, strict=True), 1):
        looks = views(classifier, result, shown, seed)
        suffix = f"_{number}" if len(found) > 1 else ""
        add_examples(findings, looks, example_rows(result, shown), f"{name}_examples{suffix}")
    add_tables(findings, curves, order, name)
    return {"curves": curves, "order": order}


def summary(found: Mapping[str, Sequence[Row]]) -> list[str]:
    """The main numbers of `degrade`'s result, in lines: the ends of the curves, and how well scores keep the order."""
    ends: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in found["curves"]:
        ends.setdefault((row["model"], row["degradation"]), {}).setdefault(row["quantity"], []).append(row["mean"])
    share = {(row["model"], row["degradation"], row["score"]): row["harder_at_every_level"] for row in found["order"]}
    head = " ".join(f"{cell:>14}" for cell in ("accuracy %", "AVH / (1/K)", "p_y"))
    lines = [f"{'from level 0 to 1':<34} {head}   harder at every level: AVH, p_y"]
    for (model, kind), curves in ends.items():
        cells = [f"{100 * curves['accuracy'][0]:.1f} > {100 * curves['accuracy'][-1]:.1f}"]
        cells += [f"{curves[key][0]:.3f} > {curves[key][-1]:.3f}" for key in ("avh_k", "confidence")]
        both = [f"{100 * share[model, kind, score]:.1f} %" for score in ("avh", "confidence")]
        lines.append(f"{f'{model[:24]}, {kind}':<34} {' '.join(f'{cell:>14}' for cell in cells)}   {', '.join(both)}")
    return lines


def _distinct(names: Sequence[str]) -> list[str]:
    return [name + f" ({names[:i].count(name) + 1})" * (names.count(name) > 1) for i, name in enumerate(names)]
