"""A segmentation run: source training, then rounds of predict -> choose pixels -> fit -> report."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uda.core.errors import UserError
from uda.data.domains import Target
from uda.data.images import Images
from uda.data.scenes import TargetMaps, load_scenes
from uda.models.segmentation import create_segmentation_network, describe_segmentation_network
from uda.segmentation.batches import SceneBatches
from uda.segmentation.evaluation import SceneFigures, SceneMeasures, choice_figures, measure, truth_of
from uda.segmentation.methods import SEGMENTATION_METHODS
from uda.segmentation.methods.base import SceneMethodSettings
from uda.segmentation.pseudo_labels import GridPrediction, SceneLabels, label_scenes, map_files, rare_classes
from uda.segmentation.report import SegmentationReport
from uda.segmentation.stages import ROUND_STAGE, SOURCE_STAGE
from uda.segmentation.terminal import summary_lines
from uda.selection.thresholds import portion_schedule
from uda.training.checkpoint import Progress
from uda.training.engine import seed_everything
from uda.training.inputs import InputImages, Inputs
from uda.training.records import REPORTS
from uda.training.session import Session, epoch_steps
from uda.training.stages import INITIAL_WEIGHTS


class SegmentationRun(Session):
    """A run from a source to a target domain. It resumes from the state of its run folder."""

    def prepare(self) -> None:
        config = self.config
        self.domains = load_scenes(config.data, config.seed, self.log, self.ranks)
        self.classes = self.domains.classes
        seed_everything(INITIAL_WEIGHTS, config.seed)
        network = create_segmentation_network(config.model, len(self.classes), len(config.transforms.mean))
        settings = SceneMethodSettings(config.method_options, config.source.label_smoothing, config.self_training)
        self.build(network, lambda network: SEGMENTATION_METHODS[config.method](network, settings))
        self.source_method = SEGMENTATION_METHODS["source_only"](
            network, SceneMethodSettings({}, config.source.label_smoothing)
        )
        self.batches = SceneBatches(config, self.domains, self.engine)
        if self.saved is None:
            self.progress = Progress(SOURCE_STAGE.name)
        if self.method.rounds:
            self.settle_rounds(ROUND_STAGE.name, self.rounds)
        self._try_out()

    @cached_property
    def inputs(self) -> Inputs:
        source, target = self.domains.source, self.domains.target
        roles = {
            "source": InputImages(source.images.ids, source),
            "target": InputImages(target.images.ids, self.domains.target_maps),
        }
        if self.domains.held_out is not None:
            roles["held-out"] = InputImages(self.domains.held_out.images.ids, self.domains.held_out_maps)
        return Inputs(self.classes, roles)

    @property
    def description(self) -> dict[str, object]:
        return describe_segmentation_network(self.config.model, self.classes)

    @property
    def rounds(self) -> int:
        """Number of self-training rounds."""
        return self.config.self_training.rounds if self.method.rounds else 0

    def _try_out(self) -> None:
        """Predict one target image, so that settings that do not fit fail before hours of training."""
        first = self.domains.target.images.take(np.arange(1))
        with self.engine.enough_memory("predict", "use a smaller model.backbone or transforms.resize"):
            next(
                iter(self.predictions(first, mirror=self.config.self_training.mirror and bool(self.rounds), workers=0))
            )
        if self.rounds:
            self.batches.check_rounds()

    @property
    def in_memory(self) -> bool:
        return self.domains.source.images.in_memory

    def new_report(self) -> SegmentationReport:
        return SegmentationReport(self.records, self.config, self.domains, self.log)

    @property
    def steps_before(self) -> int:
        return self.report.steps_before(self.progress)

    def plan(self) -> str:
        config, network = self.config, self.engine.network
        parameters = sum(p.numel() for p in network.parameters())
        held_out = self.domains.held_out
        beside = "" if held_out is None else f", {len(held_out.images):,} held-out images"
        height, width = config.transforms.crop
        lines = [
            f"run      {config.name}, seed {config.seed}, method {config.method} -> {self.folder.path}",
            f"data     {len(self.domains.source):,} source scenes, {len(self.domains.target.images):,} target images"
            f"{beside}, {len(self.classes)} classes",
            f"network  {config.model.backbone}, decoder {config.model.decoder}, features {network.weight.shape[1]} at "
            f"stride {network.stride}, {parameters:,} parameters",
            self.compute_line,
        ]
        if config.source.checkpoint:
            lines.append(f"source   checkpoint {config.source.checkpoint}")
        elif config.trains_source:
            steps = sum(self._source_steps())
            lines.append(f"source   {steps:,} steps of {config.source.batch_size} crops of {height} x {width}")
        if self.rounds:
            training, portion = config.self_training, config.self_training.portion
            last = portion_schedule(self.rounds - 1, portion.start, portion.step, portion.max)
            length = f"{training.steps:,} steps" if training.steps else f"{training.epochs} epochs"
            lines.append(
                f"rounds   {self.rounds}, selector {training.selector}, regularizer {training.regularizer}, "
                f"portion {portion.start:g} to {last:g}, {length} each of {training.batch.source} source + "
                f"{training.batch.target} target crops"
            )
        if config.ema.decay is not None:
            lines.append(f"teacher  {config.ema.told}")
        return "\n".join(lines)

    def summary(self, results: Mapping[str, Any]) -> list[str]:
        return summary_lines(results)

    # Stages

    def train_stages(self) -> None:
        if self.progress.stage == SOURCE_STAGE.name:
            self._source_stage()
        self.begin_teacher()
        while self.progress.stage == ROUND_STAGE.name:
            self._round()
        self.log(f"writing checkpoints took {self.checkpoints.seconds_spent:.1f} s since the last start")

    def _source_steps(self) -> list[int]:
        settings = self.config.source
        return epoch_steps(len(self.batches.source(0, None)), settings.epochs, settings.steps)

    def _source_stage(self) -> None:
        settings = self.config.source
        self.begin_part()
        steps = []
        if self.config.trains_source:
            steps = self._source_steps()
            self.train(
                self.source_method,
                lambda epoch: self.batches.source(epoch, steps[epoch]),
                settings.optim,
                label="source",
                steps=steps,
                progress=lambda done: done / (1 + self.rounds),
            )
        if self.ranks.is_main:
            self.save_weights("source")
        if settings.adapt_batch_norm:
            self.adapt_batch_norm()
        measures = self._measure()
        if self.ranks.is_main:
            self.report.source(measures, self.part_seconds, sum(steps))
        self.save(Progress(ROUND_STAGE.name if self.rounds else "done", seconds=self.seconds))

    def _round(self) -> None:
        settings, index = self.config.self_training, self.progress.round
        self.begin_part()
        if self.saved and self.progress.begun:
            kept = self.saved[1]["choice"]
            chosen = SceneLabels(self._map_files(index), kept["portion"], kept["figures"])
        else:
            chosen = self._label(index)
        maps, rare = chosen.maps(len(self.classes)), chosen.figures["rare"]
        steps = epoch_steps(len(self.batches.round(index, maps, rare, 0, None)), settings.epochs, settings.steps)
        scalars = self.train(
            self.method,
            lambda epoch: self.batches.round(index, maps, rare, epoch, steps[epoch]),
            settings.optim,
            label=f"round {index}",
            steps=steps,
            progress=lambda done: (1 + index + done) / (1 + self.rounds),
            freeze_batch_norm=settings.batch_norm == "eval",
            extra=lambda: {"choice": chosen.state()},
        )
        if settings.adapt_batch_norm:
            self.adapt_batch_norm()
        measures = self._measure()
        if self.ranks.is_main:
            self.report.round(index, chosen, measures, scalars["loss"], sum(steps), self.part_seconds)
            if self.report.label_free_round() == index:
                self.save_weights("label_free")
        last = index + 1 == self.rounds
        self.save(Progress("done" if last else ROUND_STAGE.name, index + 1, seconds=self.seconds))

    def _label(self, index: int) -> SceneLabels:
        """Choose the pixels of a round, with the teacher or the student as the config says."""
        settings, ema = self.config.self_training, self.config.ema
        images = self.domains.target.images
        self.predict_with(ema.pseudo_labels)
        try:
            if settings.adapt_batch_norm and not index:  # later rounds begin with the statistics of the report before
                self.adapt_batch_norm()
            weight = self.engine.predicts_with.weight.detach().float().cpu()
            chosen, quality, counts = label_scenes(
                lambda: self.predictions(images, settings.mirror),
                weight,
                self.config,
                index,
                self._map_files(index),
                self.ranks,
                self.domains.colors,
                truth_of(self.domains.target_maps),
            )
        finally:
            self.predict_with(ema.evaluated)
        rare = rare_classes(counts.best, settings.rare_classes.share) if settings.rare_classes.chance else []
        if not counts.selected.sum():
            self._nothing_selected(index, chosen)
        return replace(chosen, figures={**choice_figures(counts, quality, self.classes), "rare": rare})

    def _nothing_selected(self, index: int, chosen: SceneLabels) -> None:
        message = (
            f"round {index}: portion {chosen.portion:g} selects no pixel of any class; raise "
            "self_training.portion.start (portion * pixels of a class must reach 1)"
        )
        if self.config.self_training.on_empty == "stop":
            raise UserError(f"{message}, or set self_training.on_empty=continue")
        self.log(f"{message}; this round trains on source scenes only")

    # Pieces

    def _map_files(self, index: int) -> list[Path]:
        folder = (self.folder.path / REPORTS["rounds"].format(index)).parent / "pseudo_labels"
        return map_files(folder, self.domains.target.images.ids)

    def predictions(self, images: Images, mirror: bool = False, workers: int | None = None) -> Iterator[GridPrediction]:
        """The prediction of each of this process's images on the grid, in order.

        Raises UserError if mirror images are asked for and the grid of an image is not symmetric.
        """
        rows = self.ranks.rows(len(images))
        numbers = iter(range(rows.start, rows.stop))
        stride = self.engine.network.stride

        def views() -> Iterator[tuple[Tensor, bool]]:
            for batch in self.batches.predict(images, rows, workers):
                yield batch, False
                if mirror:
                    if batch.shape[3] % stride:
                        raise UserError(
                            f"self_training.mirror: an image is {batch.shape[3]} pixels wide, which is no multiple of "
                            f"the network's stride, {stride}; set transforms.resize to such a width"
                        )
                    yield batch.flip(3), True

        cure = f"lower runtime.predict_batch_size ({self.engine.predict_batch_size} now) or transforms.resize"
        plain = None
        for prediction, mirrored in self.engine.predict_each(views(), cure):
            found = [torch.from_numpy(maps) for maps in (prediction.features, prediction.logits)]
            if mirror and not mirrored:
                plain = found
                continue
            if mirrored:
                found, others = plain, [maps.flip(3) for maps in found]
            else:
                others = None
            for row in range(len(found[0])):
                yield GridPrediction(
                    next(numbers),
                    found[0][row],
                    found[1][row],
                    None if others is None else (others[0][row], others[1][row]),
                )

    def _measure(self) -> SceneMeasures:
        """Figures of the network on the target and on held-out images. All processes call it."""
        held_out = None
        if self.domains.held_out is not None:
            held_out = self._measure_on(self.domains.held_out, self.domains.held_out_maps)
        return SceneMeasures(self._measure_on(self.domains.target, self.domains.target_maps), held_out)

    def _measure_on(self, target: Target, maps: TargetMaps | None) -> SceneFigures:
        return measure(
            self.predictions(target.images),
            self._image_size(target.images),
            self.engine.network.stride,
            self.classes,
            maps,
            self.config.subsets,
            self.ranks,
        )

    def _image_size(self, images: Images) -> Callable[[int], tuple[int, int]]:
        """The size that an image has as input of the network, by its number."""
        resize = self.batches.predict_transform.resize
        return (lambda number: resize) if resize is not None else images.size

    def adapt_batch_norm(self) -> None:
        """Compute BatchNorm statistics from random target images."""
        with self.engine.enough_memory("BatchNorm statistics", "lower runtime.predict_batch_size"):
            self.engine.adapt_batch_norm(self.batches.statistics(self.config.self_training.adapt_images))
