"""The two domains of a run: labelled source images, and target images whose labels are kept apart."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uda.data import digits
from uda.data.cards import CARDS, Card, load_card
from uda.data.images import ImageFiles, Images, check_readable
from uda.data.listing import (
    Listing,
    check_same_classes,
    images_below,
    list_file,
    list_flat_folder,
    list_folder,
    subfolders,
)
from uda.data.store import DecodedStore, open_stores, take_inventory
from uda.distributed import Ranks
from uda.errors import UserError
from uda.settings import DataSettings, StorageSettings

_SOURCE = "the source domain"


@dataclass(frozen=True)
class Source:
    """Labelled images: `labels` (N,) int64, 0..K-1."""

    images: Images
    labels: np.ndarray


@dataclass(frozen=True)
class Target:
    """Images without labels: there is no field that could hold one."""

    images: Images


class TargetLabels:
    """The true labels of the target images, for measuring and nothing else.

    They come out by `reveal()` only, so that each place that looks at them can be found by that word.
    """

    __slots__ = ("_labels",)

    def __init__(self, labels: np.ndarray):
        self._labels = np.array(labels, dtype=np.int64)
        self._labels.setflags(write=False)

    def __repr__(self) -> str:
        return f"TargetLabels({len(self._labels)} hidden)"

    @property
    def known(self) -> bool:
        """Whether any label is known."""
        return bool((self._labels >= 0).any())

    def reveal(self) -> np.ndarray:
        """The labels, (N,) int64, -1 where unknown; read-only."""
        return self._labels


@dataclass(frozen=True)
class Domains:
    """What a run works on. `target_labels` is None when no target label is known."""

    source: Source
    target: Target
    target_labels: TargetLabels | None
    classes: tuple[str, ...]


def load_domains(
    settings: DataSettings, seed: int, log: Callable[[str], None] = print, ranks: Ranks | None = None
) -> Domains:
    """The source and target domain that a config names.

    Args:
        settings: a card and two of its domains, or two folders or list files of the user's own.
        seed: seed of generated images; files do not depend on it.
        log: told of unreadable images and other things worth a line.
        ranks: the processes of a job; rank 0 alone looks through the files for unreadable ones.

    Returns:
        Domains with every unreadable image left out; the order of images and classes is the same on any machine.

    Raises:
        UserError: naming the file, folder or class, and the cure.
    """
    if settings.source == settings.target:
        raise UserError(
            f"data.source and data.target are both '{settings.source}': the target's labels would be trained on; "
            "name two different domains"
        )
    card = load_card(settings.dataset) if settings.dataset is not None else None
    if card is not None:
        for name in (settings.source, settings.target):
            card.domain(name)
        if card.layout == "generated":
            return _generated(card, settings, seed)
        root = card.find_root(settings.root)
        source = list_card_domain(card, settings.source, root)
        target = list_card_domain(card, settings.target, root, source.classes)
        if len(source.classes) != card.num_classes:
            log(f"{card.title}: found {len(source.classes)} classes, its card says {card.num_classes}")
    else:
        root = Path(settings.root) if settings.root is not None else None
        if root is not None and not root.is_dir():
            raise UserError(f"data.root: no such folder: {root}")
        source = _list_own(settings.source, "data.source", root)
        if not source.labelled:
            line = int(np.flatnonzero(source.labels < 0)[0])
            raise UserError(
                f"data.source: {settings.source}: {source.paths[line]} has no label; every source image needs one"
            )
        target = _list_own(settings.target, "data.target", root, source.classes)
    _check_apart({f"data.source ({settings.source})": source, f"data.target ({settings.target})": target})
    stores = _stores([source, target], settings, log)
    ranks = ranks or Ranks()
    source_images, source_labels = _readable(source, stores[0], settings, log, ranks)
    target_images, target_labels = _readable(target, stores[1], settings, log, ranks)
    _check_every_class(source_labels, source.classes, settings.source)
    if (target_labels >= 0).all():
        _check_every_class(target_labels, source.classes, settings.target)
    hidden = TargetLabels(target_labels)
    source_part, target_part = Source(source_images, source_labels), Target(target_images)
    return Domains(source_part, target_part, hidden if hidden.known else None, source.classes)


def list_card_domain(
    card: Card, name: str, root: Path, classes: tuple[str, ...] | None = None, reference: str = _SOURCE
) -> Listing:
    """Images and labels of a card's domain, from its list file where there is one, else from its folders.

    The paths come out relative to the data set's folder `root`. `reference` says for messages where `classes` are from,
    unless the card names its own. Raises UserError.
    """
    domain = card.domain(name)
    reference = f"the card '{card.name}'" if card.classes is not None else reference
    classes = card.classes if card.classes is not None else classes
    folder = next((root / path for path in domain.paths if (root / path).is_dir()), None)
    file = root / domain.list if domain.list is not None else None
    if folder is None:
        raise UserError(
            f"{root / domain.paths[0]}: no such folder: {card.title} is not complete, "
            f"get the domain '{name}' from {card.url}"
        )
    if file is not None and file.is_file():
        listing = list_file(file, folder, classes, reference)
        if not listing.labelled:
            raise UserError(f"{file}: {listing.paths[int(listing.labels.argmin())]} has no label")
    elif card.layout == "lists":
        raise UserError(
            f"{file}: no such list: {card.title} needs it to know the images of '{name}', get it from {card.url}"
        )
    else:
        listing = list_folder(folder, classes, reference)
    prefix = folder.relative_to(root).as_posix()
    paths = listing.paths if prefix == "." else [f"{prefix}/{path}" for path in listing.paths]
    return dataclasses.replace(listing, root=root, paths=paths)


def load_labelled(
    settings: StorageSettings,
    names: Sequence[str],
    seed: int,
    log: Callable[[str], None] = print,
    ranks: Ranks | None = None,
    called: Sequence[str] | None = None,
) -> tuple[list[Source], tuple[str, ...]]:
    """Several labelled domains of the same classes.

    Args:
        settings: a card, or where folders and lists of the user's own lie.
        names: domains of the card; without one folders with a folder a class, or list files.
        seed, log, ranks: as in `load_domains`.
        called: for messages, the setting or option that each name is from; None: all from `data.domains`.

    Returns:
        The domains in the order of their names, and the K classes.

    Raises:
        UserError: naming the file, folder or class, and the cure; a class that a domain lacks among them.
    """
    card = load_card(settings.dataset) if settings.dataset is not None else None
    if card is not None:
        for name in names:
            card.domain(name)
        if card.layout == "generated":
            return [Source(*digits.domain(name, 1000, seed)) for name in names], card.classes or ()
    root = card.find_root(settings.root) if card else Path(settings.root) if settings.root is not None else None
    if root is not None and not root.is_dir():
        raise UserError(f"data.root: no such folder: {root}")
    listings: dict[str, Listing] = {}
    keys = called or ["data.domains"] * len(names)
    for name, key in zip(names, keys, strict=True):
        classes = next(iter(listings.values())).classes if listings else None
        if card:
            listing = list_card_domain(card, name, root, classes, names[0])
        else:
            listing = _list_own(name, key, root, classes, names[0])
        if not listing.labelled:
            line = int(np.flatnonzero(listing.labels < 0)[0])
            raise UserError(f"{key}: {name}: {listing.paths[line]} has no label; every image needs one")
        listings[name] = listing
    _check_apart({f"{key}: {name}": listing for key, (name, listing) in zip(keys, listings.items(), strict=True)})
    classes = listings[names[0]].classes
    stores = _stores(list(listings.values()), settings, log)
    domains = []
    for (name, listing), store in zip(listings.items(), stores, strict=True):
        images, labels = _readable(listing, store, settings, log, ranks or Ranks())
        _check_every_class(labels, classes, name, "the other domains or the card")
        domains.append(Source(images, labels))
    return domains, classes


def _list_own(
    place: str, key: str, root: Path | None, classes: tuple[str, ...] | None = None, reference: str = _SOURCE
) -> Listing:
    """A domain of the user's own: a folder, or a .txt list. Only a `data.target` may do without labels."""
    is_target = key == "data.target"
    path = Path(place)
    if root is not None and not path.is_absolute() and (root / path).exists():
        path = root / path
    if path.suffix.lower() == ".txt":
        if not path.is_file():
            raise UserError(f"{key}: no such list file: {path}")
        return list_file(path, root, classes, reference)
    if not path.is_dir():
        cure = ", or a folder of images" if is_target else ""
        of_an_option = f"a card's domain, CARD:DOMAIN (cards: {', '.join(sorted(CARDS))})"
        of_a_config = "name a card by data.dataset (`--list datasets` shows them)"
        raise UserError(
            f"{key}: no such folder: {path}; give a folder with one folder per class, a .txt list{cure}, "
            f"or {of_an_option if key.startswith('--') else of_a_config}"
        )
    if not is_target:
        return list_folder(path, classes, reference)
    if subfolders(path):
        loose = [name for name in images_below(path) if "/" not in name]
        if loose:
            raise UserError(
                f"data.target: {path} holds images ({loose[0]}...) beside folders: move them into class folders, "
                "or name all images in a .txt list of bare paths"
            )
        return list_folder(path, classes, reference)
    if not images_below(path):
        raise UserError(f"{key}: {path} holds no images")
    return list_flat_folder(path)


def _check_apart(listings: Mapping[str, Listing]) -> None:
    """Raise UserError when an image belongs to two domains: its true label would be trained on."""
    paths = {name: _real_paths(listing) for name, listing in listings.items()}
    for (first, own), (second, others) in itertools.combinations(paths.items(), 2):
        if shared := own & others:
            raise UserError(
                f"{first} and {second} share {len(shared)} images, such as {min(shared)}: the target's labels would be "
                "trained on; name domains without a common image"
            )


def _real_paths(listing: Listing) -> set[str]:
    """Absolute paths of the images, with symbolic links to folders resolved."""
    parted = [os.path.split(path) for path in listing.paths]
    folders = {folder: os.path.realpath(listing.root / folder) for folder in {folder for folder, _ in parted}}
    return {os.path.join(folders[folder], name) for folder, name in parted}


def _stores(
    listings: Sequence[Listing], settings: StorageSettings, log: Callable[[str], None]
) -> list[DecodedStore | None]:
    if settings.cache != "store":
        return [None] * len(listings)
    inventories = [take_inventory(listing.root, listing.paths, settings.load_size) for listing in listings]
    return open_stores(inventories, settings.store, settings.store_gb, log)


def _readable(
    listing: Listing, store: DecodedStore | None, settings: StorageSettings, log: Callable[[str], None], ranks: Ranks
) -> tuple[ImageFiles, np.ndarray]:
    cache = "memory" if settings.cache == "memory" else "none"
    images = ImageFiles(listing.root, listing.paths, cache, load_size=settings.load_size, store=store)
    found = check_readable(images, settings.max_unreadable, log).tobytes() if ranks.is_main else None
    readable = np.frombuffer(ranks.broadcast(found), dtype=np.int64)
    if len(readable) == len(images):
        return images, listing.labels
    return images.take(readable), listing.labels[readable]


def _check_every_class(
    labels: np.ndarray, classes: tuple[str, ...], place: str, reference: str = "the other domain or the card"
) -> None:
    check_same_classes([classes[k] for k in np.unique(labels)], classes, place, reference)


def _generated(card: Card, settings: DataSettings, seed: int) -> Domains:
    source_images, source_labels = digits.domain(settings.source, settings.rendered_per_class, seed)
    target_images, target_labels = digits.domain(settings.target, settings.rendered_per_class, seed)
    return Domains(
        Source(source_images, source_labels), Target(target_images), TargetLabels(target_labels), card.classes or ()
    )
