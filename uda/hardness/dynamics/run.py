"""A supervised training that scores all test images before the first epoch and after every epoch."""

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from uda.data.domains import TargetLabels, load_labelled
from uda.data.loaders import Part, training_batches
from uda.data.transforms import make_predict, make_train
from uda.evaluation.accuracy import accuracy
from uda.hardness.dynamics.config import SupervisedConfig
from uda.hardness.dynamics.dynamics import groups_of
from uda.hardness.dynamics.method import Supervised
from uda.hardness.dynamics.report import EpochReport
from uda.hardness.scoring.images import LabelledImages
from uda.hardness.scoring.scores import make_table
from uda.models.network import create_network, describe_network
from uda.report.terminal import percent
from uda.training.checkpoint import Progress
from uda.training.engine import seed_everything
from uda.training.inputs import InputImages, Inputs
from uda.training.pace import Trials, predict_pace, training_pace
from uda.training.session import Session
from uda.training.stages import INITIAL_WEIGHTS, Stage

SUPERVISED_STAGE = Stage("supervised", 7, "the training", "training.batch_size")


class SupervisedRun(Session):
    """Trains on one set of images and scores another.

    `epochs/NN.json` has the mean scores and the accuracy of the test images after NN epochs. `epochs/NN.npz` has every
    score of every image, in the order of `scores.csv`. `scores.csv` is the table of the last epoch.
    """

    config: SupervisedConfig

    def prepare(self) -> None:
        config = self.config
        names = [config.data.train, config.data.test]
        (train, test), classes = load_labelled(
            config.data, names, config.seed, self.log, self.ranks, called=["data.train", "data.test"]
        )
        self.training = LabelledImages(train.images, train.labels, classes)
        self.test = LabelledImages(test.images, test.labels, classes)
        self.classes = classes
        # Raises before the training if the figures cannot be drawn.
        groups_of(config, test.images.ids, [classes[label] for label in test.labels], self.log)
        seed_everything(INITIAL_WEIGHTS, config.seed)
        network = create_network(config.model, len(classes), len(config.transforms.mean))
        self.build(network, lambda network: Supervised(network, label_smoothing=config.training.label_smoothing))
        self.steps = len(self._batches(0))

    @cached_property
    def inputs(self) -> Inputs:
        parts = {"training": self.training, "test": self.test}
        return Inputs(self.classes, {role: InputImages(part.images.ids, part.labels) for role, part in parts.items()})

    @property
    def description(self) -> dict[str, object]:
        return describe_network(self.config.model, self.classes)

    @property
    def in_memory(self) -> bool:
        return self.training.images.in_memory

    def new_report(self) -> EpochReport:
        return EpochReport(self.records, self.config, self.log)

    @property
    def steps_before(self) -> int:
        return self.config.training.epochs * self.steps if self.progress.stage == "done" else 0

    def train_stages(self) -> None:
        if self.saved is None:
            self._record(0, {})
            self.save(Progress("supervised", seconds=self.seconds))
        self.begin_teacher()
        if self.progress.stage == "supervised":
            training = self.config.training
            self.train(
                self.method,
                self._batches,
                training.optim,
                label="training",
                steps=[self.steps] * training.epochs,
                progress=lambda done: done,
                after=lambda epoch, scalars: self._record(epoch + 1, scalars),
            )
            self.save(Progress("done", seconds=self.seconds))

    def plan(self) -> str:
        config, network = self.config, self.engine.network
        parameters = sum(p.numel() for p in network.parameters())
        return "\n".join(
            [
                f"run      {config.name}, seed {config.seed} -> {self.folder.path}",
                f"data     {len(self.training.images):,} images for training, {len(self.test.images):,} for scoring, "
                f"{len(self.classes)} classes",
                f"network  {config.model.backbone}, features {network.weight.shape[1]}, {parameters:,} parameters",
                *([f"teacher  {config.ema.told}"] if config.ema.decay is not None else []),
                self.compute_line,
                f"trains   {config.training.epochs} epochs of {self.steps:,} steps of {config.training.batch_size}",
            ]
        )

    def cost(self) -> str:
        """Estimate the time of the whole run. This trains the network, so the session cannot be used afterwards."""
        engine, training = self.engine, self.config.training
        workers, batches = self.workers, self._batches(0)
        optimization = engine.optimization(self.method, training.optim, training.epochs * self.steps)
        with engine.enough_memory("training", self.smaller_step(self.method, "supervised")):
            pace = training_pace(engine, self.method, optimization, batches, workers)
        predict, _ = predict_pace(engine, self.test.images, make_predict(self.config.transforms))
        predicted = (1 + training.epochs) * len(self.test.images)
        return Trials({"training": (training.epochs * self.steps, pace)}, predicted, predict).cost(engine, workers)

    def _batches(self, epoch: int):
        config = self.config
        images, labels = self.training.images, self.training.labels
        transform = make_train(config.transforms, config.augment)
        return training_batches(
            [Part(images, np.arange(len(images)), labels, transform, domain=0, is_target=False)],
            num_classes=len(self.classes),
            batch_size=config.training.batch_size,
            steps=None,
            seed=(SUPERVISED_STAGE.number, config.seed, epoch),
            workers=self.engine.workers(images.in_memory),
            rank=self.ranks.rank,
            world=self.ranks.world,
            accumulate=config.runtime.accumulate,
        )

    def _record(self, epoch: int, scalars: Mapping[str, float]) -> None:
        """Predict and report the test images after `epoch` epochs."""
        started = time.monotonic()
        prediction = self.predict_images(self.test.images, make_predict(self.config.transforms)).whole
        if self.ranks.is_main:
            table = make_table(self.test.images.ids, prediction, self.test.labels, self.classes)
            reached = accuracy(prediction, TargetLabels(self.test.labels), self.classes)
            self.report.epoch(epoch, epoch * self.steps, scalars.get("loss"), table, reached, started)

    def summary(self, results: Mapping[str, Any]) -> list[str]:
        reached, path = percent(results["final"]["overall"]), self.folder.path
        return [f"test accuracy {reached} %; scores: {path / 'scores.csv'}; scores of every epoch: {path / 'epochs'}"]
