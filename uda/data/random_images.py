"""Domains of random images with the counts of a card, to try things out before the data are downloaded."""

from collections.abc import Sequence

import numpy as np
import torch

from uda.core.errors import UserError
from uda.data.cards import Card
from uda.data.domains import Domains, Source, Target, TargetLabels
from uda.data.images import Images


class RandomImages(Images):
    """Images of random pixels. They are made when they are read.

    Args:
        ids: names of the images.
        side: height and width in pixels.
    """

    def __init__(self, ids: Sequence[str], side: int):
        self.ids = ids
        self.side = side

    def read(self, i: int) -> torch.Tensor:
        pixels = np.random.default_rng(i).integers(0, 256, (3, self.side, self.side), np.uint8)
        return torch.from_numpy(pixels)

    def take(self, indices: np.ndarray) -> "RandomImages":
        return RandomImages([self.ids[i] for i in indices], self.side)


def random_domains(card: Card, sources: Sequence[str], targets: Sequence[str], side: int) -> Domains:
    """The domains of a card with its number of images of each class. All images are random squares.

    Raises UserError if the card does not say how many images a domain has.
    """
    names = [*sources, *targets]
    if unknown := [name for name in names if card.domain(name).images is None]:
        raise UserError(f"{card.name}: the card does not say how many images '{unknown[0]}' has")
    counts = [card.domain(name).images for name in names]
    domain = np.repeat(np.arange(len(names)), counts)
    labels = np.concatenate([_labels(card, name) for name in names])
    ids = np.array([f"{name}/{number}" for name, count in zip(names, counts, strict=True) for number in range(count)])
    is_target = domain >= len(sources)
    source, target = (RandomImages(ids[rows].tolist(), side) for rows in (~is_target, is_target))
    hidden = TargetLabels(labels[is_target], domain[is_target] - len(sources), targets)
    classes = card.classes or tuple(f"class {number}" for number in range(card.num_classes))
    return Domains(
        Source(source, labels[~is_target], domain[~is_target]), Target(target, domain[is_target]), hidden, classes
    )


def _labels(card: Card, name: str) -> np.ndarray:
    """Class numbers (N,) of a domain's images. If the card has no counts per class, the classes take turns."""
    domain = card.domain(name)
    if domain.per_class is None or card.classes is None:
        return np.arange(domain.images) % card.num_classes
    return np.repeat(np.arange(card.num_classes), [domain.per_class[of_class] for of_class in card.classes])
