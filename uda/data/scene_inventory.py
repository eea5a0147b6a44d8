"""Compares a card of label maps with the files on disk: counts, pairs, sizes and the values in the maps."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uda.core.errors import UserError
from uda.data.cards import Card, MissingDataError
from uda.data.class_names import sample
from uda.data.generated_scenes import generated_scenes
from uda.data.images import ImageFiles
from uda.data.inventory import Count
from uda.data.label_coding import MOST_CLASSES, LabelCoding, UnknownIdsError
from uda.data.label_maps import MapFiles
from uda.data.scene_files import SceneFolders, ScenePairs, pair_scenes
from uda.data.scenes import IMAGES, MAPS, MapFacts, card_pairs, count_pixels, look_at_maps


@dataclass(frozen=True)
class SceneStock:
    """What is on disk of a card of label maps."""

    counts: list[Count]
    """Numbers of images and label maps, and what is wrong with them."""
    notes: list[str]
    """Lines about sizes and the pixels of each class."""


def take_stock_of_scenes(card: Card, root: str | None, log: Callable[[str], None]) -> SceneStock:
    """Every domain of a card on disk. All label maps are read.

    Args:
        card: the data set.
        root: its folder. None: `Card.find_root` finds it.
        log: gets the progress if there is no terminal.

    Raises:
        UserError: the data set was not found.
    """
    found_root = None if card.layout == "generated" else card.find_root(root)
    stock = SceneStock([], [])
    for name in card.domains:
        if found_root is None:
            _generated(card, name, stock)
        else:
            _on_disk(card, name, found_root, stock, log)
    return stock


def _generated(card: Card, name: str, stock: SceneStock) -> None:
    images, maps = generated_scenes(card.name, name, seed=0)
    stock.counts.append(Count(name, None, card.domains[name].images, len(images)))
    classes = card.classes or ()
    pixels = [count_pixels(maps.read(i).numpy(), len(classes)) for i in range(len(maps))]
    stock.notes.append(_shares(name, classes, pixels))


def _on_disk(card: Card, name: str, root: Path, stock: SceneStock, log: Callable[[str], None]) -> None:
    domain, classes = card.domains[name], card.classes or ()
    try:
        pairs = card_pairs(card, name, root)
    except UserError as error:
        note = error.what if isinstance(error, MissingDataError) else str(error)
        stock.counts.append(Count(name, None, domain.images, 0, note))
        return
    shares = _look(name, pairs, domain.images, card.coding(classes), len(classes), stock, log)
    if shares is not None:
        stock.notes.append(_shares(name, classes, shares))


def take_stock_of_folder(folder: Path, log: Callable[[str], None]) -> SceneStock:
    """A folder of the user's own, with images/ and labels/: pairs, sizes, and the values in the label maps.

    Raises UserError if there are no images.
    """
    maps = folder / MAPS
    pairs = pair_scenes(SceneFolders(folder / IMAGES, maps if maps.is_dir() else None))
    stock = SceneStock([], [])
    coding = LabelCoding.plain(MOST_CLASSES, place="a card of these images")
    pixels = _look("images", pairs, None, coding, MOST_CLASSES, stock, log)
    if pixels is not None:
        values = [str(value) for value in range(MOST_CLASSES)]
        stock.notes.append(_shares("values in the label maps", values, pixels, absent=False))
    return stock


def _look(
    name: str,
    pairs: ScenePairs,
    expected: int | None,
    coding: LabelCoding,
    num_classes: int,
    stock: SceneStock,
    log: Callable[[str], None],
) -> list[np.ndarray] | None:
    """Add what is found of a domain's images and label maps. Gives the pixels of each class in each sound map."""
    paths, missing = pairs.listing.paths, pairs.missing
    stock.counts.append(Count(name, None, expected, len(paths)))
    if pairs.maps is None:
        stock.notes.append(f"{name}: no label maps")
        return None
    note = f"no {sample([pairs.expected[i] for i in missing], 1)}" if missing else ""
    stock.counts.append(Count(name, "label maps", len(paths), len(paths) - len(missing), note))
    held = [i for i, path in enumerate(pairs.maps) if path is not None]
    images = ImageFiles(pairs.listing.root, [paths[i] for i in held])
    maps = MapFiles([pairs.maps[i] for i in held], coding)
    facts = look_at_maps(images, maps, num_classes, log)
    unknown = [(path, fact) for path, fact in zip(maps.paths, facts, strict=True) if fact.unknown]
    if unknown:
        values = sum((Counter(fact.unknown) for _, fact in unknown), Counter())
        told = str(UnknownIdsError(unknown[0][0], dict(sorted(values.items())), maps.coding))
        stock.counts.append(Count(name, "maps of unknown values", 0, len(unknown), told))
    faulty = [fact.problem for fact in facts if fact.problem is not None and not fact.unknown]
    if faulty:
        stock.counts.append(Count(name, "maps that do not fit", 0, len(faulty), faulty[0]))
    sound = [fact for fact in facts if fact.problem is None]
    if pairs.spare:
        stock.notes.append(f"{name}: {len(pairs.spare):,} label maps belong to no image, such as {pairs.spare[0]}")
    if not sound:
        return None
    stock.notes.append(_sizes(name, sound))
    return [np.array(fact.pixels) for fact in sound]


def _sizes(name: str, facts: Sequence[MapFacts]) -> str:
    sizes = Counter(fact.size for fact in facts).most_common()
    shown = ", ".join(f"{width} x {height} ({count:,})" for (height, width), count in sizes[:4])
    more = f" and {len(sizes) - 4} more sizes" if len(sizes) > 4 else ""
    void = sum(not any(fact.pixels) for fact in facts)
    told = f"; {void:,} label maps are void throughout" if void else ""
    return f"{name}: width x height {shown}{more}{told}"


def _shares(name: str, classes: Sequence[str], counts: Sequence[np.ndarray], absent: bool = True) -> str:
    """The share of each class among the pixels that have one, and with `absent` the classes without a pixel."""
    pixels = np.sum(counts, axis=0)
    total = max(1, int(pixels.sum()))
    counted = dict(zip(classes, pixels.tolist(), strict=True))
    shares = [f"{of_class} {100 * count / total:.3g} %" for of_class, count in counted.items() if count]
    without = [of_class for of_class, count in counted.items() if not count]
    told = f"; no pixel of {', '.join(without)}" if without and absent else ""
    return f"{name}: pixels {', '.join(shares) or 'of no class'}{told}"
