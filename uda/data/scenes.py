"""The domains of a segmentation: labelled source scenes, and target images whose label maps are kept separately."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uda.core.distributed import Ranks
from uda.core.errors import UserError
from uda.data.cards import CARDS, Card, load_card
from uda.data.checked import Kept
from uda.data.class_names import closest, read_class_names, sample
from uda.data.domains import Target, check_apart, readable_files, stores_of
from uda.data.generated_scenes import generated_scenes
from uda.data.images import ImageFiles, Images, asked_in_threads
from uda.data.label_coding import VOID, LabelCoding, UnknownIdsError
from uda.data.label_maps import LabelMaps, MapArray, MapFiles, class_palette
from uda.data.listing import list_unlabelled
from uda.data.scene_files import SceneFolders, ScenePairs, pair_scenes
from uda.data.scene_settings import SceneDataSettings
from uda.data.store import DecodedStore, file_stamp, size_on_disk

#: Folders of a user's own domain.
IMAGES, MAPS = "images", "labels"

_UNMEASURED = "; or set data.target_labels=none to adapt without measuring"


@dataclass(frozen=True)
class Scenes:
    """Images with their label maps, in the same order.

    `pixels`: int64 (N, K), how many pixels of each class each scene has.
    """

    images: Images
    maps: LabelMaps
    domain: int = 0
    pixels: np.ndarray | None = None

    def __post_init__(self):
        if len(self.images) != len(self.maps):
            raise ValueError(f"{len(self.images)} images, but {len(self.maps)} label maps")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def checksum(self) -> str:
        """Eight hexadecimal digits of the pixels of each class. A resumed run compares them."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()[:8]


class TargetMaps:
    """The label maps of target images. They are used only for measuring.

    Only `reveal()` gives them, so a search for that word finds every place that uses them.
    """

    __slots__ = ("_checksum", "_maps")

    def __init__(self, maps: LabelMaps, checksum: str = ""):
        self._maps = maps
        self._checksum = checksum

    def __repr__(self) -> str:
        return f"TargetMaps({len(self._maps)} hidden)"

    def __len__(self) -> int:
        return len(self._maps)

    @property
    def checksum(self) -> str:
        """Eight hexadecimal digits. A resumed run compares them to check that the maps are the same."""
        return self._checksum

    def reveal(self) -> LabelMaps:
        """The label maps, in the order of the images."""
        return self._maps


@dataclass(frozen=True)
class SceneDomains:
    """The scenes and classes of a run. `target_maps` is None if the target has no label maps.

    The held-out images are of the target's kind. They are only measured. `colors`: uint8 (K, 3).
    """

    source: Scenes
    target: Target
    target_maps: TargetMaps | None
    held_out: Target | None
    held_out_maps: TargetMaps | None
    classes: tuple[str, ...]
    colors: np.ndarray


class _Place(NamedTuple):
    """Where a domain is: in a card, or at a place of the user's own."""

    key: str
    name: str
    card: Card | None
    domain: str


class _Found(NamedTuple):
    """A domain's images, the label map of each, and how many pixels of each class each has, int64 (N, K)."""

    images: Images
    maps: LabelMaps | None
    pixels: np.ndarray | None


def load_scenes(
    settings: SceneDataSettings, seed: int, log: Callable[[str], None] = print, ranks: Ranks | None = None
) -> SceneDomains:
    """The source, target and held-out scenes that a config names.

    Args:
        settings: domains of cards, or the user's own folders or list files.
        seed: seed of generated scenes. Scenes from files do not depend on it.
        log: is called with lines about what is left out and the like.
        ranks: the processes of a job. Only rank 0 checks which files can be read.

    Returns:
        The domains without unreadable images. Source scenes without any label are left out too. The order is the same
        on any machine.

    Raises:
        UserError: names the file, folder or class, and the cure.
    """
    ranks = ranks or Ranks()
    named = {"data.source": settings.source, "data.target": settings.target, "data.held_out": settings.held_out}
    places = [_place(key, name, settings) for key, name in named.items() if name is not None]
    _check_different(places)
    classes = _classes(places[0], settings)
    codings = [_coding(place, classes, settings, log) for place in places]
    on_disk = {place.key: _pair(place, settings) for place in places if not _is_generated(place)}
    for place in places:
        if place.key in on_disk:
            _check_pairs(place, on_disk[place.key], settings)
    check_apart({f"{place.key} ({place.name})": on_disk[place.key].listing for place in places if place.key in on_disk})
    stores = stores_of([pairs.listing for pairs in on_disk.values()], settings, log) if on_disk else []
    by_key = dict(zip(on_disk, stores, strict=True))
    found = []
    for place, coding in zip(places, codings, strict=True):
        if place.key not in on_disk:
            found.append(_generate(place, coding, len(classes), settings, seed))
        else:
            pairs, store = on_disk[place.key], by_key[place.key]
            found.append(_read(place, pairs, store, coding, len(classes), settings, log, ranks))
    source = _source(places[0], found[0], classes, log)
    target, target_maps = _hidden(places[1], found[1], log)
    held_out, held_out_maps = _hidden(places[2], found[2], log) if len(places) > 2 else (None, None)
    colours: dict[str, Sequence[int]] = {}
    for card in (place.card for place in reversed(places) if place.card is not None):
        colours |= card.colors
    return SceneDomains(source, target, target_maps, held_out, held_out_maps, classes, class_palette(classes, colours))


def _place(key: str, name: str, settings: SceneDataSettings) -> _Place:
    """What a domain's name means. Raises UserError for an unknown card or domain."""
    if settings.dataset is not None and _is_domain_of(card := load_card(settings.dataset), name):
        return _of_card(key, name, card, name)
    path_of_card = re.fullmatch(r"(.+\.ya?ml)(?:/([^/]+))?", name)
    first, _, rest = name.partition("/")
    if path_of_card:
        return _of_card(key, name, load_card(path_of_card[1]), path_of_card[2] or "")
    if first in CARDS or (re.fullmatch("[a-z0-9_]+", first) and Path("datasets", f"{first}.yaml").is_file()):
        return _of_card(key, name, load_card(first), rest)
    return _Place(key, name, None, name)


def _is_domain_of(card: Card, name: str) -> bool:
    """Whether a name must be one of a card's domains, because it cannot be a card or a place."""
    return name in card.domains or not ("/" in name or name in CARDS or Path(name).exists())


def _of_card(key: str, name: str, card: Card, domain: str) -> _Place:
    if card.task != "segmentation":
        cards = ", ".join(CARDS.names_for("segmentation"))
        raise UserError(
            f"{key}: '{card.name}' has a class for each image and no label maps; name another card ({cards}), or write "
            f"./{name} for a folder of your own"
        )
    if not domain:
        if len(card.domains) > 1:
            choices = ", ".join(f"{card.name}/{other}" for other in card.domains)
            raise UserError(f"{key}: '{card.name}' has several domains; name one of them: {choices}")
        domain = next(iter(card.domains))
    card.domain(domain)
    return _Place(key, name, card, domain)


def _check_different(places: Sequence[_Place]) -> None:
    """Raise UserError if two generated domains are the same. Files are compared one by one."""
    generated = [(place.card.name, place.domain) for place in places if _is_generated(place)]
    twice = next((pair for pair in generated if generated.count(pair) > 1), None)
    if twice:
        keys = " and ".join(place.key for place in places if place.card and (place.card.name, place.domain) == twice)
        raise UserError(f"{keys} are both '{'/'.join(twice)}': name different domains")


def _is_generated(place: _Place) -> bool:
    return place.card is not None and place.card.layout == "generated"


def _classes(source: _Place, settings: SceneDataSettings) -> tuple[str, ...]:
    """The classes of a run, in label order."""
    given = settings.classes is not None
    names = read_class_names(settings.classes, "data.classes") if given else None
    if source.card is None:
        if names is None:
            raise UserError(
                f"data.classes: {source.name} has no card, so name the classes of its label maps: the value 0 is the "
                "first, and 255 is void"
            )
        return names
    known = source.card.classes or ()
    if names is None:
        return known
    if unknown := [name for name in names if name not in known]:
        raise UserError(
            f"data.classes: '{unknown[0]}' is not a class of '{source.card.name}'{closest(unknown[0], known)} (known: "
            f"{', '.join(known)})"
        )
    return names


def _coding(
    place: _Place, classes: tuple[str, ...], settings: SceneDataSettings, log: Callable[[str], None]
) -> LabelCoding:
    """How a domain's label maps are read."""
    if place.card is None:
        return LabelCoding.plain(len(classes), f"a card, and name its domain by {place.key}")
    known = place.card.classes or ()
    lacking = [name for name in classes if name not in known]
    if len(lacking) == len(classes) and (settings.target_labels != "none" or place.key == "data.source"):
        otherwise = "" if place.key == "data.source" else _UNMEASURED
        raise UserError(
            f"{place.key}: '{place.card.name}' has none of the run's classes ({sample(classes)}); it has "
            f"{sample(known)}: name the common classes by data.classes{otherwise}"
        )
    if lacking and place.key != "data.source":
        log(f"{place.key}: the label maps of '{place.card.name}' do not have {sample(lacking, 20)}")
    if _is_generated(place):
        numbers = {name: number for number, name in enumerate(classes)}
        ids = {value: numbers[name] for value, name in enumerate(known) if name in numbers}
        ignore = frozenset({VOID, *(set(range(len(known))) - set(ids))})
        return LabelCoding(ids, ignore, place=f"the card '{place.card.name}'")
    return place.card.coding(classes)


def _pair(place: _Place, settings: SceneDataSettings) -> ScenePairs:
    """The images of a domain on disk, and their label maps."""
    wants_maps = place.key == "data.source" or settings.target_labels != "none"
    if place.card is not None:
        return card_pairs(place.card, place.domain, _root(place.card, settings), wants_maps)
    root = Path(settings.root) if settings.root is not None else None
    path = Path(place.name)
    if root is not None and not path.is_absolute() and os.path.exists(root / path):
        path = root / path
    if path.suffix.lower() == ".txt" and not path.is_dir():
        return _own_list(place.key, path, root, wants_maps)
    if not path.is_dir():
        cards = ", ".join(f"{name}/..." for name in CARDS.names_for("segmentation"))
        raise UserError(
            f"{place.key}: no such folder: {path}; give a folder with {IMAGES}/ and {MAPS}/, a .txt list of `image "
            f"map` lines, or the domain of a card ({cards})"
        )
    images, maps = path / IMAGES, path / MAPS
    if place.key == "data.source" and not (images.is_dir() and maps.is_dir()):
        lacking = f"{IMAGES}/" if not images.is_dir() else f"{MAPS}/"
        raise UserError(
            f"{place.key}: {path} has no folder {lacking}; a source needs its images in {IMAGES}/ and a label map of "
            f"the same name for each in {MAPS}/"
        )
    if not images.is_dir():
        listing = list_unlabelled(path)
        return ScenePairs(listing, None)
    return pair_scenes(SceneFolders(images, maps if wants_maps and maps.is_dir() else None))


def _own_list(key: str, file: Path, root: Path | None, wants_maps: bool) -> ScenePairs:
    """The scenes of a user's own list. It may name images by the name that they share with their maps."""
    if not file.is_file():
        raise UserError(f"{key}: no such list file: {file}")
    base = root or file.parent
    images, maps = base / IMAGES, base / MAPS
    if images.is_dir():
        folders = SceneFolders(images, maps if wants_maps and maps.is_dir() else None, bases=(base,))
    else:
        folders = SceneFolders(base, None, bases=(base,), looked_through=False)
    pairs = pair_scenes(folders, file)
    return pairs if wants_maps else ScenePairs(pairs.listing, None)


def _root(card: Card, settings: SceneDataSettings) -> Path:
    """A card's folder on disk."""
    if settings.root is not None and (Path(settings.root) / card.folder).is_dir():
        return Path(settings.root) / card.folder
    return card.find_root(settings.root)


def card_pairs(card: Card, name: str, root: Path, maps: bool = True) -> ScenePairs:
    """The scenes of a card's domain. Raises UserError if its images are not there, or its maps, unless not wanted."""
    domain = card.domain(name)
    folder, file = card.find_domain(name, root)
    of_maps = root / domain.maps if maps and domain.maps is not None else None
    return pair_scenes(SceneFolders(folder, of_maps, domain.image_ending, domain.map_ending, bases=(root,)), file)


def _check_pairs(place: _Place, pairs: ScenePairs, settings: SceneDataSettings) -> None:
    """Raise UserError if label maps are missing. A target may lack all of them if it has no place for them."""
    if place.key == "data.source":
        if pairs.maps is None:
            raise UserError(f"{place.key}: {place.name} has no label maps, but a source needs one for each image")
        pairs.check(place.key, place.name)
    else:
        pairs.check(place.key, place.name, _UNMEASURED)


def _generate(place: _Place, coding: LabelCoding, k: int, settings: SceneDataSettings, seed: int) -> _Found:
    images, maps = generated_scenes(place.card.name, place.domain, seed)
    if place.key != "data.source" and settings.target_labels == "none":
        return _Found(images, None, None)
    if [*coding.ids.items()] != [(number, number) for number in range(k)]:
        maps = MapArray(np.stack([coding.train_ids(maps.read(i).numpy(), place.name) for i in range(len(maps))]))
    return _Found(images, maps, np.stack([count_pixels(maps.read(i).numpy(), k) for i in range(len(maps))]))


def count_pixels(numbers: np.ndarray, num_classes: int) -> np.ndarray:
    """How many pixels of a map of train ids are of each class, uint8 (H, W) -> int64 (K,). Void does not count."""
    return np.bincount(numbers.ravel(), minlength=VOID + 1)[:num_classes]


def _read(
    place: _Place,
    pairs: ScenePairs,
    store: DecodedStore | None,
    coding: LabelCoding,
    num_classes: int,
    settings: SceneDataSettings,
    log: Callable[[str], None],
    ranks: Ranks,
) -> _Found:
    """The readable scenes of a domain on disk."""
    for line in pairs.listing.notes:
        log(line)
    images, readable = readable_files(pairs.listing, store, settings, log, ranks)
    if pairs.maps is None:
        return _Found(images, None, None)
    paths = [pairs.maps[i] for i in readable.tolist()]
    maps = MapFiles(paths, coding, "memory" if settings.cache == "memory" else "none")
    empty = {"kept": np.empty(0, np.int64), "pixels": np.empty((0, num_classes), np.int64)}
    told = ranks.broadcast_arrays(_checked(place, images, maps, num_classes, settings, log) if ranks.is_main else empty)
    kept, pixels = told["kept"], told["pixels"]
    if len(kept) == len(images):
        return _Found(images, maps, pixels)
    return _Found(images.take(kept), maps.take(kept), pixels)


class MapFacts(NamedTuple):
    """What a look at a label map's file found."""

    size: tuple[int, int] | None
    """Height and width."""
    pixels: tuple[int, ...] | None
    """Number of pixels of each class."""
    problem: str | None = None
    """Why it cannot be used: it cannot be read, or its size is not that of the image."""
    unknown: Mapping[int, int] = {}
    """The values that the coding does not know, each with its number of pixels."""


def look_at_maps(images: ImageFiles, maps: MapFiles, num_classes: int, log: Callable[[str], None]) -> list[MapFacts]:
    """The facts about every label map. A map that an earlier start could read is not read again until it changes."""
    coding = maps.coding
    rules = {
        "ids": sorted(coding.ids.items()),
        "ignore": sorted(coding.ignore),
        "channel": coding.channel,
        "classes": num_classes,
    }
    root = Path(os.path.commonpath([os.path.dirname(path) or "." for path in maps.paths])) if maps.paths else Path()
    kept = Kept(root, {"label maps": rules})
    rows: dict[str, tuple[tuple[int, int], tuple]] = {}

    def look(i: int) -> MapFacts:
        path = maps.paths[i]
        name = os.path.relpath(path, root)
        try:
            stamp = file_stamp(os.stat(path))
        except OSError:
            stamp = None
        row = kept.row(name, stamp) if stamp is not None and maps.cache != "memory" else None
        if row is None:
            try:
                numbers = maps.read(i).numpy()
            except UnknownIdsError as error:
                return MapFacts(None, None, str(error), error.values)
            except UserError as error:
                return MapFacts(None, None, str(error))
            row = [*numbers.shape, count_pixels(numbers, num_classes).tolist()]
            if stamp is not None:
                rows[name] = stamp, tuple(row)
        height, width, pixels = row
        facts = MapFacts((height, width), tuple(pixels))
        try:
            size = size_on_disk(images.root / images.ids[i], images.reading)
        except Exception as error:  # broken bytes may raise anything
            return facts._replace(problem=f"{images.root / images.ids[i]}: {error}")
        if size == facts.size:
            return facts
        return facts._replace(
            problem=f"{path}: the label map has {width} x {height} pixels, but its image {images.ids[i]} has "
            f"{size[1]} x {size[0]}; both must be of one size"
        )

    facts = asked_in_threads(look, len(maps), "checking label maps", log)
    kept.keep_rows(rows)
    return facts


def _checked(
    place: _Place,
    images: ImageFiles,
    maps: MapFiles,
    num_classes: int,
    settings: SceneDataSettings,
    log: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """The numbers of the scenes that can be used, and their pixels of each class. Raises UserError.

    The source is used without scenes whose maps have a fault, as without images that have one. Of the target no image
    is left out because of its label map.
    """
    facts = look_at_maps(images, maps, num_classes, log)
    unknown = [(path, fact) for path, fact in zip(maps.paths, facts, strict=True) if fact.unknown]
    is_source = place.key == "data.source"
    if unknown:
        raise UserError(unknown_values(place.key, unknown, maps.coding) + ("" if is_source else _UNMEASURED))
    faulty = [fact.problem for fact in facts if fact.problem is not None]
    if faulty:
        more = f"; and {len(faulty) - 1} more" if len(faulty) > 1 else ""
        if not is_source:
            raise UserError(f"{place.key}: {faulty[0]}{more}{_UNMEASURED}")
        if len(faulty) > settings.max_unreadable * len(facts) or len(faulty) == len(facts):
            raise UserError(
                f"{place.key}: {len(faulty)} of {len(facts)} label maps cannot be used, more than data.max_unreadable="
                f"{settings.max_unreadable:g} allows: {faulty[0]}{more}"
            )
        for problem in faulty:
            log(f"left out scene: {problem}")
    kept = np.array([i for i, fact in enumerate(facts) if fact.problem is None], dtype=np.int64)
    pixels = np.array([facts[i].pixels for i in kept.tolist()], dtype=np.int64).reshape(len(kept), num_classes)
    return {"kept": kept, "pixels": pixels}


def unknown_values(key: str, found: Sequence[tuple[str, MapFacts]], coding: LabelCoding) -> str:
    """A message about label maps with values that the coding does not know."""
    values: dict[int, int] = {}
    for _, fact in found:
        for value, count in fact.unknown.items():
            values[value] = values.get(value, 0) + count
    counted = dict(sorted(values.items()))
    return f"{key}: in {len(found):,} label maps: {UnknownIdsError(found[0][0], counted, coding)}"


def _source(place: _Place, found: _Found, classes: tuple[str, ...], log: Callable[[str], None]) -> Scenes:
    """The source without scenes that have no label. Raises UserError if no pixel is of some class."""
    empty = found.pixels.sum(1) == 0
    if empty.all():
        raise UserError(f"{place.key}: {place.name}: no pixel of its label maps has a class of the run")
    images, maps, pixels = found
    if empty.any():
        names = [images.ids[i] for i in np.flatnonzero(empty)]
        log(f"{place.key}: {len(names):,} scenes are void throughout and are left out: {sample(names, 3)}")
        kept = np.flatnonzero(~empty)
        images, maps, pixels = images.take(kept), maps.take(kept), pixels[kept]
    if lacking := [name for name, count in zip(classes, pixels.sum(0).tolist(), strict=True) if not count]:
        others = [name for name in classes if name not in lacking]
        raise UserError(
            f"{place.key}: {place.name}: no pixel is of class {sample(lacking, 12)}; name the classes without it: "
            f"data.classes=[{','.join(others)}]"
        )
    return Scenes(images, maps, 0, pixels)


def _hidden(place: _Place, found: _Found, log: Callable[[str], None]) -> tuple[Target, TargetMaps | None]:
    """The images of a target, and their label maps if there are any."""
    target = Target(found.images)
    if found.maps is None:
        return target, None
    empty = int((found.pixels.sum(1) == 0).sum())
    if empty == len(found.pixels):
        raise UserError(f"{place.key}: {place.name}: no pixel of its label maps has a class of the run{_UNMEASURED}")
    if empty:
        log(f"{place.key}: {empty:,} label maps are void throughout, so these images are not measured")
    return target, TargetMaps(found.maps, hashlib.sha256(found.pixels.tobytes()).hexdigest()[:8])
