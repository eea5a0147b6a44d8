"""A run of domain generalisation: train on the seen domains, test on held-out images and on the unseen domain."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from uda.core.errors import UserError
from uda.data.features import features_of
from uda.data.images import Images
from uda.evaluation.accuracy import accuracy, hardness
from uda.generalization.batches import GeneralizationBatches
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import load
from uda.generalization.methods import GENERALIZATION_METHODS, GeneralizationMethod
from uda.generalization.report import DomainResult, GeneralizationReport, summary_lines
from uda.generalization.stages import GENERALIZATION_STAGE, stage_steps
from uda.models.network import Prediction, describe_network, network_for
from uda.report.feature_map import check_installed
from uda.training.checkpoint import Progress
from uda.training.engine import seed_everything
from uda.training.inputs import InputImages, Inputs
from uda.training.pace import Trials, predict_pace, training_pace
from uda.training.session import Session
from uda.training.stages import INITIAL_WEIGHTS


class GeneralizationRun(Session):
    """A run with one unseen domain. It starts, or resumes from its last checkpoint."""

    config: GeneralizationConfig
    method: GeneralizationMethod
    _unseen: Prediction | None = None

    def prepare(self) -> None:
        config = self.config
        self.domains = load(config, self.log, self.ranks)
        self.classes = self.domains.classes
        check_installed(config.report.map)
        method = GENERALIZATION_METHODS[config.method]
        seen = len(self.domains.seen)
        if seen < method.least_domains:
            raise UserError(
                f"method: '{config.method}' trains on some seen domains and tests on another, so it needs at least "
                f"{method.least_domains} seen domains; got {seen}"
            )
        if config.model.classifier and not method.keeps_classifier:
            raise UserError(
                f"model.classifier: method '{config.method}' draws new classifiers, so class vectors would not matter; "
                "set it to null"
            )
        if config.runtime.accumulate > 1 and method.step is not GeneralizationMethod.step:
            raise UserError(
                f"runtime.accumulate: method '{config.method}' cannot accumulate gradients over parts of a batch; set "
                "it to 1"
            )
        if config.runtime.compile and not method.compiles:
            raise UserError(
                f"runtime.compile: torch.compile does not support the inner steps of '{config.method}'; set it to false"
            )
        if config.runtime.sync_batch_norm and not method.compiles:
            raise UserError(
                "runtime.sync_batch_norm: synchronised BatchNorm does not support the inner steps of "
                f"'{config.method}'; set it to false"
            )
        parts = self.ranks.world * config.runtime.accumulate
        if method.least_domains > 1 and config.training.batch_size < 2 * parts:
            raise UserError(
                f"training.batch_size: method '{config.method}' computes BatchNorm statistics of single domains, so "
                f"each of the {parts} parts of a batch (processes times runtime.accumulate) needs at least two images "
                f"of each domain; got {config.training.batch_size}"
            )
        seed_everything(INITIAL_WEIGHTS, config.seed)
        network = network_for(self.domains.unseen.images, config.model, config.transforms, len(self.classes))
        self.build(network, lambda network: method(network, seen, **config.method_settings))
        self.batches = GeneralizationBatches(config, self.domains, self.engine)
        self.stage_steps = stage_steps(config)
        if not self.stage_steps[-1]:
            raise UserError(
                f"training.steps: with {config.training.steps}, the last stage of '{config.method}' has no steps; "
                "increase it"
            )
        #: What the model of the last report reaches; None before the first report after a start of the program.
        self._evaluated: list[DomainResult] | None = None
        for stage, steps in enumerate(self.stage_steps):
            self.batches.training(stage, sum(steps))  # raises before the training if a domain is too small

    @cached_property
    def inputs(self) -> Inputs:
        found = {seen.name: InputImages.of(seen.domain.images, seen.domain.labels) for seen in self.domains.seen}
        unseen = InputImages.of(self.domains.unseen.images, self.domains.unseen_labels)
        return Inputs(self.classes, {**found, self.domains.name: unseen})

    @property
    def description(self) -> dict[str, object]:
        return describe_network(self.config.model, self.classes, self.domains.unseen.images)

    @property
    def in_memory(self) -> bool:
        return self.batches.in_memory

    def new_report(self) -> GeneralizationReport:
        return GeneralizationReport(self.records, self.config, self.domains, self.log)

    @property
    def steps_before(self) -> int:
        return sum(map(sum, self.stage_steps[: self.progress.round]))

    def load(self, state: Mapping[str, object]) -> None:
        if self.progress.stage == "generalization":  # every started stage may have added networks to the method
            for stage in range(self.progress.round + self.progress.begun):
                self._begin(stage)
        super().load(state)

    def train_stages(self) -> None:
        if self.saved is None:
            if self.config.model.classifier:
                self._zero_shot()
            self.save(Progress("generalization", seconds=self.seconds))
        self.begin_teacher()
        while self.progress.stage == "generalization":
            self._stage(self.progress.round)
        if self.config.report.page and self.config.report.map != "none":
            if self._evaluated is None:  # the run was resumed after its last report
                self._evaluated = self.evaluate()
            if self.ranks.is_main:
                self.report.write_map(self._evaluated)

    def summary(self, results: Mapping[str, Any]) -> list[str]:
        return summary_lines(results)

    def plan(self) -> str:
        config, network = self.config, self.engine.network
        seen = ", ".join(
            f"{seen.name} ({len(seen.training):,} + {len(seen.validation):,})" for seen in self.domains.seen
        )
        training = config.training
        parameters = sum(p.numel() for p in network.parameters() if p.requires_grad)
        trained_on = self.description["backbone"] if features_of(self.domains.unseen.images) else config.model.backbone
        return "\n".join(
            [
                f"run      {config.name}, seed {config.seed}, method {config.method} -> {self.folder.path}",
                f"seen     {seen} images for training + held out, {len(self.classes)} classes",
                f"unseen   {self.domains.name}, {len(self.domains.unseen.images):,} images",
                f"network  {trained_on}, "
                f"features {network.weight.shape[1]}, {parameters:,} parameters trained, loss {config.model.loss}",
                f"trains   {training.steps:,} steps of {training.batch_size} images of each domain, one report every "
                f"{training.interval:,}",
                *([f"teacher  {config.ema.told}"] if config.ema.decay is not None else []),
                self.compute_line,
            ]
        )

    def cost(self) -> str:
        """Lines with the estimated time of the whole run. The session cannot be used afterwards, as `trials` says."""
        return self.trials().cost(self.engine, self.workers)

    def trials(self) -> Trials:
        """The pace of a few steps of every stage. This trains the network, so the session cannot be used afterwards."""
        training, workers = self.config.training, self.workers
        stages = {}
        for stage, steps in enumerate(self.stage_steps):
            if total := sum(steps):
                self._begin(stage)
                optimization = self.engine.optimization(self.method, training.optim, total)
                batches, frozen = self.batches.training(stage, total), training.batch_norm == "eval"
                name = "training" if len(self.stage_steps) == 1 else f"stage {stage + 1}"
                with self.engine.enough_memory(name, self.smaller_step(self.method, "generalization")):
                    pace = training_pace(self.engine, self.method, optimization, batches, workers, frozen)
                stages[name] = total, pace
        found = [self.batches.evaluation_images(number)[1] for number in range(len(self.domains.seen) + 1)]
        predict, _ = predict_pace(self.engine, found[-1], self.batches.predict_transform)
        predicted = sum(map(len, self.stage_steps)) * sum(map(len, found))
        return Trials(stages, predicted, predict)

    def _zero_shot(self) -> None:
        """Judge and report the network with the class vectors of `model.classifier`, before any training."""
        self.begin_part()
        results = self.evaluate()
        if self.ranks.is_main:
            self.report.zero_shot(results, self.part_seconds)

    def _begin(self, stage: int) -> None:
        seed_everything(GENERALIZATION_STAGE.number, self.config.seed, stage)
        self.method.begin(stage)

    def _stage(self, stage: int) -> None:
        steps, training = self.stage_steps[stage], self.config.training
        if not self.progress.begun:
            self._begin(stage)
        before = sum(map(len, self.stage_steps[:stage]))
        steps_before = sum(map(sum, self.stage_steps[:stage]))
        self.begin_part()

        def report(interval: int, scalars: dict[str, float]) -> None:
            results = self._evaluated = self.evaluate()
            if self.ranks.is_main:
                so_far = steps_before + sum(steps[: interval + 1])
                self.report.interval(before + interval, stage, so_far, scalars, results, self.part_seconds)
                if self.report.is_choice(before + interval):
                    self.save_weights("validation")
            self.begin_part()

        batches = self.batches.training(stage, sum(steps))
        self.train(
            self.method,
            lambda interval: batches.window(training.interval * interval, steps[interval]),
            training.optim,
            label="training" if len(self.stage_steps) == 1 else f"stage {stage + 1}/{len(self.stage_steps)}",
            steps=steps,
            progress=lambda done: (steps_before + done * sum(steps)) / training.steps,
            freeze_batch_norm=training.batch_norm == "eval",
            after=report,
        )
        last = stage + 1 == len(self.stage_steps)
        self.save(Progress("done" if last else "generalization", stage + 1, seconds=self.seconds))

    def evaluate(self) -> list[DomainResult]:
        """Judge the model on each seen domain's held-out images and on the unseen domain. Empty except on rank 0."""
        found = []
        for number in range(len(self.domains.seen) + 1):
            name, images, labels = self.batches.evaluation_images(number)
            prediction = self.predict_images(images, self.batches.predict_transform).whole
            if self.ranks.is_main:
                reached = accuracy(prediction, labels, self.classes)
                found.append(DomainResult(name, reached, hardness(prediction, labels), prediction))
        self._unseen = prediction  # the unseen domain comes last
        return found

    def final_prediction(self) -> tuple[Images, Prediction]:
        images = self.domains.unseen.images
        if self._unseen is None:  # a run that resumes after its last stage has not predicted yet
            _, inputs, _ = self.batches.evaluation_images(len(self.domains.seen))
            self._unseen = self.predict_images(inputs, self.batches.predict_transform).whole
        return images, self._unseen
