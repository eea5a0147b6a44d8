"""The data of a run of domain generalisation: batches of all seen domains, and the images to evaluate on."""

from uda.core.errors import UserError
from uda.data.domains import TargetLabels
from uda.data.features import PlainFeatures, features_of
from uda.data.images import Images
from uda.data.loaders import Batches, Part, training_batches
from uda.data.transforms import Transform, make_predict, make_train
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import SeenAndUnseen
from uda.generalization.stages import GENERALIZATION_STAGE
from uda.training.engine import Engine


class GeneralizationBatches:
    """The batches of a run."""

    def __init__(self, config: GeneralizationConfig, domains: SeenAndUnseen, engine: Engine):
        self.config = config
        self.domains = domains
        self.engine = engine
        self._train, self.predict_transform = _transforms(config, domains)

    @property
    def in_memory(self) -> bool:
        """Whether all images are in memory."""
        every = [*(seen.domain.images for seen in self.domains.seen), self.domains.unseen.images]
        return all(images.in_memory for images in every)

    def training(self, stage: int, steps: int) -> Batches:
        """Batches of a stage, with the same number of labelled images of each seen domain, in the domains' order.

        Raises UserError if a domain has fewer images than a batch needs.
        """
        size, ranks = self.config.training.batch_size, self.engine.ranks
        parts = []
        for number, seen in enumerate(self.domains.seen):
            if len(seen.training) < size:
                raise UserError(
                    f"training.batch_size: a batch has {size} images of each domain, but {seen.name} has only "
                    f"{len(seen.training)} for training; lower it"
                )
            labels = seen.domain.labels[seen.training]
            parts.append(Part(seen.domain.images, seen.training, labels, self._train, domain=number, is_target=False))
        return training_batches(
            parts,
            num_classes=len(self.domains.classes),
            batch_size=[size] * len(parts),
            steps=steps,
            seed=(GENERALIZATION_STAGE.number, self.config.seed, stage),
            workers=self.engine.workers(self.in_memory),
            rank=ranks.rank,
            world=ranks.world,
            accumulate=self.config.runtime.accumulate,
        )

    def evaluation_images(self, domain: int) -> tuple[str, Images, TargetLabels]:
        """A domain's name, images and labels to evaluate on: held-out images of a seen domain, or the unseen domain."""
        if domain == len(self.domains.seen):
            return self.domains.name, self.domains.unseen.images, self.domains.unseen_labels
        seen = self.domains.seen[domain]
        held_out = TargetLabels(seen.domain.labels[seen.validation])
        return seen.name, seen.domain.images.take(seen.validation), held_out


def _transforms(config: GeneralizationConfig, domains: SeenAndUnseen) -> tuple[Transform, Transform]:
    """The transforms of training and of predicting."""
    if features := features_of(domains.unseen.images):
        plain = PlainFeatures(features[0].width)
        return plain, plain
    return make_train(config.transforms, config.augment), make_predict(config.transforms)
