"""Join scores and human frequencies of the same images. Images are matched by the ends of their paths."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from timm.data import ImageNetInfo

from uda.core.errors import UserError
from uda.core.registry import nearest
from uda.core.statistics import constant
from uda.data.images import SUFFIXES
from uda.hardness.people.human import HumanFrequencies
from uda.hardness.scoring.score_table import ScoreTable

#: A correlation needs at least this many images.
FEWEST = 10
SHOWN = 5
_LEAVE_OUT = "leave it out in `scores`"
_WORDNET = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Joined:
    """Scores and human frequencies of N images."""

    model: str
    scores: Mapping[str, np.ndarray]
    """Arrays (N,) float64 by name."""
    human: HumanFrequencies
    """Frequencies of the same N images."""


def join_human(
    model: str,
    table: ScoreTable,
    human: HumanFrequencies,
    names: Sequence[str] | None,
    reference: str,
    allow_missing: bool = False,
) -> Joined:
    """The images that are in both files, with the chosen scores. Raises UserError if correlations are impossible."""
    chosen = list(table.scores) if names is None else list(names)
    for name in [*chosen, reference]:
        if name not in table.scores:
            known = [*table.scores, *table.others]
            cure = "; name another score in `reference`" if name == reference else ""
            raise UserError(f"{model} has no score '{name}'{nearest(name, known)} (has: {', '.join(known)}){cure}")
    if reference not in chosen:
        chosen.append(reference)
    ids, labels = table.ids, table.labels
    if human.classes is not None and all(_WORDNET.fullmatch(name) for name in human.classes):
        ids, labels = in_wordnet_ids(ids, labels)
    pairs = join(ids, human.ids, (model, "the human file"), allow_missing)
    seen = human.take(pairs.second)
    check_classes(model, [labels[i] for i in pairs.first], seen)
    scores = {name: np.asarray(table.scores[name], dtype=float)[pairs.first] for name in chosen}
    if len(seen) < FEWEST:
        raise UserError(
            f"{model}: {len(seen)} images are in the table and in the human file; at least {FEWEST} are needed"
        )
    if constant(seen.frequencies):
        raise UserError(
            f"{model}: the human frequency is {seen.frequencies[0]:g} for all images, so there is no correlation"
        )
    for name, values in scores.items():
        if not np.isfinite(values).all():
            row = int(pairs.first[np.flatnonzero(~np.isfinite(values))[0]])
            raise UserError(
                f"{model}: '{name}' of {table.ids[row]} is {table.scores[name][row]}; it must be a finite number"
            )
        if constant(values):
            raise UserError(
                f"{model}: '{name}' is {values[0]:g} for all {len(values):,} images, so it has no correlation; "
                f"{'name another score in `reference`' if name == reference else _LEAVE_OUT}"
            )
    return Joined(model, scores, seen)


def in_wordnet_ids(ids: Sequence[str], labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Replace class numbers, the folder names of ImageNetV2, by WordNet ids.

    `v2/7/a.jpeg`, `7` become `v2/n01514668/a.jpeg`, `n01514668`.
    """
    known = {str(number): synset for number, synset in enumerate(ImageNetInfo().label_names())}
    paths = [PurePosixPath(name.replace("\\", "/")) for name in ids]
    renamed = [
        str(path.parent.with_name(known[path.parent.name]) / path.name) if path.parent.name in known else name
        for name, path in zip(ids, paths, strict=True)
    ]
    return renamed, [known.get(label, label) for label in labels]


def check_classes(model: str, labels: Sequence[str], human: HumanFrequencies) -> None:
    """Raise UserError if matched images have different classes, which means that the ids match wrong images.

    Nothing is checked if the two files have no class name in common.
    """
    if human.classes is None or not set(labels) & set(human.classes):
        return
    odd = [row for row, pair in enumerate(zip(labels, human.classes, strict=True)) if pair[0] != pair[1]]
    if odd:
        row = odd[0]
        raise UserError(
            f"{len(odd):,} of {len(labels):,} images have another class in {model} than in the human file: "
            f"{human.ids[row]} has '{labels[row]}' and '{human.classes[row]}'"
        )


@dataclass(frozen=True)
class Pairs:
    """Row numbers of the same images in two lists of ids."""

    first: np.ndarray
    """(M,) int64, ascending."""
    second: np.ndarray
    """(M,) int64."""


def join(first: Sequence[str], second: Sequence[str], names: tuple[str, str], allow_missing: bool = False) -> Pairs:
    """Match images by their ids: `/data/cifar10/test/cat/0000.png`, `test/cat/0000.jpg` and `cat/0000` are the same.

    Ids are compared by the last parts of their paths. The number of parts is the largest with which any two ids match.
    With fewer parts, `cat/0000` would match `dog/0000`. An id with fewer parts matches the id that ends in it. File
    extensions are ignored, except if all images match with their extensions. An id must match exactly one id.

    Args:
        first, second: two lists of ids without duplicates.
        names: names of the lists in messages.
        allow_missing: leave out images that are in one list only.

    Raises:
        UserError: an image is in one list only, an id matches several ids, or no ids match. The message has examples.
    """
    whole = _best_match([[_path(name).parts for name in ids] for ids in (first, second)])
    if len(whole.pairs) == len(first) == len(second):
        best = whole
    else:
        best = _best_match([[_parts(name) for name in ids] for ids in (first, second)])
    if best.unclear:
        lines = [f"{len(best.unclear)} ids match several images by their last {best.depth} parts:"]
        lines += [f"  {'/'.join(key)}" for key in best.unclear[:SHOWN]]
        lines.append(f"{_looks(first, second, names)}; use the same names with the same folders in both")
        raise UserError("\n".join(lines))
    alone = [
        [ids[i] for i in sorted(set(range(len(ids))) - {pair[side] for pair in best.pairs})]
        for side, ids in enumerate((first, second))
    ]
    if not best.pairs or (any(alone) and not allow_missing):
        lines = [
            f"{len(ids):,} of {total:,} images of {name} are not in {other}: {', '.join(ids[:SHOWN])}"
            + ", ..." * (len(ids) > SHOWN)
            for ids, total, name, other in zip(alone, map(len, (first, second)), names, reversed(names), strict=True)
            if ids
        ]
        cure = "`allow_missing` uses only images that are in both" if best.pairs else "no image is in both"
        raise UserError("\n".join([*lines, f"{_looks(first, second, names)}; {cure}"]))
    rows = np.array(sorted(best.pairs), dtype=np.int64)
    return Pairs(rows[:, 0], rows[:, 1])


@dataclass(frozen=True)
class _Match:
    depth: int
    pairs: list[tuple[int, int]]
    unclear: list[tuple[str, ...]]


def _best_match(sides: Sequence[Sequence[tuple[str, ...]]]) -> _Match:
    depths = range(max(len(parts) for side in sides for parts in side), 0, -1)
    matches = (_match(*sides, depth) for depth in depths)
    return next((found for found in matches if found.pairs or found.unclear), _Match(1, [], []))


def _match(first: Sequence[tuple[str, ...]], second: Sequence[tuple[str, ...]], depth: int) -> _Match:
    """Pairs of images with the same last `depth` parts, and the ends that several images share."""
    ends = [[parts[-depth:] for parts in side] for side in (first, second)]
    counts = [Counter(side) for side in ends]
    place = {end: row for row, end in enumerate(ends[1])}
    both = counts[0].keys() & counts[1].keys()
    if not any(len(end) == depth for end in both):
        return _Match(depth, [], [])
    unclear = {end for end in both if counts[0][end] + counts[1][end] > 2}
    pairs = [(row, place[end]) for row, end in enumerate(ends[0]) if end in both and end not in unclear]
    for short_side in (0, 1):
        found, several = _ends_of_longer(ends[short_side], ends[1 - short_side], depth, both)
        pairs += [(short, row) if short_side == 0 else (row, short) for short, row in found]
        unclear |= several
    return _Match(depth, pairs, sorted(unclear))


def _ends_of_longer(
    shorter: Sequence[tuple[str, ...]], longer: Sequence[tuple[str, ...]], depth: int, matched: Set[tuple[str, ...]]
) -> tuple[list[tuple[int, int]], set[tuple[str, ...]]]:
    """Pairs of an id with fewer parts than `depth` and a longer id that ends in it, without ids in `matched`."""
    short = {parts: row for row, parts in enumerate(shorter) if len(parts) < depth and parts not in matched}
    lengths = {len(parts) for parts in short}
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, parts in enumerate(longer):
        if parts not in matched:
            for length in lengths:
                if length < len(parts) and parts[-length:] in short:
                    rows.setdefault(parts[-length:], []).append(row)
    taken = Counter(row for found in rows.values() for row in found)
    clear = {end: found[0] for end, found in rows.items() if len(found) == 1 and taken[found[0]] == 1}
    return [(short[end], row) for end, row in clear.items()], rows.keys() - clear.keys()


def _path(name: str) -> PurePosixPath:
    return PurePosixPath(name.replace("\\", "/"))


def _parts(name: str) -> tuple[str, ...]:
    path = _path(name)
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).parts


def _looks(first: Sequence[str], second: Sequence[str], names: tuple[str, str]) -> str:
    return f"ids look like '{first[0]}' in {names[0]} and like '{second[0]}' in {names[1]}"
