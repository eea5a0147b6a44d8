"""Labelled images for scoring, with labels in the classifier's order of classes."""

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
    """Images and their labels. Image ids are paths relative to the data set's folder, the same on every machine."""

    images: Images
    labels: np.ndarray
    """(N,) int64, 0..K-1."""
    classes: tuple[str, ...]
    """K class names."""

    def take(self, indices: np.ndarray) -> "LabelledImages":
        """The images with the given numbers."""
        return LabelledImages(self.images.take(indices), self.labels[indices], self.classes)


def load_images(
    place: str, settings: StorageSettings | None = None, log: Callable[[str], None] = print, seed: int = 0
) -> LabelledImages:
    """Load labelled images.

    Args:
        place: `<card>:<domain>` (`cifar10:test`), a folder with one folder per class, or a .txt list.
        settings: how to read and store the images, and the folder of a card's data set.
        log: called with lines about unreadable images.
        seed: seed of generated images.

    Raises:
        UserError: the card, the domain or the folder does not exist, or an image has no label.
    """
    settings = settings or StorageSettings()
    card, found, domain = place.partition(":")
    if found and not Path(place).exists():
        settings = settings.model_copy(update={"dataset": card})
    elif card in CARDS and not Path(place).exists():
        raise UserError(
            f"`data`: name a domain of '{card}': {', '.join(f'{card}:{name}' for name in CARDS[card].domains)}"
        )
    else:
        domain = place
    (source,), classes = load_labelled(settings, [domain], seed, log, called=["`data`"])
    return LabelledImages(source.images, source.labels, classes)


def in_order_of(classifier: LoadedClassifier, data: LabelledImages) -> LabelledImages:
    """The images with class numbers in the classifier's order.

    If the classifier has class names, classes are matched by name. If it has no names:

    - Folders that are named by class numbers (`0` to `999`, as in ImageNetV2) keep these numbers.
    - For 1,000 classes, ImageNet's WordNet ids (`n01440764`) are matched.
    - Otherwise classes are sorted by name. There must be as many as the classifier has, and their order must be clear.
      It is not clear if some programs sort `class10` before `class2` and others after it.

    Raises:
        UserError: the classifier does not have a class, or the order of its classes is not known.
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
            f"{classifier.name} has {count} classes without names, but the images have {len(data.classes)} classes "
            f"({', '.join(data.classes[:3])}...); name the folders by class number (0 to {count - 1})"
            + " or by ImageNet's WordNet ids" * (count == 1000)
            + ", or give the class names in `classes`"
        )
    as_text, as_people = two_orders(data.classes)
    if count == 1000 or as_text != as_people:
        raise UserError(
            f"{classifier.name}: the order of its {count} classes ({', '.join(data.classes[:3])}...) is not known; "
            "give the class names in the order of its outputs in `classes`"
        )
    return data


def _by_name(names: Sequence[str], known: Sequence[str], who: str) -> np.ndarray:
    """The number of each name in the list of known names."""
    place = {same_form(name): number for number, name in enumerate(known)}
    missing = [name for name in names if name not in place]
    if missing:
        raise UserError(
            f"{who} has no class '{missing[0]}'{nearest(missing[0], list(known))}"
            + f" ({len(missing)} of {len(names)} classes of the images are not among its {len(known)} classes)"
        )
    return np.array([place[name] for name in names])


def engine_for(
    classifier: LoadedClassifier, runtime: RuntimeSettings | None = None, log: Callable[[str], None] | None = print
) -> Engine:
    """An engine that predicts with a classifier."""
    return Engine(classifier.network, runtime or RuntimeSettings(), log)


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Draw `count` image numbers in proportion to the classes, in ascending order. All if there are not more.

    Args:
        labels: class numbers, (N,).
        count: number of images.
        seed: seed of the draw.
    """
    generator = np.random.default_rng([seed, len(labels)])
    order = generator.permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        own = order[labels[order] == label]
        # The images of each class are spread evenly over 0..1, so every first part has the classes in proportion.
        place[own] = (np.arange(len(own)) + generator.random()) / len(own)
    return np.sort(np.argsort(place, kind="stable")[:count])
