"""A small run with a model that really gets better: everything that a report needs, from the real parts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.pseudo_labels import RoundLabels
from uda.adaptation.report import AdaptationReport, RoundRecord
from uda.data.domains import TargetLabels
from uda.data.images import ImageArray
from uda.evaluation.accuracy import Prediction, accuracy, selection_metrics
from uda.evaluation.validators import VALIDATORS
from uda.selection.selectors import SELECTORS
from uda.selection.thresholds import class_balanced_thresholds, select
from uda.training.records import Records


@dataclass
class SyntheticRun:
    """Images, labels and the predictions of a model whose features move towards their class, round by round."""

    folder: Path
    config: AdaptationConfig
    classes: tuple[str, ...]
    images: ImageArray
    labels: np.ndarray
    target_labels: TargetLabels | None

    def __post_init__(self):
        self.lines: list[str] = []
        self.records = Records(self.folder)
        self.results: dict = {}

    def report(self) -> AdaptationReport:
        """A report that resumes with the records so far."""
        source = np.full(len(self.classes), 100)
        return AdaptationReport(
            self.records, self.config, self.classes, source, self.images, self.target_labels, log=self.lines.append
        )

    def cut(self, rounds: int) -> None:
        """Go back to a checkpoint that holds the records of so many rounds."""
        kept = list(self.records.state().items())[: 1 + rounds]
        self.records = Records(self.folder, dict(kept))

    def prediction(self, step: int) -> Prediction:
        """The model after source training (step 0) or round `step - 1`."""
        rng = np.random.default_rng(7)
        weight = rng.normal(size=(len(self.classes), 8))
        noise = rng.normal(size=(len(self.labels), 8)) * 2.2
        features = np.maximum((0.8 + 0.12 * step) * weight[self.labels] + noise, 0) * (1 + 0.1 * step)
        logits = features @ weight.T + rng.normal(size=len(self.classes))
        return Prediction(*(array.astype(np.float32) for array in (features, logits, weight)))

    def accuracy(self, step: int):
        if self.target_labels is None:
            return None
        return accuracy(self.prediction(step), self.target_labels, self.classes)

    def validators(self, step: int) -> dict[str, float]:
        previous = self.prediction(step - 1).logits.argmax(1) if step else None
        return {name: score(self.prediction(step), previous) for name, score in VALIDATORS.items()}

    def choose(self, selector: str, step: int, portion: float):
        before = self.prediction(step)
        scores = SELECTORS[selector](*map(torch.from_numpy, (before.features, before.logits, before.weight)))
        return select(scores, class_balanced_thresholds(scores, portion))

    def record(self, index: int, portion: float | None = None) -> RoundRecord:
        portion = 0.2 + 0.05 * index if portion is None else portion
        pseudo = self.choose(self.config.self_training.selector, index, portion)
        reference = self.choose("softmax", index, portion)
        before = self.prediction(index)
        return RoundRecord(
            round=index,
            steps=50,
            labels=RoundLabels(
                portion=portion,
                pseudo=pseudo,
                reference=reference,
                labels=np.eye(len(self.classes), dtype=np.float32)[pseudo.labels],
                metrics=selection_metrics(pseudo, before, reference, self.target_labels, self.classes),
            ),
            prediction=self.prediction(index + 1),
            accuracy=self.accuracy(index + 1),
            validators=self.validators(index + 1),
            loss=1.5 / (index + 1),
            seconds=12.5,
        )

    def play(self, rounds: int) -> dict:
        """A whole run: source, rounds, results."""
        return self.begin(rounds).finish(123.4)

    def source(self, report: AdaptationReport, seconds: float = 1.0) -> None:
        """Report the source model."""
        report.source(self.prediction(0), self.accuracy(0), self.validators(0), seconds)

    def begin(self, rounds: int) -> AdaptationReport:
        """A run up to its last round."""
        report = self.report()
        self.source(report, 20.0)
        for index in range(rounds):
            report.round(self.record(index))
        return report


def run_maker(folder: Path):
    """`make(selector=..., labelled=..., classes=..., **report settings)` gives a SyntheticRun in `folder`.

    Runs draw no page unless it is asked for, because it takes a second per report.
    """

    def make(
        selector="avc",
        labelled=True,
        classes=("ape", "bee", "cat", "dog"),
        method="self_training",
        images=240,
        **report,
    ):
        rng = np.random.default_rng(3)
        labels = rng.integers(0, len(classes), images)
        shades = (labels * 40 % 256).astype(np.uint8)
        pixels = np.broadcast_to(shades[:, None, None, None], (images, 1, 12, 12)).copy()
        pixels[:, :, 4:8, 4:8] = 255
        return SyntheticRun(
            folder=folder,
            config=AdaptationConfig.model_validate(
                {
                    "name": "toy",
                    "method": method,
                    "data": {"source": "drawn", "target": "written"},
                    "self_training": {"selector": selector},
                    "report": {"loggers": [], "page": False, "gallery": 6, **report},
                }
            ),
            classes=tuple(classes),
            images=ImageArray(pixels, [f"img/{index:03d}.png" for index in range(images)]),
            labels=labels,
            target_labels=TargetLabels(labels) if labelled else None,
        )

    return make


@pytest.fixture
def make_run(tmp_path):
    """Makes a run in a folder of the test's own."""
    return run_maker(tmp_path / "run")


@pytest.fixture(scope="session")
def played_run(tmp_path_factory):
    """A finished run of three rounds for tests that only look."""
    run = run_maker(tmp_path_factory.mktemp("played") / "run")(gallery=24, page=True)
    run.results = run.play(3)
    return run
