"""The batches of each stage of a run: their images, labels and transforms."""

import numpy as np

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.pseudo_labels import RoundLabels
from uda.adaptation.stages import ADAPTATION_STAGE, ADAPTED_IMAGES, ROUND_STAGE, SOURCE_SHARE, SOURCE_STAGE
from uda.core.errors import UserError
from uda.data import loaders
from uda.data.domains import Domains
from uda.data.features import AugmentedFeatures, PlainFeatures, features_of
from uda.data.images import Images
from uda.data.loaders import Batches, Part, training_batches
from uda.data.transforms import Transform, make_predict, make_train
from uda.selection.thresholds import portion_schedule
from uda.training.engine import Engine

#: Images per batch of AdaBN's pass. It changes the result, so it is not a setting of `runtime`.
ADAPT_BATCH = 128


class AdaptationBatches:
    """The batches of a run from a source to a target domain."""

    def __init__(self, config: AdaptationConfig, domains: Domains, engine: Engine):
        self.config = config
        self.domains = domains
        self.engine = engine
        self.ranks = engine.ranks
        self.transforms = _transforms(config, domains)

    def source(self, epoch: int, steps: int | None) -> Batches:
        """Batches of one epoch of the source stage."""
        return training_batches(
            [self._source_part(np.arange(len(self.domains.source.images)))],
            beside=self._labelled_part,
            num_classes=len(self.domains.classes),
            batch_size=self.config.source.batch_size,
            steps=steps,
            seed=(SOURCE_STAGE.number, self.config.seed, 0, epoch),
            **self._loading,
        )

    def check_source(self) -> None:
        """Raise UserError if a batch of the source stage needs more images than there are."""
        self._check_fits("source.batch_size", self.config.source.batch_size, "source")

    def check_rounds(self) -> None:
        """Raise UserError if a batch of a round needs more images of a domain than there are."""
        batch = self.config.self_training.batch
        self._check_fits("self_training.batch.source", batch.source or 0, "source")
        self._check_fits("self_training.batch.unlabelled", batch.unlabelled, "target")

    def round(self, index: int, pseudo: RoundLabels, epoch: int, steps: int | None) -> Batches:
        """Batches of one epoch of a round: the round's share of the source, and the selected target images."""
        settings = self.config.self_training
        drawn = self.source_share(index)
        selected = pseudo.selected
        parts = [self._source_part(drawn)]
        if len(selected):
            parts.append(self._target_part(selected, pseudo.labels_of(selected)))
        batch = settings.batch
        sizes = batch.mixed or [batch.source, batch.selected][: len(parts)]
        if batch.unlabelled:
            parts.append(self._target_part(np.arange(len(self.domains.target.images)), None))
            sizes.append(batch.unlabelled)
        return training_batches(
            parts,
            beside=self._labelled_part,
            num_classes=len(self.domains.classes),
            batch_size=sizes,
            steps=steps,
            seed=(ROUND_STAGE.number, self.config.seed, index, epoch),
            **self._loading,
        )

    def adaptation(self, labels: np.ndarray | None, views: int) -> Batches:
        """Batches of the whole adaptation stage: labelled source images, and target images with a method's labels.

        Args:
            labels: class numbers (N,) or distributions (N, K) of the target images; None: no labels.
            views: 1 for the plain view, 2 for a plain and a strong one.

        Raises:
            UserError: a batch needs more images of a domain than there are.
        """
        settings = self.config.adaptation
        self._check_fits("adaptation.batch.source", settings.batch.source, "source")
        self._check_fits("adaptation.batch.target", settings.batch.target, "target")
        strong = self.transforms["strong"] if views > 1 else None
        target = self._target_part(np.arange(len(self.domains.target.images)), labels, strong)
        parts, sizes = [target], [settings.batch.target]
        if settings.batch.source:
            parts.insert(0, self._source_part(np.arange(len(self.domains.source.images))))
            sizes.insert(0, settings.batch.source)
        return training_batches(
            parts,
            beside=self._labelled_part,
            num_classes=len(self.domains.classes),
            batch_size=sizes,
            steps=settings.steps,
            seed=(ADAPTATION_STAGE.number, self.config.seed),
            **self._loading,
        )

    def source_share(self, index: int) -> np.ndarray:
        """Indices of a round's source images, ascending: a random share of all. Each round draws new ones."""
        share = self.config.self_training.source_share
        count = len(self.domains.source.images)
        drawn = max(1, round(portion_schedule(index, share.start, share.step, share.max) * count))
        generator = np.random.default_rng((SOURCE_SHARE, self.config.seed, index))
        return np.sort(generator.choice(count, drawn, replace=False))

    def _source_part(self, indices: np.ndarray) -> Part:
        source, transform = self.domains.source, self.transforms["source"]
        domain = _of(source.domain, indices)
        return Part(source.images, indices, source.labels[indices], transform, domain, is_target=False)

    def _target_part(self, indices: np.ndarray, labels: np.ndarray | None, strong: Transform | None = None) -> Part:
        target, transform = self.domains.target, self.transforms["target"]
        return Part(
            target.images, indices, labels, transform, _of(target.domain, indices), is_target=True, strong=strong
        )

    @property
    def _labelled_part(self) -> tuple[Part, int] | None:
        """The labelled target images, and the number of them in every batch."""
        labelled = self.domains.labelled
        if labelled is None:
            return None
        every, transform = np.arange(len(labelled.images)), self.transforms["target"]
        part = Part(labelled.images, every, labelled.labels, transform, labelled.domain, is_target=True, annotated=True)
        return part, self.config.data.labelled_per_batch

    @property
    def _loading(self) -> dict[str, object]:
        """How training batches are loaded and divided among processes."""
        return {
            "workers": self.engine.workers(self.domains.source.images.in_memory),
            "rank": self.ranks.rank,
            "world": self.ranks.world,
            "accumulate": self.config.runtime.accumulate,
        }

    def statistics(self, count: int) -> Batches:
        """This process's share of `count` random target images, in whole batches, for BatchNorm statistics.

        The run's seed decides which images are drawn and their order. The order must be random: in the order of class
        folders each batch would hold one class, and so depend on the target labels.
        """
        images = self.domains.target.images
        drawn = np.random.default_rng((ADAPTED_IMAGES, self.config.seed)).permutation(len(images))
        drawn = drawn[:count]
        # Only whole batches: all batches have equal weight, and a last batch of one image has no variance.
        size = min(ADAPT_BATCH, len(drawn))
        batches = drawn[: len(drawn) // size * size].reshape(-1, size)
        if self.config.runtime.sync_batch_norm and len(batches) >= self.ranks.world:
            # All processes must take part in every forward pass.
            batches = batches[: len(batches) // self.ranks.world * self.ranks.world]
        if not self.config.runtime.sync_batch_norm or len(batches) >= self.ranks.world:
            batches = batches[self.ranks.rank :: self.ranks.world]
        return self.predict(images.take(batches.reshape(-1)), size)

    def predict(self, images: Images, batch_size: int, workers: int | None = None) -> Batches:
        """Batches of a predict pass, in the order of the images."""
        return loaders.predict_batches(
            images,
            self.transforms["predict"],
            batch_size=batch_size,
            workers=self.engine.workers(images.in_memory) if workers is None else workers,
        )

    def _check_fits(self, key: str, size: int, role: str) -> None:
        """Raise UserError if a batch needs more images of a domain than there are."""
        count = len(getattr(self.domains, role).images)
        if size > count:
            raise UserError(f"{key}: {size} images in a batch, but the {role} domain has only {count}; lower it")


def _transforms(config: AdaptationConfig, domains: Domains) -> dict[str, Transform]:
    """The transforms of source images, of target images, of a second, strong view, and of predicting."""
    if features := features_of(domains.source.images):
        plain, strong = PlainFeatures(features[0].width), AugmentedFeatures(features[0].width)
        return {"source": plain, "target": plain, "predict": plain, "strong": strong}
    transforms = {
        "source": make_train(config.transforms, config.transforms.source),
        "target": make_train(config.transforms, config.transforms.target),
        "predict": make_predict(config.transforms),
    }
    if config.adaptation.strong is not None:
        transforms["strong"] = make_train(config.transforms, config.adaptation.strong)
    return transforms


def _of(domain: int | np.ndarray, indices: np.ndarray) -> int | np.ndarray:
    """Domain numbers of the images at `indices`."""
    return domain if isinstance(domain, int) else domain[indices]
