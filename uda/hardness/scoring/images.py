"""The labelled images that a classifier is scored on, with labels in the classifier's own order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.data.cards import CARDS
from uda.data.class_names import two_orders
from uda.data.domains import load_labelled
from uda.data.images import Images
from uda.data.settings import StorageSettings
from uda.data.text import same_form
from uda.hardness.scoring.classifier import LoadedClassifier
from uda.training.engine import Engine
from uda.training.settings import RuntimeSettings


@dataclass(frozen=True)
class LabelledImages:
    """Images and what they show; image ids are paths relative to the data set's folder, the same on any machine."""

    images: Images
    labels: np.ndarray
    """(N,) int64, 0..K-1."""
    classes: tuple[str, ...]
    """K names."""

    def take(self, indices: np.ndarray) -> "LabelledImages":
        """Some of them."""
        return LabelledImages(self.images.take(indices), self.labels[indices], self.classes)


def load_images(
    place: str, settings: StorageSettings | None = None, log: Callable[[str], None] = print, seed: int = 0
) -> LabelledImages:
    """Labelled images.

    Args:
        place: `<card>:<domain>` (`cifar10:test`), a folder with one folder a class, or a .txt list.
        settings: how the images are read and kept; of a card also where it lies.
        log: told of unreadable images.
        seed: of generated images.

    Raises:
        UserError: unknown card or domain, no such folder, an image without a label.
    """
    settings = settings or StorageSettings()
    card, found, domain = place.partition(":")
    if found and not Path(place).exists():
        settings = settings.model_copy(update={"dataset": card})
    elif card in CARDS and not Path(place).exists():
        raise UserError(
            f"`data`: which domain of '{card}'? {', '.join(f'{card}:{name}' for name in CARDS[card].domains)}"
        )
    else:
        domain = place
    (source,), classes = load_labelled(settings, [domain], seed, log, called=["`data`"])
    return LabelledImages(source.images, source.labels, classes)


def in_order_of(classifier: LoadedClassifier, data: LabelledImages) -> LabelledImages:
    """The images with the class numbers that the classifier's outputs have.

    Classes are matched by name: with those that the classifier knows, or, for a head of 1,000 classes, with ImageNet's
    WordNet ids (`n01440764`); folders named by class numbers (`0` to `999`, as ImageNetV2 has them) are those. Without
    names on the classifier's side, as many classes as it has are taken in the order of their names, if that is one and
    the same for all programs: `class10` comes before `class2` for some.

    Raises:
        UserError: classes that the classifier does not have, or that cannot be told.
    """
    count = len(classifier.network.weight)
    if classifier.classes is not None:
        numbers = _by_name(data.classes, classifier.classes, classifier.name)
        return LabelledImages(data.images, numbers[data.labels], classifier.classes)
    if all(name.isdecimal() and int(name) < count for name in data.classes) and len(data.classes) > 1:
        numbers = np.array([int(name) for name in data.classes])
        return LabelledImages(data.images, numbers[data.labels], tuple(map(str, range(count))))
    if count == 1000 and all(name[:1] == "n" and name[1:].isdecimal() for name in data.classes):
        synsets = tuple(ImageNetInfo().label_names())
        return LabelledImages(data.images, _by_name(data.classes, synsets, classifier.name)[data.labels], synsets)
    if len(data.classes) != count:
        raise UserError(
            f"{classifier.name} has {count} classes without names, the images have {len(data.classes)} "
            f"({', '.join(data.classes[:3])}...): name the folders by class number (0 to {count - 1})"
            + " or by ImageNet's WordNet ids" * (count == 1000)
            + ", or give the classes' names by `classes`"
        )
    as_text, as_people = two_orders(data.classes)
    if count == 1000 or as_text != as_people:
        raise UserError(
            f"{classifier.name}: in which order are its {count} classes ({', '.join(data.classes[:3])}...)? Give their "
            "names in the order of its outputs by `classes`"
        )
    return data


def _by_name(names: Sequence[str], known: Sequence[str], who: str) -> np.ndarray:
    """The numbers of some names among the known ones."""
    place = {same_form(name): number for number, name in enumerate(known)}
    missing = [name for name in names if name not in place]
    if missing:
        raise UserError(
            f"{who} has no class '{missing[0]}'{nearest(missing[0], list(known))}"
            + f" ({len(missing)} of {len(names)} classes of the images are not among its {len(known)})"
        )
    return np.array([place[name] for name in names])


def engine_for(
    classifier: LoadedClassifier, runtime: RuntimeSettings | None = None, log: Callable[[str], None] | None = print
) -> Engine:
    """An engine that predicts with a classifier."""
    return Engine(classifier.network, runtime or RuntimeSettings(), log)


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` numbers of images, each class in its share, in ascending order; all where there are no more.

    Args:
        labels: (N,) classes.
        count: images wanted.
        seed: of the draw.
    """
    generator = np.random.default_rng([seed, len(labels)])
    order = generator.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = order[labels[order] == label]
        # Evenly over 0..1 whatever the class's size, so that any first part holds each class in its share.
        place[own] = (np.arange(len(own)) + generator.random()) / len(own)
    return np.sort(np.argsort(place, kind="stable")[:count])
