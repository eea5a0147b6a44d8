"""The domains of a run: labelled source images, and target images whose labels are kept separately."""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.data import digits
from uda.data.banks import check_one_bank, find_domain, read_domain
from uda.data.cards import CARDS, Card, MissingDataError, load_card
from uda.data.class_names import NO_LABEL, UNKNOWN_CLASS, ClassOrder, check_same_classes, read_class_names
from uda.data.decoding import open_file
from uda.data.images import ImageFiles, Images, JoinedImages, check_readable
from uda.data.listing import Listing, list_file, list_folder, list_target, list_unlabelled
from uda.data.settings import DataSettings, StorageSettings
from uda.data.store import DecodedStore, open_stores, take_inventory

_SOURCE = "the source domain"

#: Class of a bank for the images of all classes that the source lacks.
UNKNOWN_NAME = "(unknown)"


@dataclass(frozen=True)
class Source:
    """Images with true labels, (N,) int64, 0..K-1. `domain`: one number for all images, or a number for each, (N,)."""

    images: Images
    labels: np.ndarray
    domain: int | np.ndarray = 0


@dataclass(frozen=True)
class Target:
    """Images without labels. No field could hold a label. `domain` is as in `Source`."""

    images: Images
    domain: int | np.ndarray = 1


class TargetLabels:
    """The true labels of the target images. They are used only for measuring.

    Only `reveal()` gives them, so a search for that word finds every place that uses them.

    Args:
        labels: (N,) class numbers, or NO_LABEL, or UNKNOWN_CLASS.
        domain: (N,) each image's place in `names`. None: all images are of one domain.
        names: the target domains.
    """

    __slots__ = ("_labels", "domain", "names")

    def __init__(self, labels: np.ndarray, domain: np.ndarray | None = None, names: Sequence[str] = ()):
        self._labels = np.array(labels, dtype=np.int64)
        self._labels.setflags(write=False)
        self.domain = np.zeros(len(self._labels), dtype=np.int64) if domain is None else domain
        self.names = tuple(names)

    def __repr__(self) -> str:
        return f"TargetLabels({len(self._labels)} hidden)"

    @property
    def known(self) -> bool:
        """Whether any label is one of the source's classes."""
        return bool((self._labels >= 0).any())

    @property
    def count(self) -> int:
        """How many images have a label. Unknown classes count too."""
        return int((self._labels != NO_LABEL).sum())

    @property
    def checksum(self) -> str:
        """Eight hexadecimal digits. A resumed run compares them to check that labels and domains are the same."""
        domain = self.domain.tobytes() if len(self.names) > 1 else b""
        return hashlib.sha256(self._labels.tobytes() + domain).hexdigest()[:8]

    def reveal(self) -> np.ndarray:
        """The labels, (N,) int64, read-only: class numbers, NO_LABEL, or UNKNOWN_CLASS (a class not in the source)."""
        return self._labels


@dataclass(frozen=True)
class Domains:
    """The images and classes of a run. `target_labels` is None if no target label is known.

    The domains are numbered, first the sources, then the targets. `labelled` are target images with labels to train
    on. Their domain number is that of the first target.
    """

    source: Source
    target: Target
    target_labels: TargetLabels | None
    classes: tuple[str, ...]
    labelled: Source | None = None


def load_domains(
    settings: DataSettings, seed: int, log: Callable[[str], None] = print, ranks: Ranks | None = None
) -> Domains:
    """The source and target domains that a config names.

    Args:
        settings: a card and some of its domains, or the user's own folders or list files.
        seed: seed of generated images. Images from files do not depend on it.
        log: is called with lines about unreadable images and the like.
        ranks: the processes of a job. Only rank 0 checks which files can be read.

    Returns:
        Domains without the unreadable images. The order of images and classes is the same on any machine.

    Raises:
        UserError: names the file, folder or class, and the cure.
    """
    sources, targets = settings.sources, settings.targets
    if both := set(sources) & set(targets):
        raise UserError(
            f"data.source and data.target are both '{min(both)}': the target's labels would be trained on; "
            "name different domains"
        )
    wanted = [*(("data.source", name) for name in sources), *(("data.target", name) for name in targets)]
    ranks = ranks or Ranks()
    labelled = None
    card = _card(settings)
    if settings.features is not None and settings.target_labelled is not None:
        raise UserError("data.target_labelled: it needs images, so it cannot be combined with data.features")
    if _is_generated(card, settings):
        classes, parts = card.classes or (), _generated(card, wanted, settings, seed)
    else:
        listings = _list_domains(card, wanted, settings, log)
        classes = listings[0].classes
        if settings.target_labelled is not None:
            taken = _list_labelled(card, settings, listings[0].order(_SOURCE), log)
            for name, listing in zip(sources, listings, strict=False):
                called = f"data.target_labelled ({settings.target_labelled})"
                check_apart({called: taken, f"data.source ({name})": listing})
            left = _without(dict(zip(targets, listings[len(sources) :], strict=True)), taken, log)
            listings = [*listings[: len(sources)], *left, taken]
        parts = _read_all(listings, settings, log, ranks)
        if settings.target_labelled is not None:
            labelled = Source(*parts.pop(), domain=len(sources))
        for (_, labels), (key, name) in zip(parts, wanted, strict=True):
            if key == "data.source":
                _check_every_class(labels, classes, name, "the other domain or the card")
            elif not ((labels == NO_LABEL).any() or settings.partial):
                # All images of a class may be among those with labels to train on.
                held = labels if labelled is None else np.append(labels, labelled.labels)
                _check_every_class(held, classes, name, _SOURCE, is_target=True)
    source = Source(*_joined(parts[: len(sources)], sources, first=0))
    images, labels, domain = _joined(parts[len(sources) :], targets, first=len(sources))
    hidden = TargetLabels(labels, domain - len(sources) if len(targets) > 1 else None, targets)
    if hidden.count and not hidden.known and settings.target_labels != "none":
        raise UserError(
            f"data.target: no image of {', '.join(targets)} is of a class of the source; name another target, or set "
            "data.target_labels=none to adapt without measuring accuracy"
        )
    told = hidden.known and settings.target_labels != "none"
    return Domains(source, Target(images, domain), hidden if told else None, classes, labelled)


def _card(settings: StorageSettings) -> Card | None:
    """The card of `data.dataset`. Raises UserError if its labels are label maps."""
    card = load_card(settings.dataset) if settings.dataset is not None else None
    if card is not None and card.task != "classification":
        raise UserError(
            f"data.dataset: '{card.name}' has a class for each pixel, and this command needs one for each image; name "
            "another card, or train on its label maps by segmentation"
        )
    return card


def _list_domains(
    card: Card | None, wanted: Sequence[tuple[str, str]], settings: StorageSettings, log: Callable[[str], None]
) -> list[Listing]:
    """The images on disk of some domains, given as pairs of a setting and a name. All have the classes of the first.

    Raises UserError, also if two domains share an image.
    """
    for _, name in wanted if card is not None else ():
        card.domain(name)
    root = None if settings.features is not None else _find_root(card, settings)
    order = class_order(settings, card)
    listings: list[Listing] = []
    for key, name in wanted:
        is_target = key == "data.target"
        labels = not is_target or settings.target_labels != "none"
        own = order
        if is_target and order is not None:
            own = dataclasses.replace(order, may_lack=settings.partial, may_add=settings.open)
        if settings.features is not None:
            listing = find_domain(settings.features, name, key).listing(own, labels, is_target)
        elif card is not None:
            listing = list_card_domain(card, name, root, own, labels)
        else:
            listing = _list_own(name, key, root, own, labels)
        order = order or listing.order(_SOURCE if key == "data.source" else name)
        for line in listing.notes:
            log(line)
        if not is_target:
            more = "; only data.target may have images without one" if key == "data.source" else ""
            listing.check_labelled(f"{key}: {name}", more)
        listings.append(listing)
    if card is not None and wanted[0][0] == "data.source" and len(listings[0].classes) != card.num_classes:
        log(f"{card.title}: found {len(listings[0].classes)} classes, but its card says {card.num_classes}")
    called = {f"{key} ({name})": listing for (key, name), listing in zip(wanted, listings, strict=True)}
    if settings.features is None:
        check_apart(called)
    else:
        _check_files_apart(called)
    return listings


def _find_root(card: Card | None, settings: StorageSettings) -> Path | None:
    """The folder that paths are relative to. None: the current folder."""
    if card is not None:
        return card.find_root(settings.root)
    root = Path(settings.root) if settings.root is not None else None
    if root is not None and not root.is_dir():
        raise UserError(f"data.root: no such folder: {root}")
    return root


def _list_labelled(card: Card | None, settings: DataSettings, order: ClassOrder, log: Callable[[str], None]) -> Listing:
    """The images of `data.target_labelled`. Each has a label. They are few, so classes may be missing."""
    order = dataclasses.replace(order, may_lack=True)
    listing = _list_own(settings.target_labelled, "data.target_labelled", _find_root(card, settings), order)
    for line in listing.notes:
        log(line)
    listing.check_labelled(f"data.target_labelled: {settings.target_labelled}")
    return listing


def _without(listings: Mapping[str, Listing], taken: Listing, log: Callable[[str], None]) -> list[Listing]:
    """The listings of the targets without the images of `data.target_labelled`.

    Files with the same content are the same image, because labelled images are often copied into a separate folder.
    Raises UserError if no image of a target is left.
    """
    files, contents = _files(taken), {_content(taken, path) for path in taken.paths}
    same, sizes = set(files), {file[2] for file in files if isinstance(file, tuple)}

    def is_taken(listing: Listing, path: str, file: tuple[int, ...] | str) -> bool:
        may_be_copy = isinstance(file, tuple) and file[2] in sizes
        return file in same or (may_be_copy and _content(listing, path) in contents)

    rest, both = [], 0
    for name, listing in listings.items():
        found = enumerate(zip(listing.paths, _files(listing), strict=True))
        kept = [i for i, (path, file) in found if not is_taken(listing, path, file)]
        if not kept:
            raise UserError(f"data.target_labelled: it holds all images of data.target ({name}), so none is left")
        both += len(listing.paths) - len(kept)
        rest.append(dataclasses.replace(listing, paths=[listing.paths[i] for i in kept], labels=listing.labels[kept]))
    apart = f"{both:,} images of the target are removed from it" if both else "none of them is in the target"
    log(f"data.target_labelled: {len(taken.paths):,} images are trained on with their labels; {apart}")
    return rest


def _content(listing: Listing, path: str) -> bytes:
    """A digest of a file's content, or of its path if the file cannot be read."""
    place = listing.root / path
    try:
        with open_file(place) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return hashlib.sha256(os.fsencode(place)).digest()


def _joined(
    parts: Sequence[tuple[Images, np.ndarray]], names: Sequence[str], first: int
) -> tuple[Images, np.ndarray, int | np.ndarray]:
    """Images, labels (N,) and domain numbers of one or several domains. The first domain has the number `first`."""
    if len(parts) == 1:
        return *parts[0], first
    images, labels = zip(*parts, strict=True)
    domain = np.repeat(np.arange(first, first + len(parts)), list(map(len, images)))
    return JoinedImages(images, names), np.concatenate(labels), domain


def _read_all(
    listings: Sequence[Listing], settings: StorageSettings, log: Callable[[str], None], ranks: Ranks
) -> list[tuple[Images, np.ndarray]]:
    """The readable images of every listing, and their labels."""
    if settings.features is not None:
        domains = [read_domain(listing.root) for listing in listings]
        check_one_bank(domains)
        return [(domain.array(), listing.labels) for domain, listing in zip(domains, listings, strict=True)]
    stores = stores_of(listings, settings, log)
    return [_readable(listing, store, settings, log, ranks) for listing, store in zip(listings, stores, strict=True)]


def class_order(settings: StorageSettings, card: Card | None = None) -> ClassOrder | None:
    """The classes of a card or of `data.classes`. None: the first domain's are used. Raises UserError."""
    if card is not None and card.classes is not None:
        if settings.classes is not None:
            raise UserError(f"data.classes: the card '{card.name}' already names its classes; remove data.classes")
        return ClassOrder(card.classes, f"the card '{card.name}'", "given")
    if settings.classes is None:
        return None
    return ClassOrder(read_class_names(settings.classes, "data.classes"), "data.classes", "given")


def list_card_domain(
    card: Card, name: str, root: Path, order: ClassOrder | None = None, labels: bool = True
) -> Listing:
    """Images and labels of a card's domain, from its list file if it has one, else from its folders.

    The paths are relative to the data set's folder `root`. Raises UserError.

    Args:
        card, name: the data set and its domain.
        root: the data set's folder.
        order: its classes. None: as found.
        labels: whether to read labels.
    """
    folder, file = card.find_domain(name, root)
    if file is not None:
        listing = list_file(file, folder, order, labels)
        if labels:
            listing.check_labelled(str(file))
    else:
        listing = list_folder(folder, order) if labels else list_unlabelled(folder)
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
        settings: a card, or the place of the user's own folders and lists.
        names: domains of the card. Without a card: folders with one folder per class, or list files.
        seed, log, ranks: as in `load_domains`.
        called: the setting or option that each name is from, for messages. None: all are from `data.domains`.

    Returns:
        The domains in the order of their names, and the K classes.

    Raises:
        UserError: names the file, folder or class, and the cure. A domain that lacks a class is an error too.
    """
    wanted = list(zip(called or ["data.domains"] * len(names), names, strict=True))
    card = _card(settings)
    if _is_generated(card, settings):
        parts, classes = _generated(card, wanted, settings, seed), card.classes or ()
    else:
        listings = _list_domains(card, wanted, settings, log)
        classes = listings[0].classes
        parts = _read_all(listings, settings, log, ranks or Ranks())
        for (_, labels), name in zip(parts, names, strict=True):
            _check_every_class(labels, classes, name, "the other domains or the card")
    return [Source(images, labels) for images, labels in parts], classes


def bank_domains(settings: StorageSettings, log: Callable[[str], None]) -> list[str]:
    """The domains that a bank holds: those that the config names, and all others of the card that are on disk.

    Args:
        settings: the section `data` of a config.
        log: gets a line about each domain of the card that is not on disk.
    """
    own = isinstance(settings, DataSettings)
    named = [*settings.sources, *settings.targets] if own else list(getattr(settings, "domains", None) or ())
    if settings.dataset is None:
        return named
    card = _card(settings)
    root, found = _find_root(card, settings) if card.layout != "generated" else None, []
    for name in card.domains:
        try:
            if root is not None and name not in named:
                card.find_domain(name, root)
            found.append(name)
        except MissingDataError as error:
            log(f"left out domain '{name}': {error.what}")
    return found


def load_alone(
    settings: StorageSettings, name: str, seed: int, log: Callable[[str], None], ranks: Ranks
) -> tuple[Images, np.ndarray, tuple[str, ...]]:
    """A domain by itself: its images, their labels (N,) (NO_LABEL if unknown), and the classes that these index.

    The images of all classes that the source lacks (an open target) are in one class more, `UNKNOWN_NAME`. Raises
    UserError, as `load_domains` does.
    """
    card = _card(settings)
    if card is not None and card.layout == "generated":
        ((images, labels),) = _generated(card, [("data.source", name)], settings, seed)
        return images, labels, card.classes or ()
    root, order = _find_root(card, settings), class_order(settings, card)
    own_target = isinstance(settings, DataSettings) and card is None and name in settings.targets
    if card is not None:
        listing = list_card_domain(card, name, root, order)
    elif own_target:
        source = _list_own(settings.sources[0], "data.source", root, order)
        like = dataclasses.replace(source.order(_SOURCE), may_lack=settings.partial, may_add=settings.open)
        listing = _list_own(name, "data.target", root, like, settings.target_labels != "none")
    else:
        listing = _list_own(name, "data.source", root, order)
    for line in listing.notes:
        log(line)
    ((images, labels),) = _read_all([listing], settings, log, ranks)
    if not (labels == UNKNOWN_CLASS).any():
        return images, labels, listing.classes
    return images, np.where(labels == UNKNOWN_CLASS, len(listing.classes), labels), (*listing.classes, UNKNOWN_NAME)


def load_unlabelled(settings: StorageSettings, names: Sequence[str], seed: int) -> Images:
    """The images of some domains without their labels. They are not opened, so some may be unreadable.

    The ids are those of `load_domains`. Raises UserError if the data is not there.
    """
    card = _card(settings)
    if card is not None and card.layout == "generated":
        parts = [images for images, _ in _generated(card, [("data.target", name) for name in names], settings, seed)]
    else:
        root, parts = _find_root(card, settings), []
        for name in names:
            if card is not None:
                listing = list_card_domain(card, name, root, labels=False)
            else:
                listing = _list_own(name, "data.target", root, labels=False)
            parts.append(ImageFiles(listing.root, listing.paths, reading=settings.reading))
    return parts[0] if len(parts) == 1 else JoinedImages(parts, names)


def _list_own(place: str, key: str, root: Path | None, order: ClassOrder | None = None, labels: bool = True) -> Listing:
    """A user's own domain: a folder or a .txt list. Only `data.target` may be without labels."""
    is_target = key == "data.target"
    path = Path(place)
    if root is not None and not path.is_absolute() and os.path.exists(root / path):
        path = root / path
    if path.suffix.lower() == ".txt" and not os.path.isdir(path):
        if not os.path.isfile(path):
            raise UserError(f"{key}: no such list file: {path}")
        return list_file(path, root, order, labels)
    if os.path.isfile(path):
        raise UserError(f"{key}: {path} is a file, but not a list; a list ends in .txt and has lines of `path label`")
    if not os.path.isdir(path):
        cure = ", or a folder of images" if is_target else ""
        several = "; write several domains as [a,b]" if "," in place else ""
        of_a_parameter = f"a card's domain, CARD:DOMAIN (cards: {', '.join(CARDS.names_for('classification'))})"
        of_a_config = "name a card by data.dataset (`--list datasets` shows them)"
        raise UserError(
            f"{key}: no such folder: {path}; give a folder with one folder per class, a .txt list{cure}, "
            f"or {of_a_parameter if key.startswith('`') else of_a_config}{several}"
        )
    if not labels:
        return list_unlabelled(path)
    return list_target(path, order) if is_target else list_folder(path, order)


def check_apart(listings: Mapping[str, Listing]) -> None:
    """Raise UserError if an image belongs to two domains, directly or by a link.

    Otherwise the image would count twice, or a target image's true label would be trained on.
    """
    files = {
        name: dict(zip(_files(listing), (f"{listing.root}/{path}" for path in listing.paths), strict=True))
        for name, listing in listings.items()
    }
    for (first, own), (second, others) in itertools.combinations(files.items(), 2):
        if shared := own.keys() & others.keys():
            path, other = min((own[file], others[file]) for file in shared)
            link = "" if os.path.abspath(path) == os.path.abspath(other) else f", which is {other}"
            raise UserError(
                f"{first} and {second} share {len(shared)} images, such as {path}{link}: {_harm(first, second)}; "
                "name domains without a common image"
            )


def _check_files_apart(listings: Mapping[str, Listing]) -> None:
    """Raise UserError if two domains are the same file of a bank. Paths that end alike name the same file."""
    for (first, own), (second, other) in itertools.combinations(listings.items(), 2):
        if own.root == other.root:
            raise UserError(
                f"{first} and {second} are both {own.root}: {_harm(first, second)}; name different domains of the bank"
            )


def _harm(first: str, second: str) -> str:
    """What an image in two domains does."""
    keys = {name.partition(" ")[0] for name in (first, second)}
    if keys == {"data.target", "data.held_out"}:
        return "held-out images would be adapted to"
    alike = keys in ({"data.source"}, {"data.target"})
    return "they would count twice" if alike else "the target's labels would be trained on"


def _files(listing: Listing) -> list[tuple[int, ...] | str]:
    """For every image a key of its file. All paths and links to a file have the same key.

    The key also has the size and time of change, because some network drives give several files the same number.
    """
    return [_file(f"{listing.root}/{path}") for path in listing.paths]


def _file(path: str) -> tuple[int, ...] | str:
    try:
        found = os.stat(path)
    except OSError:  # reported later as an unreadable image
        return os.path.abspath(path)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def stores_of(
    listings: Sequence[Listing], settings: StorageSettings, log: Callable[[str], None]
) -> list[DecodedStore | None]:
    """The decoded store of each listing. None: there is none, as `data.cache` says."""
    if settings.cache != "store":
        return [None] * len(listings)
    inventories = [take_inventory(listing.root, listing.paths, settings.reading) for listing in listings]
    return open_stores(inventories, settings.store, settings.store_gb, log)


def _is_generated(card: Card | None, settings: StorageSettings) -> bool:
    """Whether the images are to be generated."""
    return card is not None and card.layout == "generated" and settings.features is None


def _readable(
    listing: Listing, store: DecodedStore | None, settings: StorageSettings, log: Callable[[str], None], ranks: Ranks
) -> tuple[ImageFiles, np.ndarray]:
    images, readable = readable_files(listing, store, settings, log, ranks)
    return images, listing.labels if len(readable) == len(listing.labels) else listing.labels[readable]


def readable_files(
    listing: Listing, store: DecodedStore | None, settings: StorageSettings, log: Callable[[str], None], ranks: Ranks
) -> tuple[ImageFiles, np.ndarray]:
    """The images of a listing that can be read, and their numbers in it, int64 in ascending order. Raises UserError."""
    cache = "memory" if settings.cache == "memory" else "none"
    images = ImageFiles(listing.root, listing.paths, cache, reading=settings.reading, store=store)
    found = check_readable(images, settings.max_unreadable, log).tobytes() if ranks.is_main else None
    readable = np.frombuffer(ranks.broadcast(found), dtype=np.int64)
    return images if len(readable) == len(images) else images.take(readable), readable


def _check_every_class(
    labels: np.ndarray,
    classes: tuple[str, ...],
    place: str,
    reference: str,
    is_target: bool = False,
) -> None:
    found = [classes[k] for k in np.unique(labels) if k >= 0]
    check_same_classes(found, classes, place, reference, is_target=is_target)


def _generated(
    card: Card, wanted: Sequence[tuple[str, str]], settings: StorageSettings, seed: int
) -> list[tuple[Images, np.ndarray]]:
    """Images and labels of generated domains."""
    for _, name in wanted:
        card.domain(name)
    per_class = settings.rendered_per_class if isinstance(settings, DataSettings) else 1000
    if isinstance(settings, DataSettings) and settings.target_labelled is not None:
        raise UserError(f"data.target_labelled: the images of {card.title} are not files, so they cannot be named")
    return [digits.domain(name, per_class, seed) for _, name in wanted]
