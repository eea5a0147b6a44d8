"""An adaptation run: source training, then rounds of predict -> select -> fit -> report, or one stage of adaptation."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uda.adaptation.batches import ADAPT_BATCH, AdaptationBatches
from uda.adaptation.checks import check_batches
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.adaptation.partial import missing_note, named_classes, occurring_classes
from uda.adaptation.pseudo_labels import RoundLabels, label_target
from uda.adaptation.report import AdaptationReport, RoundRecord
from uda.adaptation.settings import AdaptationSettings, SelfTrainingSettings
from uda.adaptation.terminal import summary_lines
from uda.adaptation.work import Work, work_of
from uda.core.errors import UserError
from uda.data.domains import Domains, load_domains
from uda.data.features import features_of, without_views
from uda.data.images import Images
from uda.data.loaders import Batches
from uda.evaluation.accuracy import Accuracy, accuracy, selection_metrics
from uda.evaluation.validators import VALIDATORS
from uda.models.network import Prediction, describe_network, network_for
from uda.report.feature_map import MOST_POINTS, MapPart, check_installed, sample_rows, shares_of
from uda.selection.selectors import target_scores
from uda.selection.thresholds import portion_schedule
from uda.training.checkpoint import Progress
from uda.training.engine import seed_everything
from uda.training.inputs import InputImages, Inputs
from uda.training.pace import Trials, as_if_of, predict_pace, training_pace
from uda.training.records import SOURCE
from uda.training.session import Predicted, Session, epoch_steps
from uda.training.stages import INITIAL_WEIGHTS


class AdaptationRun(Session):
    """A run from a source to a target domain. It resumes from the state of its run folder."""

    report_class: type[AdaptationReport] = AdaptationReport
    _latest: Predicted | None = None

    def prepare(self) -> None:
        config = self.config
        check_batches(config, self.ranks.world)
        check_installed(config.report.map)
        self.domains = self._as_method_needs(self.load_images())
        self.classes = self.domains.classes
        data = config.data
        if ADAPTATION_METHODS[config.method].compares_two and max(len(data.sources), len(data.targets)) > 1:
            self.log(
                f"method '{config.method}' compares two domains: the first is all sources "
                f"({', '.join(data.sources)}), the second all targets ({', '.join(data.targets)})"
            )
        seed_everything(INITIAL_WEIGHTS, config.seed)
        network = network_for(self.domains.source.images, config.model, config.transforms, len(self.classes))
        self.build(network, lambda network: ADAPTATION_METHODS[config.method](network, config.method_settings()))
        if self.method.note is not None:
            self.log(self.method.note)
        self.source_method = ADAPTATION_METHODS["source_only"](network, config.method_settings("source_only"))
        self.batches = AdaptationBatches(config, self.domains, self.engine)
        if self.method.rounds:
            self.settle_rounds("round", self.rounds)
        saved = self.saved[1] if self.saved else {}
        #: The prediction that validators compare with, and the classes of a partial target that they use.
        self._predicted, self._validated = (
            None if saved.get(name) is None else saved[name].numpy() for name in ("predicted", "validated_classes")
        )
        self._target_classes = named_classes(config, self.classes)
        labelled = self.domains.labelled
        self._certain = () if labelled is None else np.unique(labelled.labels).tolist()
        if self._target_classes is not None and (odd := [k for k in self._certain if not self._target_classes[k]]):
            raise UserError(
                f"data.target_classes: '{self.classes[odd[0]]}' is missing, but data.target_labelled has it"
            )
        self._try_out()

    def load_images(self) -> Domains:
        """Load the images of all domains."""
        return load_domains(self.config.data, self.config.seed, self.log, self.ranks)

    def _as_method_needs(self, domains: Domains) -> Domains:
        """The domains with features of augmented views only if the method compares views.

        Raises UserError if the method needs such views and the bank has none.
        """
        features = features_of(domains.target.images)
        if not features:
            return domains
        method = self.config.method
        if ADAPTATION_METHODS[method].views > 1:
            views = [array.num_views for array in features]
            if not all(views):
                bank = self.config.data.features
                cure = f"make another bank: `uda bank --cfg CONFIG --views 4 --output {Path(bank)}_views`"
                if not all(array.made_by for array in features):
                    cure = "add them to your files of the target as the array `views` (images, views, width)"
                raise UserError(
                    f"data.features: method '{method}' compares two views of an image, but {bank} has no augmented "
                    f"views; {cure}, or choose another method"
                )
            if len(set(views)) > 1:
                raise UserError(
                    f"data.features: the target domains in {self.config.data.features} have different numbers of "
                    f"augmented views, {' and '.join(map(str, views))}; make one bank of all"
                )
        else:
            target = replace(domains.target, images=without_views(domains.target.images))
            domains = replace(domains, target=target)
        return replace(domains, source=replace(domains.source, images=without_views(domains.source.images)))

    @cached_property
    def inputs(self) -> Inputs:
        source, labelled = self.domains.source, self.domains.labelled
        roles = {"source": InputImages.of(source.images, source.labels)}
        roles["target"] = InputImages.of(self.domains.target.images, self.domains.target_labels)
        if labelled is not None:
            roles["labelled target"] = InputImages.of(labelled.images, labelled.labels)
        return Inputs(self.classes, roles)

    @property
    def description(self) -> dict[str, object]:
        return describe_network(self.config.model, self.classes, self.domains.source.images)

    def state(self) -> dict[str, object]:
        kept = {"predicted": self._predicted, "validated_classes": self._validated}
        return {name: None if array is None else torch.from_numpy(array) for name, array in kept.items()}

    def _try_out(self) -> None:
        """Compute the scores of two target images, so that settings that do not fit fail before hours of training."""
        first = self.domains.target.images.take(np.arange(min(2, len(self.domains.target.images))))
        try:
            prediction = self.engine.predict(self.batches.predict(first, 2, workers=0), len(first))
        except (AssertionError, RuntimeError) as error:
            if self.engine.network.on_features:
                raise
            reason = str(error).split("\n")[0]
            model, size = self.config.model.backbone, self.config.transforms.size
            raise UserError(f"model.backbone: {model} cannot take images of transforms.size={size}: {reason}") from None
        if self.engine.device.type != "cpu":
            self._try_out_batch()
        if self.config.trains_source:
            self.batches.check_source()
        if self.method.adapts:
            self._adaptation_batches()
        if self.rounds:
            self.batches.check_rounds()
            tensors = (prediction.features, prediction.logits, prediction.weight)
            for selector in self.config.self_training.selectors:
                target_scores(selector, *(torch.from_numpy(array) for array in tensors))

    def _try_out_batch(self) -> None:
        """Predict one full batch, so that a lack of memory shows now and not after hours of training."""
        images = self.domains.target.images
        size = min(self.engine.predict_batch_size, len(images))
        batch = images.take(np.resize(np.arange(min(2, size)), size))  # two images are read quickly
        self.engine.predict(self.batches.predict(batch, size, workers=0), size)

    @property
    def rounds(self) -> int:
        """Number of self-training rounds."""
        return self.config.self_training.rounds if self.method.rounds else 0

    @property
    def in_memory(self) -> bool:
        return self.domains.source.images.in_memory

    def new_report(self) -> AdaptationReport:
        source = np.bincount(self.domains.source.labels, minlength=len(self.classes))
        images, labels = self.domains.target.images, self.domains.target_labels
        domain = self.domains.target.domain - len(self.config.data.sources)
        domain = np.broadcast_to(np.asarray(domain, np.int64), len(images))
        return self.report_class(self.records, self.config, self.classes, source, images, labels, self.log, domain)

    def train_stages(self) -> None:
        predicted = self._first_models()
        self.begin_teacher()
        while self.progress.stage == "round":
            predicted = self._round(predicted)
        if self.progress.stage == "adaptation":
            predicted = self._adaptation(predicted)
        if self.config.report.page and self.config.report.map != "none":
            self._map(predicted)
        self.log(f"writing checkpoints took {self.checkpoints.seconds_spent:.1f} s since the last start")

    def plan(self) -> str:
        config, network, work = self.config, self.engine.network, self.work
        source, target = self.domains.source.images, self.domains.target.images
        parameters = sum(p.numel() for p in network.parameters())
        if config.source.checkpoint:
            start = f"checkpoint {config.source.checkpoint}"
        elif not config.trains_source:
            start = "no source stage"
        else:
            start = f"{work.source_steps:,} steps of {config.source.batch_size}"
        lines = [
            f"run      {config.name}, seed {config.seed}, method {config.method} -> {self.folder.path}",
            f"data     {_images(len(source), 'labelled source', config.data.sources)}, "
            f"{_images(len(target), 'target', config.data.targets)}{_labels_known(self.domains)}, "
            f"{len(self.classes)} classes",
            f"network  {self._input()}, features {network.weight.shape[1]}, {parameters:,} parameters",
            self.compute_line,
            f"source   {start}",
        ]
        if config.model.classifier:
            lines.insert(3, f"vectors  {config.model.classifier}, the classifier's first weights")
        if self.domains.labelled is not None:
            lines.append(
                f"labelled {len(self.domains.labelled.images):,} target images with labels, "
                f"{config.data.labelled_per_batch} in every batch"
            )
        if self.rounds:
            training, portion = config.self_training, config.self_training.portion
            last = portion_schedule(self.rounds - 1, portion.start, portion.step, portion.max)
            epochs = f"{training.epochs} epoch{'s' if training.epochs > 1 else ''}"
            length = f"{training.steps:,} steps" if training.steps else epochs
            names = ", ".join(training.selectors)
            selector = f"for each of the selectors {names}" if config.branches else f"selector {names}"
            lines.append(
                f"rounds   {self.rounds}, {selector}, regularizer {training.regularizer}, "
                f"portion {portion.start:g} to {last:g}, {length} each"
            )
        if self.method.adapts:
            adaptation = config.adaptation
            batch = adaptation.batch
            source_images = f"{batch.source} source + " if batch.source else ""
            lines.append(
                f"adapts   {adaptation.steps:,} steps of {source_images}{batch.target} target images, a report "
                f"every {adaptation.interval:,}"
            )
        if config.ema.decay is not None:
            lines.append(f"teacher  {config.ema.told}")
        return "\n".join(lines)

    def _input(self) -> str:
        """The backbone, or the features that the network takes: `features of width 1,280 of banks/pacs`."""
        features = features_of(self.domains.source.images)
        if not features:
            return self.config.model.backbone
        return f"features of width {features[0].width:,} of {self.config.data.features}"

    @property
    def steps_before(self) -> int:
        source, reports = self.records.get(SOURCE), self.records.reports()
        if self.progress.stage == "source" or source is None:
            return 0
        later = [record["steps"] for record in reports]
        if self.method.adapts:
            later = later[-1:] if self.progress.stage == "done" else []
        return source["steps"] + sum(later)

    @property
    def work(self) -> Work:
        """The work of the run on its images."""
        parts = self.ranks.world * self.config.runtime.accumulate
        return work_of(self.config, len(self.domains.source.images), len(self.domains.target.images), parts)

    def cost(self, loads: bool = True) -> str:
        """Lines with the cost of the whole run, estimated from the pace of a few batches; see `Trials.cost`.

        Every process of a job calls it. The run cannot be used afterwards, because the network is trained.
        """
        return self.trials().cost(self.engine, self.workers, loads)

    def trials(self) -> Trials:
        """The pace of a few steps of every stage and of predict batches."""
        engine, config, work = self.engine, self.config, self.work
        workers = self.workers
        stages = {}
        predict, sample = predict_pace(engine, self.domains.target.images, self.batches.transforms["predict"])
        if work.source_steps:
            optimization = engine.optimization(self.source_method, config.source.optim, work.source_steps)
            batches = self.batches.source(0, None)
            with engine.enough_memory("source", self.smaller_step(self.source_method, "source")):
                pace = training_pace(engine, self.source_method, optimization, batches, workers)
            stages["source"] = work.source_steps, pace
        if work.later_steps:
            stage = config.adaptation if self.method.adapts else config.self_training
            batches = self.trial_batches(sample)
            optimization = engine.optimization(self.method, stage.optim, len(batches))
            frozen = stage.batch_norm == "eval"
            name = "adapting" if self.method.adapts else "rounds"
            with engine.enough_memory(
                name, self.smaller_step(self.method, "adaptation" if self.method.adapts else "round")
            ):
                pace = training_pace(engine, self.method, optimization, batches, workers, frozen)
            stages[name] = work.later_steps, pace
        return Trials(stages, work.predicted, predict)

    def summary(self, results: Mapping[str, Any]) -> list[str]:
        return summary_lines(results)

    # Stages

    def _first_models(self) -> Predicted | None:
        """Report the untouched network and the source model, if this is still to be done. See `_source_stage`."""
        if self.config.model.classifier and self.saved is None:
            self._zero_shot()
        return self._source_stage() if self.progress.stage == "source" else None

    def _zero_shot(self) -> None:
        """Predict and report the target with the class vectors of `model.classifier`, before any training."""
        self.begin_part()
        network = self.engine.network
        if self.untouched is not None:  # the run starts from other weights
            start = {name: value.clone() for name, value in network.state_dict().items()}
            network.load_state_dict(self.untouched)
            self.ranks.broadcast_network(network)
        predicted = self.predict()
        if self.untouched is not None:
            network.load_state_dict(start)
            self.untouched = None
        if self.ranks.is_main:
            whole = predicted.whole
            self.report.zero_shot(whole, self.accuracy(whole), self.validate(whole), self.part_seconds)
        self.save(Progress("source", seconds=self.seconds))

    def _source_stage(self) -> Predicted | None:
        """Train and report the source model. Returns its prediction, or None if round 0 needs another one."""
        settings = self.config.source
        self.begin_part()
        following = "round" if self.rounds else "adaptation" if self.method.adapts else "done"
        if not (self.config.trains_source or settings.checkpoint):  # no source model to save or evaluate
            if self.ranks.is_main:
                self.report.source(None, None, {}, 0.0)
            self.save(Progress(following, seconds=self.seconds))
            return None
        steps = []
        if self.config.trains_source:
            steps = epoch_steps(len(self.batches.source(0, None)), settings.epochs, settings.steps)
            self.train(
                self.source_method,
                lambda epoch: self.batches.source(epoch, steps[epoch]),
                settings.optim,
                label="source",
                steps=steps,
                progress=self._progress("source"),
            )
        if self.ranks.is_main:
            self.save_weights("source")
        if settings.adapt_batch_norm:
            self.adapt_batch_norm()
        predicted = self.predict()
        if self.ranks.is_main:
            whole, seconds = predicted.whole, self.part_seconds
            self.report.source(whole, self.accuracy(whole), self.validate(whole), seconds, sum(steps))
            self.report.target(whole)
        self.save(Progress(following, seconds=self.seconds))
        return None if self._stage_settings.adapt_batch_norm else predicted

    def _round(self, predicted: Predicted | None) -> Predicted:
        """Run one round. `predicted` is the prediction of the round before, None after a start of the program."""
        settings, index = self.config.self_training, self.progress.round
        self.begin_part()
        if self.saved and self.progress.begun:
            chosen = RoundLabels.from_state(self.saved[1]["choice"])
        else:
            chosen = self._label_target(index, self._for_labels(predicted))
        steps = epoch_steps(len(self.batches.round(index, chosen, 0, None)), settings.epochs, settings.steps)
        scalars = self.train(
            self.method,
            lambda epoch: self.batches.round(index, chosen, epoch, steps[epoch]),
            settings.optim,
            label=f"round {index}",
            steps=steps,
            progress=self._progress("round"),
            freeze_batch_norm=settings.batch_norm == "eval",
            extra=lambda: {"choice": chosen.state()},
        )
        predicted = self._adapted_predict()
        if self.ranks.is_main:
            self._report_round(index, chosen, predicted.whole, scalars["loss"], sum(steps))
        last = index + 1 == self.rounds
        self.save(Progress("done" if last else "round", index + 1, seconds=self.seconds))
        return predicted

    def _adaptation(self, predicted: Predicted | None) -> Predicted | None:
        """Run the adaptation stage, with a report at the end of every interval. Returns the last prediction."""
        settings = self.config.adaptation
        steps = epoch_steps(settings.interval, 0, settings.steps)
        self.begin_part()
        if self.saved and self.progress.begun:
            self.method.prepared = {name: array.numpy() for name, array in self.saved[1]["prepared"].items()}

        def batches(interval: int) -> Batches:
            nonlocal predicted
            begun = self.progress.epoch == interval and self.progress.step
            if self.method.prepares and not begun:
                labelling = self._for_labels(predicted)
                found = self.method.prepare(labelling.whole, interval) if self.ranks.is_main else {}
                self.method.prepared = self.ranks.broadcast_arrays(found)
            return self._adaptation_batches().window(settings.interval * interval, steps[interval])

        def report(interval: int, scalars: dict[str, float]) -> None:
            nonlocal predicted
            predicted = self._adapted_predict()
            if self.ranks.is_main:
                whole = predicted.whole
                self.report.round(
                    RoundRecord(
                        round=interval,
                        steps=sum(steps[: interval + 1]),
                        prediction=whole,
                        accuracy=self.accuracy(whole),
                        validators=self.validate(whole),
                        loss=scalars["loss"],
                        seconds=self.part_seconds,
                    )
                )
                self.report.target(whole)
                if self.report.label_free_round() == interval:
                    self.save_weights("label_free")
            self.begin_part()

        self.train(
            self.method,
            batches,
            settings.optim,
            label="adaptation",
            steps=steps,
            progress=self._progress("adaptation"),
            freeze_batch_norm=settings.batch_norm == "eval",
            extra=lambda: {"prepared": {name: torch.from_numpy(array) for name, array in self.method.prepared.items()}},
            after=report,
        )
        self.save(Progress("done", len(steps), seconds=self.seconds))
        return predicted

    def _map(self, predicted: Predicted | None) -> None:
        """Predict a sample of the source, and write the map of features. `predicted`: the target's last prediction."""
        source, target = self.domains.source, self.domains.target
        counts = [len(source.images), len(target.images)]
        shares = shares_of(counts, MOST_POINTS)
        rows, others = (sample_rows(count, share) for count, share in zip(counts, shares, strict=True))
        transform = self.batches.transforms["predict"]
        of_source = self.predict_images(source.images.take(rows), transform)
        if predicted is None:  # the run was resumed after its last stage
            of_target = self.predict_images(target.images.take(others), transform).whole
        elif self.ranks.is_main:
            whole = predicted.whole
            of_target = Prediction(whole.features[others], whole.logits[others], whole.weight)
        if self.ranks.is_main:
            domain = np.broadcast_to(np.asarray(source.domain, np.int64), counts[0])[rows]
            paths = [source.images.ids[row] for row in rows]
            part = MapPart(of_source.whole, paths, source.labels[rows], domain)
            self.report.write_map(part, others, of_target)

    @property
    def _stage_settings(self) -> SelfTrainingSettings | AdaptationSettings:
        return self.config.adaptation if self.method.adapts else self.config.self_training

    def _adaptation_batches(self) -> Batches:
        return self.batches.adaptation(self.method.prepared.get("labels"), self.method.views)

    def trial_batches(self, sample: Prediction) -> Batches:
        """Batches of the first round, or of the adaptation, if all target images had the predictions of `sample`.

        If the round would select no image, its batches hold source images only.
        """
        count = len(self.domains.target.images)
        if self.method.adapts:
            if self.method.prepares:
                settings = self.config.adaptation
                last = math.ceil(settings.steps / settings.interval) - 1  # the first intervals may have no labels
                found = self.method.prepare(as_if_of(sample, count), last) if self.ranks.is_main else {}
                self.method.prepared = self.ranks.broadcast_arrays(found)
            return self._adaptation_batches()
        rows = self.ranks.rows(count)
        mine = as_if_of(sample, rows.stop - rows.start)
        config = next(iter(self.config.branches.values()), self.config)
        return self.batches.round(0, label_target(mine, config, 0, count, self.ranks, self._target_classes), 0, None)

    def _progress(self, stage: str) -> Callable[[float], float]:
        """Maps the done share of a stage to that of the run. The source stage counts as one round, or by its steps."""
        if self.method.adapts:
            adaptation = self.config.adaptation.steps
            source = self.work.source_steps
            before, length = (0, source) if stage == "source" else (source, adaptation)
            return lambda done: (before + done * length) / (source + adaptation)
        before = 0 if stage == "source" else 1 + self.progress.round
        return lambda done: (before + done) / (1 + self.rounds)

    def _label_target(self, index: int, predicted: Predicted) -> RoundLabels:
        count = len(self.domains.target.images)
        target_classes = self._target_classes
        if self.config.data.partial and target_classes is None:
            target_classes = occurring_classes(predicted.mine.logits, self.ranks, self._certain)
            self.log(f"round {index}: {missing_note(target_classes, self.classes)}")
        chosen = label_target(predicted.mine, self.config, index, count, self.ranks, target_classes)
        if self.ranks.is_main:
            labels = self.domains.target_labels
            metrics = selection_metrics(chosen.pseudo, predicted.whole, chosen.reference, labels, self.classes)
            chosen = replace(chosen, metrics=metrics)
        if not chosen.pseudo.count:
            self._nothing_selected(index, chosen)
        return chosen

    def _report_round(self, index: int, chosen: RoundLabels, prediction: Prediction, loss: float, steps: int) -> None:
        self.report.round(
            RoundRecord(
                round=index,
                steps=steps,
                labels=chosen,
                prediction=prediction,
                accuracy=self.accuracy(prediction),
                validators=self.validate(prediction),
                loss=loss,
                seconds=self.part_seconds,
            )
        )
        self.report.target(prediction)
        if self.report.label_free_round() == index:
            self.save_weights("label_free")

    def _adapted_predict(self) -> Predicted:
        if self._stage_settings.adapt_batch_norm:
            self.adapt_batch_norm()
        return self.predict()

    def _for_labels(self, predicted: Predicted | None) -> Predicted:
        """The prediction that pseudo-labels come from. `predicted`: the one that was reported last, if it is there."""
        ema = self.config.ema
        if ema.decay is None or ema.pseudo_labels == ema.evaluated:
            return predicted or self._adapted_predict()
        self.predict_with(ema.pseudo_labels)
        try:
            return self._adapted_predict()
        finally:
            self.predict_with(ema.evaluated)

    def _nothing_selected(self, index: int, chosen: RoundLabels) -> None:
        message = (
            f"round {index}: portion {chosen.portion:g} selects no target image of any class; "
            "raise self_training.portion.start (portion * images of a class must reach 1)"
        )
        if self.config.self_training.on_empty == "stop":
            raise UserError(f"{message}, or set self_training.on_empty=continue")
        self.log(f"{message}; this round trains on source images only")

    # Pieces

    def predict(self) -> Predicted:
        """Predict all target images."""
        self._latest = None  # frees its memory
        self._latest = self.predict_images(self.domains.target.images, self.batches.transforms["predict"])
        return self._latest

    def final_prediction(self) -> tuple[Images, Prediction]:
        # A run that resumes after its last stage has not predicted yet.
        return self.domains.target.images, (self._latest or self.predict()).whole

    def adapt_batch_norm(self) -> None:
        """Compute BatchNorm statistics from random target images."""
        stage = "adaptation" if self.method.adapts else "self_training"
        smaller = "" if self.engine.network.on_features else ", or lower transforms.size"
        cure = f"set {stage}.adapt_images below {ADAPT_BATCH}, the batch size{smaller}"
        with self.engine.enough_memory("BatchNorm statistics", cure):
            self.engine.adapt_batch_norm(self.batches.statistics(self._stage_settings.adapt_images))

    def accuracy(self, prediction: Prediction) -> Accuracy | None:
        """Oracle accuracy; None if no target label is known."""
        labels = self.domains.target_labels
        return accuracy(prediction, labels, self.classes) if labels is not None else None

    def validate(self, prediction: Prediction) -> dict[str, float | None]:
        """Score of every label-free validator. Some compare the prediction with the one validated before.

        For a partial target the validators use only its classes. The config names them, or they are estimated from the
        first prediction that is validated. They stay the same, so that the scores of all rounds are comparable.
        """
        if self.config.data.partial:
            if self._validated is None:
                named = self._target_classes
                self._validated = named
                if named is None:
                    self._validated = occurring_classes(prediction.logits, certain=self._certain)
            prediction = prediction.of_classes(self._validated)
        scores = {name: validator(prediction, self._predicted) for name, validator in VALIDATORS.items()}
        self._predicted = prediction.logits.argmax(1)
        return {name: None if score is None else float(score) for name, score in scores.items()}


def _labels_known(domains: Domains) -> str:
    """How many target images have a known label, if not all. Accuracies count only these."""
    labels, count = domains.target_labels, len(domains.target.images)
    if labels is None:
        return " without labels"
    return f" ({labels.count:,} with labels, which measure accuracy)" if labels.count < count else ""


def _images(count: int, what: str, domains: Sequence[str]) -> str:
    return f"{count:,} {what} images" + (f" of {len(domains)} domains" if len(domains) > 1 else "")
