"""The batches of each stage of a segmentation."""

from collections.abc import Sequence

import numpy as np

from uda.core.errors import UserError
from uda.data.images import Images
from uda.data.label_maps import LabelMaps
from uda.data.loaders import Batches
from uda.data.scene_batches import RareClassCentre, ScenePart, scene_batches, scene_predict_batches
from uda.data.scene_transforms import ScenePredict, SceneTrain
from uda.data.scenes import SceneDomains
from uda.segmentation.config import SegmentationConfig
from uda.segmentation.stages import ADAPTED_IMAGES, ROUND_STAGE, SOURCE_SHARE, SOURCE_STAGE
from uda.selection.thresholds import portion_schedule
from uda.training.engine import Engine


class SceneBatches:
    """The batches of a run from a source to a target domain."""

    def __init__(self, config: SegmentationConfig, domains: SceneDomains, engine: Engine):
        self.config = config
        self.domains = domains
        self.engine = engine
        transforms = config.transforms
        self.transforms = {name: SceneTrain(transforms, getattr(transforms, name)) for name in ("source", "target")}
        self.predict_transform = ScenePredict(transforms, transforms.target.resize)

    def source(self, epoch: int, steps: int | None) -> Batches:
        """Batches of one epoch of the source stage."""
        part = self._source(np.arange(len(self.domains.source)))
        seed = (SOURCE_STAGE.number, self.config.seed, 0, epoch)
        return scene_batches([part], batch_size=self.config.source.batch_size, steps=steps, seed=seed, **self._loading)

    def round(self, index: int, maps: LabelMaps, rare: Sequence[int], epoch: int, steps: int | None) -> Batches:
        """Batches of one epoch of a round: the round's share of the source, and the target with its pseudo-labels.

        Args:
            index: number of the round.
            maps: the pseudo-labels of the target images.
            rare: classes around whose pixels crops are laid.
            epoch: number of the epoch within the round.
            steps: number of batches; None: one epoch over the target.
        """
        settings, target = self.config.self_training, self.domains.target.images
        centre = RareClassCentre(tuple(rare), settings.rare_classes.chance) if rare else None
        parts = [ScenePart(target, maps, self.transforms["target"], domain=1, is_target=True, centre=centre)]
        sizes = [settings.batch.target]
        if settings.batch.source:
            parts.insert(0, self._source(self.source_share(index)))
            sizes.insert(0, settings.batch.source)
        if steps is None:
            steps = -(-len(target) // settings.batch.target)
        seed = (ROUND_STAGE.number, self.config.seed, index, epoch)
        return scene_batches(parts, batch_size=sizes, steps=steps, seed=seed, **self._loading)

    def check_rounds(self) -> None:
        """Raise UserError if a batch of a round needs more scenes of a domain than there are."""
        batch = self.config.self_training.batch
        counts = {"source": len(self.domains.source), "target": len(self.domains.target.images)}
        for role, count in counts.items():
            if getattr(batch, role) > count:
                raise UserError(
                    f"self_training.batch.{role}: {getattr(batch, role)} in a batch, but the {role} domain has only "
                    f"{count}; lower it"
                )

    def source_share(self, index: int) -> np.ndarray:
        """Numbers of a round's source scenes, ascending: a random share of all. Each round draws new ones."""
        share, count = self.config.self_training.source_share, len(self.domains.source)
        drawn = max(1, round(portion_schedule(index, share.start, share.step, share.max) * count))
        generator = np.random.default_rng((SOURCE_SHARE, self.config.seed, index))
        return np.sort(generator.choice(count, drawn, replace=False))

    def predict(self, images: Images, rows: slice | np.ndarray | None = None, workers: int | None = None) -> Batches:
        """Batches of a predict pass, in the order of the images."""
        return scene_predict_batches(
            images,
            self.predict_transform,
            batch_size=self.engine.predict_batch_size,
            workers=self.engine.workers(images.in_memory) if workers is None else workers,
            rows=rows,
        )

    def statistics(self, count: int) -> Batches:
        """This process's share of `count` random target images, for BatchNorm statistics."""
        images, ranks = self.domains.target.images, self.engine.ranks
        drawn = np.random.default_rng((ADAPTED_IMAGES, self.config.seed)).permutation(len(images))[:count]
        return self.predict(images, drawn[ranks.rank :: ranks.world])

    def _source(self, rows: np.ndarray) -> ScenePart:
        source = self.domains.source
        return ScenePart(
            source.images.take(rows), source.maps.take(rows), self.transforms["source"], domain=0, is_target=False
        )

    @property
    def _loading(self) -> dict[str, int]:
        ranks = self.engine.ranks
        return {
            "workers": self.engine.workers(self.domains.source.images.in_memory),
            "rank": ranks.rank,
            "world": ranks.world,
            "accumulate": self.config.runtime.accumulate,
        }
