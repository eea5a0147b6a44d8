"""Run folders for tests: finished runs with figures that a test names, without any training."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from uda.adaptation.config import AdaptationConfig
from uda.core.files import write_json, write_text
from uda.generalization.config import GeneralizationConfig
from uda.hardness.dynamics.config import SupervisedConfig
from uda.report.image_table import ImageTable
from uda.report.pictures import PICTURES, write_pictures
from uda.report.run_record import images_of

CLASSES = ("ape", "bee")


def adaptation_run(
    folder: Path,
    seed: int = 0,
    finals: Sequence[float | None] = (0.5, 0.6),
    before: float | None = 0.4,
    scores: Sequence[float] | None = None,
    per_class: Mapping[str, float] | None = None,
    predictions: Sequence[int] | None = (0, 1),
    truth: Sequence[int] | None = (),
    paths: Sequence[str] | None = None,
    classes: Sequence[str] = CLASSES,
    finished: bool = True,
    rounds: bool = True,
    pictures: bool = True,
    **settings,
) -> Path:
    """A run of self-training whose class mean is `finals` after each round.

    Args:
        folder: the run folder.
        seed: the run's seed.
        finals: class mean of each report; None without target labels.
        before: class mean of the source model.
        scores: the validator's score of each report. The default rises, so that it chooses the last report.
        per_class: accuracy by class after the last report; by default the class mean.
        predictions: classes that every model predicts; None: there is no images.parquet.
        truth: true classes of these images, by default the first class; None without labels.
        paths: their names.
        classes: the class names.
        finished: whether there is a results.json.
        rounds: whether the reports are of rounds that choose images.
        pictures: whether the images have thumbnails.
        settings: other keys of the config.
    """
    config = AdaptationConfig.model_validate(
        {"name": "toy", "seed": seed, "method": "self_training", "data": {"source": "drawn", "target": "written"}}
        | settings
    )
    write_text(folder / "config.yaml", config.to_yaml())
    write_json(folder / "environment.json", {"uda": "0.1"})
    record = _figures(before, dict.fromkeys(classes, before)) | {
        "validators": {"im": 0.0},
        "steps": 10,
        "seconds": 1.0,
        "warnings": [],
    }
    write_json(folder / "rounds/source.json", record)
    reports = []
    for number, final in enumerate(finals):
        by_class = per_class if per_class and number == len(finals) - 1 else dict.fromkeys(classes, final)
        score = number / 10 if scores is None else scores[number]
        report = {"round": number, "steps": 50, "loss": 1.0, "seconds": 2.0, "warnings": [], "effective_classes": 2.0}
        report |= _figures(final, by_class) | {"validators": {"im": score}}
        report |= _choice(number, classes, final) if rounds else {"steps": 50 * (number + 1)}
        write_json(folder / f"rounds/{number:02d}/report.json", report)
        reports.append(report)
    if predictions is not None:
        _images(folder, len(finals), classes, predictions, truth, paths, pictures)
    if finished:
        results = {"source_only": {"class_mean": before}, "rounds": [{"class_mean": final} for final in finals]}
        last = finals[-1] if finals else before
        write_json(folder / "results.json", results | {"final": {"class_mean": last}, "seconds": 12.0})
    return folder


def generalization_run(folder: Path, seed: int = 0, finals: Sequence[float] = (0.3, 0.7), **settings) -> Path:
    """A run of domain generalisation whose accuracy on the unseen domain is `finals`; the class mean is half of it."""
    config = GeneralizationConfig.model_validate(
        {"name": "erm", "seed": seed, "target": "written", "data": {"domains": ["drawn", "sketched", "written"]}}
        | settings
    )
    write_text(folder / "config.yaml", config.to_yaml())
    write_json(folder / "environment.json", {"uda": "0.1"})
    reports = []
    for number, final in enumerate(finals):
        report = {"round": number, "stage": 0, "steps": 25 * (number + 1), "loss": 1.0, "seconds": 2.0}
        report |= {"validation": 0.9 - number / 10, "seen": {}, "overall": final, "class_mean": final / 2}
        report["accuracy"] = _figures(final, dict.fromkeys(CLASSES, final))["accuracy"]
        report["hardness"] = {"mean": 0.5, "histogram": [1, 1]}
        write_json(folder / f"rounds/{number:02d}/report.json", report)
        reports.append({"overall": final})
    write_json(folder / "results.json", {"rounds": reports, "final": reports[-1], "seconds": 9.0})
    return folder


def supervised_run(folder: Path, seed: int = 0) -> Path:
    """A supervised training, which has no target."""
    config = SupervisedConfig.model_validate({"name": "cnn", "seed": seed, "method": "supervised", "data": {}})
    write_text(folder / "config.yaml", config.to_yaml())
    write_json(folder / "environment.json", {"uda": "0.1"})
    epoch = {"epoch": 0, "overall": 0.9, "per_class": dict.fromkeys(CLASSES, 0.9), "ece": 0.1, "steps": 5, "seconds": 1}
    write_json(folder / "epochs/00.json", epoch)
    write_json(folder / "results.json", {"epochs": [{"overall": 0.9}], "final": {"overall": 0.9}, "seconds": 3.0})
    return folder


def _figures(mean: float | None, per_class: Mapping[str, float | None]) -> dict:
    """The figures of a model; without target labels all are None."""
    confusion = np.zeros((len(per_class), len(per_class)), int).tolist()
    known = {"class_mean": mean, "overall": mean, "per_class": dict(per_class), "confusion": confusion, "ece": 0.1}
    return {"class_mean": mean, "overall": mean, "accuracy": None if mean is None else known}


def _choice(number: int, classes: Sequence[str], rate: float | None) -> dict:
    """What a round chose, with a TP rate for all; None without target labels."""
    by_class = {"lambda": dict.fromkeys(classes, 0.5), "tp_rate_per_class": dict.fromkeys(classes, rate)}
    means = {"tp_rate": rate, **dict.fromkeys(("avh", "avc", "confidence", "feature_norm"), 0.5)}
    rates = dict.fromkeys(("tp_rate_only_selector", "tp_rate_only_softmax"), rate)
    overlap = {"both": 1, "only_selector": 1, "only_softmax": 1, **rates}
    selected = {"portion": 0.2, "selected": 100 + number, "selected_per_class": dict.fromkeys(classes, 1)}
    return {**selected, **by_class, **means, "overlap": overlap}


def _images(folder, reports, classes, predictions, truth, paths, pictures) -> None:
    count = len(predictions)
    names = list(paths or (f"img/{row}.png" for row in range(count)))
    columns = {"prediction": np.array(predictions)}
    columns |= {name: np.linspace(0.5, 0.9, count) for name in ("probability", "avc", "avh")}
    if truth is not None:
        columns["label"] = np.array(truth or [0] * count)
    table = ImageTable(tuple(classes), names, np.zeros(count, int), ("written",), columns)
    for number in range(reports):
        table.write(folder / images_of(number))
    if pictures:
        buffer = io.BytesIO()
        Image.new("L", (4, 4), 128).save(buffer, "JPEG")
        write_pictures(folder / PICTURES, dict.fromkeys(range(count), buffer.getvalue()), names)
