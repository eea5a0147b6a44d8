"""The whole circle: source training, then rounds of predict -> select -> fit -> report, or one stage of adaptation."""

import hashlib
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import yaml
from torch import Tensor

from uda import checkpoint
from uda.checkpoint import Checkpoints, Progress
from uda.choice import Choice, Predicted, choose, target_scores
from uda.config import AdaptationSettings, Config, OptimSettings, SelfTrainingSettings, differing_keys
from uda.data import loaders
from uda.data.domains import load_domains
from uda.data.images import Images
from uda.data.loaders import Batches, Part, training_batches
from uda.data.transforms import make_predict, make_train
from uda.distributed import Ranks
from uda.engine import Engine, EpochState, seed_everything
from uda.errors import UserError
from uda.evaluation import Accuracy, accuracy, selection_metrics
from uda.interruption import Interruption
from uda.methods import METHODS, Method, check_batch
from uda.models import Prediction, create_network, load_network, save_network
from uda.pauses import RunPauses
from uda.plan import compute_line, epoch_steps, plan, source_steps
from uda.report import ChoiceRecord, RoundRecord, RunReport
from uda.run_folder import RunFolder, RunLog
from uda.thresholds import portion_schedule
from uda.validators import VALIDATORS

# First numbers of every derived seed, so that no two uses of randomness share one.
INITIAL_WEIGHTS, SOURCE_STAGE, ROUND_STAGE, SOURCE_SHARE, ADAPTED_IMAGES, ADAPTATION_STAGE = range(6)
STAGES = {"source": SOURCE_STAGE, "round": ROUND_STAGE, "adaptation": ADAPTATION_STAGE}

#: Images in a batch of AdaBN's pass; part of the result, so not of `runtime`.
ADAPT_BATCH = 128


class Run:
    """One config's run, from wherever it stands to its end.

    Args:
        config: the validated config.
        log: receives plain lines.
        ranks: the processes of the job; rank 0 alone reads checkpoints and writes.
        interruption: asked at every step whether to save and leave.

    Raises:
        UserError: anything that the user can mend, before anything is written.
    """

    def __init__(
        self,
        config: Config,
        log: RunLog | None = None,
        ranks: Ranks | None = None,
        interruption: Interruption | None = None,
    ):
        self.config = config
        self.log = log or RunLog()
        self.ranks = ranks or Ranks()
        self.interruption = interruption or Interruption()
        self.ranks.check_same("the config", config.to_yaml(), _difference)
        self.folder = RunFolder(config, check=self.ranks.is_main)
        self.finished = bool(self.ranks.maximum([self.ranks.is_main and self.folder.finished])[0])
        if self.finished:
            return
        self._check_batches()
        self.domains = load_domains(config.data, config.seed, self.log, self.ranks)
        self._check_same_images()
        self.classes = self.domains.classes
        seed_everything(INITIAL_WEIGHTS, config.seed)
        network = create_network(config.model, len(self.classes), len(config.transforms.mean))
        self.engine = Engine(network, config.runtime, self.log if self.ranks.is_main else None, self.ranks)
        self.transforms = {
            "source": make_train(config.transforms, config.transforms.source),
            "target": make_train(config.transforms, config.transforms.target),
            "predict": make_predict(config.transforms),
        }
        if config.adaptation.strong is not None:
            self.transforms["strong"] = make_train(config.transforms, config.adaptation.strong)
        self.method: Method = METHODS[config.method](network, config)
        source_only = METHODS["source_only"]
        self.source_method = source_only(network, config.model_copy(update={"method_options": {}}))
        self.engine.attach(self.method)
        self.checkpoints = Checkpoints(self.folder.checkpoints, self.log, 60 * config.runtime.checkpoint_minutes)
        content = self.ranks.broadcast(self.checkpoints.read() if self.ranks.is_main else None)
        self.saved = None if content is None else checkpoint.parse(content, str(self.folder.checkpoints))
        if self.saved is not None and self.saved[1]["images"] != self._images:
            raise UserError(
                f"{self.folder.path} was begun with other images: then {self.saved[1]['images']}, now {self._images} "
                "(their number and a checksum of their names); bring them back, or choose another output=..."
            )
        if self.saved is None:
            if config.source.checkpoint and self.ranks.is_main:
                load_network(network, config.source.checkpoint, self.description)
            self.ranks.broadcast_network(network)
            self.ranks.broadcast_network(self.method.modules)
        self.progress = self.saved[0] if self.saved else Progress()
        predicted = self.saved[1]["predicted"] if self.saved else None
        self._predicted = None if predicted is None else predicted.numpy()
        self._try_out()
        self._started = time.monotonic()

    def _check_batches(self) -> None:
        """Raise UserError for a batch that is too small for the job, before hours of training lead to it."""
        batch, parts = self.config.self_training.batch, self.ranks.world * self.config.runtime.accumulate
        sizes = {"source.batch_size": self.config.source.batch_size}
        method = METHODS[self.config.method]
        check_batch(method, self.config.method, self.config)
        if self.config.runtime.accumulate > 1 and method.step is not Method.step:
            raise UserError(
                f"runtime.accumulate: method '{self.config.method}' updates several times a batch; set it to 1"
            )
        if method.adapts:
            domains = self.config.adaptation.batch
            sizes["adaptation.batch"] = domains.source + domains.target
            shares = {"adaptation.batch.source": domains.source, "adaptation.batch.target": domains.target}
            stage = self.config.adaptation
        else:
            shares = {"self_training.batch.unlabelled": batch.unlabelled} if method.rounds else {}
            stage = self.config.self_training
        # Losses are means over a domain's images, so each part needs as many of them as the others.
        least = 2 * parts if stage.forward == "separate" and stage.batch_norm == "train" else parts
        for key, size in shares.items():
            if size % parts or 0 < size < least:
                raise UserError(
                    f"{key}: {size} images cannot be dealt out evenly to {parts} (processes times runtime.accumulate)"
                    f"{', two at least to each' if least > parts else ''}; change it, or the number of processes"
                )
        if method.rounds:
            alone = self.config.self_training.on_empty == "continue"  # source images without any selected
            fixed = (batch.source or 0) + (0 if alone else batch.selected or 0)
            sizes["self_training.batch"] = batch.mixed or fixed
        for key, size in sizes.items():
            if parts > 1 and size < 2 * parts:
                raise UserError(
                    f"{key}: a batch of {size} images cannot be dealt out to {parts} (processes times "
                    "runtime.accumulate): each needs two at least; enlarge it, or start fewer processes"
                )
        if self.config.runtime.sync_batch_norm and stage.forward == "separate":
            raise UserError(
                f"runtime.sync_batch_norm: not with {'adaptation' if method.adapts else 'self_training'}.forward="
                "separate, where a process may have no image of one domain"
            )
        if not (method.adapts or self.config.trains_source or self.config.source.checkpoint):
            raise UserError(
                f"source.epochs: 0 leaves method '{self.config.method}' without a source model; train one, or name "
                "its weights by source.checkpoint"
            )

    def _check_same_images(self) -> None:
        domains = (self.domains.source, self.domains.target)
        ids = ("\n".join(domain.images.ids) for domain in domains)
        found = [
            f"{len(domain.images)} {role} images ({hashlib.sha256(names.encode()).hexdigest()[:8]})"
            for role, domain, names in zip(("source", "target"), domains, ids, strict=True)
        ]
        self._images = ", ".join(found)
        self.ranks.check_same("the data", self._images, lambda first, other: f"{first} / {other}")

    def _try_out(self) -> None:
        """Send two target images all the way to scores, so that what does not fit is found before hours of training."""
        first = self.domains.target.images.take(np.arange(min(2, len(self.domains.target.images))))
        try:
            prediction = self.engine.predict(self.predict_batches(first, 2, workers=0), len(first))
        except (AssertionError, RuntimeError) as error:
            reason = str(error).split("\n")[0]
            model, size = self.config.model.backbone, self.config.transforms.size
            raise UserError(f"model.backbone: {model} cannot take images of transforms.size={size}: {reason}") from None
        if self.method.adapts:
            self.adaptation_batches()
        if self.rounds:
            tensors = (prediction.features, prediction.logits, prediction.weight)
            target_scores(self.config.self_training.selector, *(torch.from_numpy(array) for array in tensors))

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
        """Run to the end. Returns the results; None when the run had been finished before, and but on rank 0."""
        if self.finished:
            self.log(f"{self.folder.path} is finished: its results.json is in there")
            return None
        self.report = self._begin() if self.ranks.is_main else None
        if self.saved:
            self._load_network(self.saved[1])
            self.log(f"resuming {self.folder.path} from {self.progress.describe()}")
            self.log(compute_line(self))
        else:
            self.log(plan(self))
        predicted = self._source_stage() if self.progress.stage == "source" else None
        while self.progress.stage == "round":
            predicted = self._round(predicted)
        if self.progress.stage == "adaptation":
            self._adaptation(predicted)
        return self._end() if self.ranks.is_main else None

    def _begin(self) -> RunReport:
        """Make or open the run's folder."""
        self.folder.create(sys.argv, self.engine.settings.model_dump() | {"processes": self.ranks.world})
        self.log.open(self.folder.path / "log.txt")
        return RunReport(
            self.folder.path,
            self.config,
            self.classes,
            self.domains.target.images,
            self.domains.target_labels,
            self.log,
            rounds_done=self.progress.epoch if self.progress.stage == "adaptation" else self.progress.round,
        )

    def _end(self) -> dict:
        """Write the final weights and the results."""
        self._save_weights("final")
        self.log(f"checkpoints took {self.checkpoints.seconds_spent:.1f} s since the last start")
        results = self.report.finish(self.seconds)
        if self.config.report.page:
            self.log(f"report: {self.folder.path / 'report.html'}")
        return results

    # Stages

    def _source_stage(self) -> Predicted | None:
        """Train and report the source model. Returns its prediction where round 0 may choose from it as it is."""
        settings = self.config.source
        started = time.monotonic()
        following = "round" if self.rounds else "adaptation" if self.method.adapts else "done"
        if not (self.config.trains_source or settings.checkpoint):  # no source model to save or to judge
            if self.ranks.is_main:
                self.report.source(None, {}, 0.0)
            self._save(Progress(following, seconds=self.seconds))
            return None
        plan = []
        if self.config.trains_source:
            plan = epoch_steps(len(self.source_batches(0, None)), settings.epochs, settings.steps)
            self._train(
                self.source_method,
                lambda epoch: self.source_batches(epoch, plan[epoch]),
                settings.optim,
                label="source",
                plan=plan,
                progress=self._progress("source"),
            )
        if self.ranks.is_main:
            self._save_weights("source")
        if settings.adapt_batch_norm:
            self.adapt_batch_norm()
        predicted = self.predict()
        if self.ranks.is_main:
            whole, seconds = predicted.whole, time.monotonic() - started
            self.report.source(self.accuracy(whole), self.validate(whole), seconds, sum(plan))
        self._save(Progress(following, seconds=self.seconds))
        return None if self._stage_settings.adapt_batch_norm else predicted

    def _round(self, predicted: Predicted | None) -> Predicted:
        """One round; `predicted` is the last round's, None after a start."""
        settings, index = self.config.self_training, self.progress.round
        started = time.monotonic()
        if self.saved and self.progress.begun:
            choice = Choice.from_state(self.saved[1]["choice"])
        else:
            choice = self._choose(index, predicted or self._adapted_predict())
        plan = epoch_steps(len(self.round_batches(choice, 0, None)), settings.epochs, settings.steps)
        scalars = self._train(
            self.method,
            lambda epoch: self.round_batches(choice, epoch, plan[epoch]),
            settings.optim,
            label=f"round {index}",
            plan=plan,
            progress=self._progress("round"),
            freeze_batch_norm=settings.batch_norm == "eval",
            extra=lambda: {"choice": choice.state()},
        )
        predicted = self._adapted_predict()
        if self.ranks.is_main:
            self._report_round(index, choice, predicted.whole, scalars["loss"], sum(plan), started)
        last = index + 1 == self.rounds
        self._save(Progress("done" if last else "round", index + 1, seconds=self.seconds))
        return predicted

    def _adaptation(self, predicted: Predicted | None) -> None:
        """One stage of source and target together; a report at the end of every interval, as of a round."""
        settings = self.config.adaptation
        plan = epoch_steps(settings.interval, 0, settings.steps)
        started = time.monotonic()
        if self.saved and self.progress.begun:
            self.method.prepared = {name: array.numpy() for name, array in self.saved[1]["prepared"].items()}

        def batches(interval: int) -> Batches:
            nonlocal predicted
            begun = self.progress.epoch == interval and self.progress.step
            if self.method.prepares and not begun:
                predicted = predicted or self._adapted_predict()
                found = self.method.prepare(predicted.whole) if self.ranks.is_main else {}
                self.method.prepared = self._of_rank_0(found)
            return self.adaptation_batches().window(settings.interval * interval, plan[interval])

        def report(interval: int, scalars: dict[str, float]) -> None:
            nonlocal predicted, started
            predicted = self._adapted_predict()
            if self.ranks.is_main:
                whole = predicted.whole
                self.report.round(
                    RoundRecord(
                        round=interval,
                        steps=sum(plan[: interval + 1]),
                        accuracy=self.accuracy(whole),
                        validators=self.validate(whole),
                        loss=scalars["loss"],
                        seconds=time.monotonic() - started,
                    )
                )
                if self.report.label_free_round(last=interval) == interval:
                    self._save_weights("label_free")
            started = time.monotonic()

        self._train(
            self.method,
            batches,
            settings.optim,
            label="adaptation",
            plan=plan,
            progress=self._progress("adaptation"),
            freeze_batch_norm=settings.batch_norm == "eval",
            extra=lambda: {"prepared": {name: torch.from_numpy(array) for name, array in self.method.prepared.items()}},
            after=report,
        )
        self._save(Progress("done", len(plan), seconds=self.seconds))

    @property
    def _stage_settings(self) -> SelfTrainingSettings | AdaptationSettings:
        return self.config.adaptation if self.method.adapts else self.config.self_training

    def _progress(self, stage: str) -> Callable[[float], float]:
        """A stage's share done to the run's: the source stage counts as a round, or by its steps."""
        if self.method.adapts:
            adaptation = self.config.adaptation.steps
            source = source_steps(self)
            before, length = (0, source) if stage == "source" else (source, adaptation)
            return lambda done: (before + done * length) / (source + adaptation)
        before = 0 if stage == "source" else 1 + self.progress.round
        return lambda done: (before + done) / (1 + self.rounds)

    def _choose(self, index: int, predicted: Predicted) -> Choice:
        choice = choose(predicted.mine, self.config, index, len(self.domains.target.images), self.ranks)
        if self.ranks.is_main:
            labels = self.domains.target_labels
            metrics = selection_metrics(choice.pseudo, predicted.whole, choice.reference, labels, self.classes)
            choice = replace(choice, metrics=metrics)
        if not choice.pseudo.count:
            self._nothing_selected(index, choice)
        return choice

    def _report_round(
        self, index: int, choice: Choice, prediction: Prediction, loss: float, steps: int, started: float
    ) -> None:
        self.report.round(
            RoundRecord(
                round=index,
                steps=steps,
                choice=ChoiceRecord(choice.portion, choice.pseudo, choice.reference, choice.metrics),
                accuracy=self.accuracy(prediction),
                validators=self.validate(prediction),
                loss=loss,
                seconds=time.monotonic() - started,
            )
        )
        if self.report.label_free_round(last=index) == index:
            self._save_weights("label_free")

    def _adapted_predict(self) -> Predicted:
        if self._stage_settings.adapt_batch_norm:
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
        plan: Sequence[int],
        progress: Callable[[float], float],
        freeze_batch_norm: bool = False,
        extra: Callable[[], dict[str, object]] = dict,
        after: Callable[[int, dict[str, float]], None] | None = None,
    ) -> dict[str, float]:
        """Train one stage from the step where it stands, with checkpoints on the way and one at its end.

        Args:
            method: what is trained.
            batches: gives the batches of an epoch.
            optim: the stage's optimiser.
            label: what the progress bar says.
            plan: steps of each epoch.
            progress: the stage's share done to the run's.
            freeze_batch_norm: BatchNorm in eval mode.
            extra: what checkpoints within the stage hold besides.
            after: called after every epoch with its number and scalars; then a checkpoint follows.
        """
        optimization = self.engine.optimization(method, optim, sum(plan))
        scalars: dict[str, float] = {}
        begin = EpochState()
        if self.progress.begun:
            saved = self.saved[1]
            optimization.load_state_dict(saved["optimization"])
            sums = {name: self._own(values) for name, values in saved["sums"].items()}
            scalars, begin = saved["scalars"], EpochState(self.progress.step, sums)
        self.saved = None
        stage = STAGES[self.progress.stage]

        def save(epoch: int, state: EpochState) -> None:
            progress = replace(self.progress, epoch=epoch, step=state.step, seconds=self.seconds)
            kept = {
                "optimization": optimization.state_dict(),
                "scalars": scalars,
                "sums": {name: self._of_every_rank(value.reshape(1)) for name, value in state.sums.items()},
            }
            self._save(progress, {**kept, **extra()})

        for epoch in range(self.progress.epoch, len(plan)):
            with self.interruption.deferred():
                pauses = RunPauses(self, begin.step, lambda state, epoch=epoch: save(epoch, state))
                scalars = self.engine.fit(
                    method,
                    batches(epoch).starting_at(begin.step),
                    optimization,
                    label=label if len(plan) == 1 else f"{label}, epoch {epoch + 1}/{len(plan)}",
                    steps=plan[epoch],
                    progress=progress,
                    freeze_batch_norm=freeze_batch_norm,
                    seed=(stage, self.config.seed, self.progress.round, epoch),
                    begin=begin,
                    pauses=pauses,
                )
                if after is not None:
                    if self.progress.step < plan[epoch]:  # what comes now may outlast a signal's grace
                        save(epoch, EpochState(plan[epoch], begin.sums))
                    after(epoch, scalars)
                begin = EpochState()
                due = pauses.due()  # asked in the last epoch too: all ranks leave together
                if due or after is not None or epoch + 1 == len(plan):
                    save(epoch + 1, begin)
                    pauses.leave()
        return scalars

    def _save(self, progress: Progress, state: dict | None = None) -> None:
        """Write a checkpoint; every rank calls it, rank 0 writes."""
        self._started = time.monotonic()
        self.progress = progress
        state = {
            "network": self.engine.network.state_dict(),
            "method": self.method.modules.state_dict(),
            "predicted": None if self._predicted is None else torch.from_numpy(self._predicted),
            **(state or {}),
        }
        state["images"] = self._images
        if self.ranks.world > 1 and progress.step:
            state["statistics"] = self._of_every_rank(_flat(self.engine.running_statistics()))
        if self.ranks.is_main:
            with self.interruption.deferred():
                self.checkpoints.save(progress, state)

    def _load_network(self, state: dict) -> None:
        """Within an epoch each rank has BatchNorm statistics of its own; for another number of ranks, their mean."""
        self.engine.network.load_state_dict(state["network"])
        self.method.modules.load_state_dict(state["method"])
        statistics = state.get("statistics")
        if statistics is None:
            return
        tensors = self.engine.running_statistics()
        mine = self._own(statistics).split([tensor.numel() for tensor in tensors])
        for tensor, values in zip(tensors, mine, strict=True):
            tensor.copy_(values.view_as(tensor))

    def _of_every_rank(self, mine: Tensor) -> Tensor:
        """Each rank's (n) numbers, (world, n) on rank 0."""
        return torch.from_numpy(self.ranks.gather_rows_to_main(mine.cpu().numpy()[None], self.ranks.world))

    def _own(self, of_every_rank: Tensor) -> Tensor:
        """This rank's row; the mean where another number of ranks saved."""
        same = len(of_every_rank) == self.ranks.world
        return (of_every_rank[self.ranks.rank] if same else of_every_rank.mean(0)).squeeze(0)

    def _of_rank_0(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Rank 0's arrays on every rank."""
        if self.ranks.world == 1:
            return arrays
        buffer = io.BytesIO()
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, buffer)
        content = self.ranks.broadcast(buffer.getvalue() if self.ranks.is_main else None)
        return {name: array.numpy() for name, array in torch.load(io.BytesIO(content), weights_only=True).items()}

    def _save_weights(self, name: str) -> None:
        save_network(self.engine.network, self.folder.checkpoints / f"{name}.safetensors", self.description)

    def source_batches(self, epoch: int, steps: int | None):
        """Batches of one epoch of the source stage."""
        return training_batches(
            [self._source_part(np.arange(len(self.domains.source.images)))],
            num_classes=len(self.classes),
            batch_size=self.config.source.batch_size,
            steps=steps,
            seed=(SOURCE_STAGE, self.config.seed, 0, epoch),
            **self._loading,
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
        if batch.unlabelled:
            images = self.domains.target.images
            every = np.arange(len(images))
            parts.append(Part(images, every, None, self.transforms["target"], domain=1, is_target=True))
            sizes.append(batch.unlabelled)
        return training_batches(
            parts,
            num_classes=len(self.classes),
            batch_size=sizes,
            steps=steps,
            seed=(ROUND_STAGE, self.config.seed, index, epoch),
            **self._loading,
        )

    def adaptation_batches(self) -> Batches:
        """Batches of the whole adaptation stage: labelled source images, and target images with a method's labels."""
        settings, images = self.config.adaptation, self.domains.target.images
        for name, size, domain in (
            ("source", settings.batch.source, self.domains.source),
            ("target", settings.batch.target, self.domains.target),
        ):
            if size > len(domain.images):
                raise UserError(
                    f"adaptation.batch.{name}: {size} images in a batch, but the {name} domain has only "
                    f"{len(domain.images)}; lower it"
                )
        every = np.arange(len(images))
        target = Part(
            images,
            every,
            self.method.prepared.get("labels"),
            self.transforms["target"],
            domain=1,
            is_target=True,
            strong=self.transforms["strong"] if self.method.views > 1 else None,
        )
        parts, sizes = [target], [settings.batch.target]
        if settings.batch.source:
            parts.insert(0, self._source_part(np.arange(len(self.domains.source.images))))
            sizes.insert(0, settings.batch.source)
        return training_batches(
            parts,
            num_classes=len(self.classes),
            batch_size=sizes,
            steps=settings.steps,
            seed=(ADAPTATION_STAGE, self.config.seed),
            **self._loading,
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

    @property
    def _loading(self) -> dict[str, object]:
        """How training batches are loaded and dealt out."""
        return {
            "workers": self.engine.workers(self.domains.source.images.in_memory),
            "pin_memory": self.engine.pin_memory,
            "rank": self.ranks.rank,
            "world": self.ranks.world,
            "accumulate": self.config.runtime.accumulate,
        }

    def predict(self) -> Predicted:
        """A predict pass over the target: every image once, in order, each process a share of them."""
        images = self.domains.target.images
        rows = self.ranks.rows(len(images))
        batches = self.predict_batches(images, self.engine.predict_batch_size, rows=rows)
        mine = self.engine.predict(batches, rows.stop - rows.start)
        features, logits = (
            self.ranks.gather_rows_to_main(array, len(images)) for array in (mine.features, mine.logits)
        )
        return Predicted(mine, Prediction(features, logits, mine.weight))

    def adapt_batch_norm(self) -> None:
        """BatchNorm statistics from random target images.

        They are drawn, and batched in random order, by the run's seed: in the order of class folders each batch would
        be of one class, and the order of the images would tell of their labels.
        """
        images = self.domains.target.images
        drawn = np.random.default_rng((ADAPTED_IMAGES, self.config.seed)).permutation(len(images))
        drawn = drawn[: self._stage_settings.adapt_images]
        # Whole batches alone: every batch counts alike, and a last one of a single image has no variance.
        size = min(ADAPT_BATCH, len(drawn))
        batches = drawn[: len(drawn) // size * size].reshape(-1, size)
        if self.config.runtime.sync_batch_norm and len(batches) >= self.ranks.world:
            batches = batches[: len(batches) // self.ranks.world * self.ranks.world]  # all meet in every forward pass
        if not self.config.runtime.sync_batch_norm or len(batches) >= self.ranks.world:
            batches = batches[self.ranks.rank :: self.ranks.world]
        self.engine.adapt_batch_norm(self.predict_batches(images.take(batches.reshape(-1)), size))

    def predict_batches(
        self, images: Images, batch_size: int, workers: int | None = None, rows: slice | None = None
    ) -> Batches:
        """Images as the network sees them in a predict pass, in order."""
        return loaders.predict_batches(
            images,
            self.transforms["predict"],
            batch_size=batch_size,
            workers=self.engine.workers(images.in_memory) if workers is None else workers,
            pin_memory=self.engine.pin_memory,
            rows=rows,
        )

    def accuracy(self, prediction: Prediction) -> Accuracy | None:
        """Oracle accuracy, None where no label is known."""
        labels = self.domains.target_labels
        return accuracy(prediction, labels, self.classes) if labels is not None else None

    def validate(self, prediction: Prediction) -> dict[str, float | None]:
        """Every label-free validator's score; those that compare do so with the prediction validated before."""
        scores = {name: validator(prediction, self._predicted) for name, validator in VALIDATORS.items()}
        self._predicted = prediction.logits.argmax(1)
        return {name: None if score is None else float(score) for name, score in scores.items()}


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]) if tensors else torch.empty(0)


def _difference(first: str, other: str) -> str:
    """The keys in which two configs, as YAML, differ."""
    return "; ".join(differing_keys(Config.model_validate(yaml.safe_load(other)), yaml.safe_load(first), skip=()))
