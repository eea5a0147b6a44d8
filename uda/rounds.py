"""The whole circle: source training, then rounds of predict -> select -> fit -> report."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from uda.checkpoint import Progress, load_checkpoint, save_checkpoint
from uda.config import Config, OptimSettings
from uda.data import loaders
from uda.data.domains import load_domains
from uda.data.images import Images
from uda.data.loaders import Batches, Part, training_batches
from uda.data.transforms import make_predict, make_train
from uda.engine import Engine, seed_everything
from uda.errors import UserError
from uda.evaluation import VALIDATORS, Accuracy, accuracy, selection_metrics
from uda.methods import METHODS, Method
from uda.models import Prediction, create_network, load_network, save_network
from uda.plan import compute_line, epoch_steps, plan
from uda.regularizers import create_regularizer, lrent_keeps
from uda.report import RoundRecord, RunReport
from uda.run_folder import RunFolder, RunLog
from uda.selectors import SELECTORS
from uda.thresholds import PseudoLabels, class_balanced_thresholds, portion_schedule, select

# First numbers of every derived seed, so that no two uses of randomness share one.
INITIAL_WEIGHTS, SOURCE_STAGE, ROUND_STAGE, SOURCE_SHARE, ADAPTED_IMAGES = range(5)

#: Images in a batch of AdaBN's pass; part of the result, so not of `runtime`.
ADAPT_BATCH = 128


@dataclass(frozen=True)
class Choice:
    """What a round trains on: the pseudo-labels, and what is said about them."""

    pseudo: PseudoLabels
    """The selector's choice."""
    reference: PseudoLabels
    """What softmax would have chosen at the same portion."""
    labels: np.ndarray
    """(N, K) float32 label distributions: one-hot, or LRENT's soft labels."""
    portion: float
    """Share of each class that was asked for."""
    metrics: dict
    """`selection_metrics` of the choice."""

    def state(self) -> dict[str, object]:
        """For a checkpoint: tensors, numbers and strings only."""
        arrays = {
            name: {
                field: torch.from_numpy(np.ascontiguousarray(getattr(chosen, field)))
                for field in chosen.__dataclass_fields__
            }
            for name, chosen in (("pseudo", self.pseudo), ("reference", self.reference))
        }
        return {**arrays, "labels": torch.from_numpy(self.labels), "portion": self.portion, "metrics": self.metrics}

    @classmethod
    def from_state(cls, state: dict) -> "Choice":
        """The inverse of `state`."""
        pseudo, reference = (
            PseudoLabels(**{field: value.numpy() for field, value in state[name].items()})
            for name in ("pseudo", "reference")
        )
        return cls(pseudo, reference, state["labels"].numpy(), state["portion"], state["metrics"])


def choose(prediction: Prediction, config: Config, round_index: int, target_labels, classes: Sequence[str]) -> Choice:
    """Pseudo-labels of a round from the current model's prediction on the target.

    The selector scores, lambda_k cuts at the round's portion of every class, the regulariser may soften the labels.
    """
    settings = config.self_training
    portion = portion_schedule(round_index, settings.portion.start, settings.portion.step, settings.portion.max)
    features, logits, weight = (
        torch.from_numpy(a) for a in (prediction.features, prediction.logits, prediction.weight)
    )
    scores = _scores(settings.selector, features, logits, weight)
    try:
        thresholds = class_balanced_thresholds(scores, portion)
        pseudo = select(scores, thresholds)
    except ValueError as error:
        raise UserError(f"selector '{settings.selector}': {error}") from None
    reference = pseudo
    if settings.selector != "softmax":
        softmax_scores = _scores("softmax", features, logits, weight)
        reference = select(softmax_scores, class_balanced_thresholds(softmax_scores, portion))
    regularizer = create_regularizer(settings.regularizer, settings.alpha, settings.alpha_label)
    labels = regularizer.soft_labels(logits, thresholds, pseudo.labels)
    if settings.keep == "lrent":
        pseudo = replace(pseudo, selected=lrent_keeps(logits, thresholds, regularizer.alpha_label))
    metrics = selection_metrics(pseudo, prediction, reference, target_labels, classes)
    return Choice(pseudo, reference, np.asarray(labels, np.float32), portion, metrics)


def _scores(selector: str, features: Tensor, logits: Tensor, weight: Tensor) -> Tensor:
    with torch.inference_mode():
        scores = SELECTORS[selector](features, logits, weight)
    if tuple(scores.shape) != tuple(logits.shape):
        raise UserError(
            f"selector '{selector}' gave scores of shape {tuple(scores.shape)}; a selector gives one score an "
            f"image and class, here {tuple(logits.shape)}"
        )
    return scores


class Run:
    """One config's run, from wherever it stands to its end.

    Args:
        config: the validated config.
        log: receives plain lines.

    Raises:
        UserError: anything that the user can mend, before anything is written.
    """

    def __init__(self, config: Config, log: RunLog | None = None):
        self.config = config
        self.log = log or RunLog()
        self.folder = RunFolder(config)
        if self.folder.finished:
            return
        self.domains = load_domains(config.data, config.seed, self.log)
        self.classes = self.domains.classes
        seed_everything(INITIAL_WEIGHTS, config.seed)
        network = create_network(config.model, len(self.classes), len(config.transforms.mean))
        self.engine = Engine(network, config.runtime, self.log)
        self.transforms = {
            "source": make_train(config.transforms, config.transforms.source),
            "target": make_train(config.transforms, config.transforms.target),
            "predict": make_predict(config.transforms),
        }
        self.method: Method = METHODS[config.method](network, config)
        self.source_method: Method = METHODS["source_only"](network, config)
        self.saved = load_checkpoint(self.folder.checkpoints)
        if config.source.checkpoint and self.saved is None:
            load_network(network, config.source.checkpoint, self.description)
        self.progress = self.saved[0] if self.saved else Progress()
        self._try_out()
        self._started = time.monotonic()

    def _try_out(self) -> None:
        """Send two target images all the way to scores, so that what does not fit is found before hours of training."""
        first = self.domains.target.images.take(np.arange(min(2, len(self.domains.target.images))))
        try:
            prediction = self.engine.predict(self.predict_batches(first, 2, workers=0), len(first))
        except (AssertionError, RuntimeError) as error:
            reason = str(error).split("\n")[0]
            model, size = self.config.model.backbone, self.config.transforms.size
            raise UserError(f"model.backbone: {model} cannot take images of transforms.size={size}: {reason}") from None
        if self.rounds:
            tensors = (prediction.features, prediction.logits, prediction.weight)
            _scores(self.config.self_training.selector, *(torch.from_numpy(array) for array in tensors))

    @property
    def rounds(self) -> int:
        """Self-training rounds."""
        return self.config.self_training.rounds if self.method.rounds else 0

    @property
    def description(self) -> dict[str, object]:
        """What a weights file says about itself, and must share with a network that loads it."""
        model = self.config.model
        return {"backbone": model.backbone, "head": model.head, "bias": model.bias, "classes": list(self.classes)}

    @property
    def seconds(self) -> float:
        """Time spent on this run, over all its starts."""
        return self.progress.seconds + time.monotonic() - self._started

    def execute(self) -> dict | None:
        """Run to the end. Returns the results, or None when the run had been finished before."""
        if self.folder.finished:
            self.log(f"{self.folder.path} is finished: results.json and report.html are in there")
            return None
        self.folder.create(sys.argv, self.engine.settings.model_dump())
        self.log.open(self.folder.path / "log.txt")
        self.report = RunReport(
            self.folder.path,
            self.config,
            self.classes,
            self.domains.target.images,
            self.domains.target_labels,
            self.log,
        )
        if self.saved:
            self.engine.network.load_state_dict(self.saved[1]["network"])
            self.log(f"resuming {self.folder.path} from {self.progress.describe()}")
            self.log(compute_line(self))
        else:
            self.log(plan(self))
        prediction = self._source_stage() if self.progress.stage == "source" else None
        while self.progress.stage == "round":
            prediction = self._round(prediction)
        save_network(self.engine.network, self.folder.checkpoints / "final.safetensors", self.description)
        results = self.report.finish(self.seconds)
        if self.config.report.page:
            self.log(f"report: {self.folder.path / 'report.html'}")
        return results

    # Stages

    def _source_stage(self) -> Prediction | None:
        """Train and report the source model. Returns its prediction where round 0 may choose from it as it is."""
        settings = self.config.source
        started = time.monotonic()
        if not settings.checkpoint:
            self._train(
                self.source_method,
                self.source_batches,
                settings.optim,
                label="source",
                epochs=settings.epochs,
                steps=settings.steps,
                progress=lambda done: done / (1 + self.rounds),
            )
        save_network(self.engine.network, self.folder.checkpoints / "source.safetensors", self.description)
        if settings.adapt_batch_norm:
            self.adapt_batch_norm()
        prediction = self.predict()
        self.report.source(self.accuracy(prediction), self.validate(prediction), time.monotonic() - started)
        self._save(Progress("round" if self.rounds else "done", 0, 0, self.seconds))
        return None if self.config.self_training.adapt_batch_norm else prediction

    def _round(self, prediction: Prediction | None) -> Prediction:
        """One round; `prediction` is the last round's, None after a start."""
        settings, index = self.config.self_training, self.progress.round
        started = time.monotonic()
        resumed = self.saved[1].get("choice") if self.saved and self.progress.epoch else None
        if resumed:
            choice = Choice.from_state(resumed)
        else:
            if prediction is None:
                prediction = self._adapted_predict()
            choice = choose(prediction, self.config, index, self.domains.target_labels, self.classes)
            if not choice.pseudo.count:
                self._nothing_selected(index, choice)
        scalars = self._train(
            self.method,
            lambda epoch, steps: self.round_batches(choice, epoch, steps),
            settings.optim,
            label=f"round {index}",
            epochs=settings.epochs,
            steps=settings.steps,
            progress=lambda done: (1 + index + done) / (1 + self.rounds),
            freeze_batch_norm=settings.batch_norm == "eval",
            choice=choice,
        )
        prediction = self._adapted_predict()
        validators = self.validate(prediction)
        self.report.round(
            RoundRecord(
                round=index,
                portion=choice.portion,
                pseudo=choice.pseudo,
                reference=choice.reference,
                metrics=choice.metrics,
                accuracy=self.accuracy(prediction),
                validators=validators,
                loss=scalars["loss"],
                seconds=time.monotonic() - started,
            )
        )
        if self.report.label_free_round() == index:
            save_network(self.engine.network, self.folder.checkpoints / "label_free.safetensors", self.description)
        last = index + 1 == self.rounds
        self._save(Progress("done" if last else "round", index + 1, 0, self.seconds))
        return prediction

    def _adapted_predict(self) -> Prediction:
        if self.config.self_training.adapt_batch_norm:
            self.adapt_batch_norm()
        return self.predict()

    def _nothing_selected(self, index: int, choice: Choice) -> None:
        message = (
            f"round {index}: portion {choice.portion:g} selects no target image of any class; "
            "raise self_training.portion.start (portion * images of a class must reach 1)"
        )
        if self.config.self_training.on_empty == "stop":
            raise UserError(f"{message}, or set self_training.on_empty=continue")
        self.log(f"{message}; going on with source images alone")

    # Pieces

    def _train(
        self,
        method: Method,
        batches: Callable,
        optim: OptimSettings,
        *,
        label: str,
        epochs: int,
        steps: int | None,
        progress: Callable[[float], float],
        freeze_batch_norm: bool = False,
        choice: Choice | None = None,
    ) -> dict[str, float]:
        """Train one stage from the epoch where it stands; a checkpoint after every epoch."""
        plan = epoch_steps(len(batches(0, None)), epochs, steps)
        optimization = self.engine.optimization(method, optim, sum(plan))
        scalars: dict[str, float] = {}
        if self.progress.epoch:
            optimization.load_state_dict(self.saved[1]["optimization"])
            scalars = self.saved[1]["scalars"]
        self.saved = None
        for epoch in range(self.progress.epoch, len(plan)):
            stage = SOURCE_STAGE if self.progress.stage == "source" else ROUND_STAGE
            seed_everything(stage, self.config.seed, self.progress.round, epoch)
            scalars = self.engine.fit(
                method,
                batches(epoch, plan[epoch]),
                optimization,
                label=label if len(plan) == 1 else f"{label}, epoch {epoch + 1}/{len(plan)}",
                steps=plan[epoch],
                progress=progress,
                freeze_batch_norm=freeze_batch_norm,
            )
            state = {"optimization": optimization.state_dict(), "scalars": scalars}
            if choice is not None:
                state["choice"] = choice.state()
            self._save(replace(self.progress, epoch=epoch + 1, seconds=self.seconds), state)
        return scalars

    def _save(self, progress: Progress, state: dict | None = None) -> None:
        self._started = time.monotonic()
        self.progress = progress
        state = {"network": self.engine.network.state_dict(), **(state or {})}
        save_checkpoint(self.folder.checkpoints, progress, state)

    def source_batches(self, epoch: int, steps: int | None):
        """Batches of one epoch of the source stage."""
        return training_batches(
            [self._source_part(np.arange(len(self.domains.source.images)))],
            num_classes=len(self.classes),
            batch_size=self.config.source.batch_size,
            steps=steps,
            seed=(SOURCE_STAGE, self.config.seed, 0, epoch),
            workers=self.engine.workers(self.domains.source.images.in_memory),
            pin_memory=self.engine.pin_memory,
        )

    def round_batches(self, choice: Choice, epoch: int, steps: int | None):
        """Batches of one epoch of a round: the round's share of the source, and the selected target images."""
        settings, index = self.config.self_training, self.progress.round
        drawn = self.source_share(index)
        selected = np.flatnonzero(choice.pseudo.selected)
        parts = [self._source_part(drawn)]
        if len(selected):
            images = self.domains.target.images
            parts.append(
                Part(images, selected, choice.labels[selected], self.transforms["target"], domain=1, is_target=True)
            )
        batch = settings.batch
        sizes = batch.mixed or [batch.source, batch.selected][: len(parts)]
        return training_batches(
            parts,
            num_classes=len(self.classes),
            batch_size=sizes,
            steps=steps,
            seed=(ROUND_STAGE, self.config.seed, index, epoch),
            workers=self.engine.workers(self.domains.source.images.in_memory),
            pin_memory=self.engine.pin_memory,
        )

    def source_share(self, index: int) -> np.ndarray:
        """The source images of a round: a random share of all, drawn anew each round, in ascending order."""
        share = self.config.self_training.source_share
        count = len(self.domains.source.images)
        drawn = max(1, round(portion_schedule(index, share.start, share.step, share.max) * count))
        generator = np.random.default_rng((SOURCE_SHARE, self.config.seed, index))
        return np.sort(generator.choice(count, drawn, replace=False))

    def _source_part(self, indices: np.ndarray) -> Part:
        source = self.domains.source
        return Part(
            source.images, indices, source.labels[indices], self.transforms["source"], domain=0, is_target=False
        )

    def predict(self) -> Prediction:
        """A predict pass over the target: every image once, in order."""
        images = self.domains.target.images
        return self.engine.predict(self.predict_batches(images, self.engine.predict_batch_size), len(images))

    def adapt_batch_norm(self) -> None:
        """BatchNorm statistics from random target images.

        They are drawn, and batched in random order, by the run's seed: in the order of class folders each batch would
        be of one class, and the order of the images would tell of their labels.
        """
        images = self.domains.target.images
        drawn = np.random.default_rng((ADAPTED_IMAGES, self.config.seed)).permutation(len(images))
        drawn = drawn[: self.config.self_training.adapt_images]
        # Whole batches alone: every batch counts alike, and a last one of a single image has no variance.
        drawn = drawn[: max(len(drawn) // ADAPT_BATCH, 1) * ADAPT_BATCH]
        self.engine.adapt_batch_norm(self.predict_batches(images.take(drawn), ADAPT_BATCH))

    def predict_batches(self, images: Images, batch_size: int, workers: int | None = None) -> Batches:
        """Images as the network sees them in a predict pass, in order."""
        return loaders.predict_batches(
            images,
            self.transforms["predict"],
            batch_size=batch_size,
            workers=self.engine.workers(images.in_memory) if workers is None else workers,
            pin_memory=self.engine.pin_memory,
        )

    def accuracy(self, prediction: Prediction) -> Accuracy | None:
        """Oracle accuracy, None where no label is known."""
        labels = self.domains.target_labels
        return accuracy(prediction, labels, self.classes) if labels is not None else None

    def validate(self, prediction: Prediction) -> dict[str, float]:
        """Every label-free validator's score."""
        return {name: float(validator(prediction)) for name, validator in VALIDATORS.items()}
