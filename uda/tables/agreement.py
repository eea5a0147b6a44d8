"""Agreement of a row's runs that differ by their seed alone: a score of a recipe that needs no target labels.

Two networks of the same recipe and other seeds disagree on about as many images as each of them gets wrong, if each is
calibrated as a class of models (Jiang et al., Assessing Generalization of SGD via Disagreement, ICLR 2022). The score
depends on predicted classes alone, so recipes with logits of other scales can be compared. Networks that have collapsed
agree too: compare it with other scores.
"""

import csv
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

import numpy as np

from uda.core.files import write_text
from uda.evaluation.prediction_table import PREDICTIONS
from uda.report.markdown import markdown_table
from uda.tables.definition import name_of
from uda.tables.job import Job
from uda.tables.ledger import Run, read_csv, to_csv

COLUMNS = ("row", "source", "target", "seeds", "digests", "agreement")


def between_seeds(jobs: Iterable[Job]) -> list[dict[str, object]]:
    """For each row and pair, the share of images with the same predicted class, mean over pairs of seeds.

    `jobs`: finished runs. A row and pair with fewer than two of them is left out. Two runs that predicted different
    images are not compared.
    """
    found: dict[tuple[str, str, str], dict[tuple[int, str], np.ndarray]] = {}
    for job in jobs:
        path = job.folder / PREDICTIONS
        if path.is_file():
            with open(path, encoding="utf-8", newline="") as file:
                classes = np.array([row["prediction"] for row in csv.DictReader(file)])
            found.setdefault((job.row.name, *job.pair), {})[job.seed, job.digest] = classes
    records = []
    for place, runs in found.items():
        two = itertools.combinations(runs.values(), 2)
        if shares := [float((one == other).mean()) for one, other in two if len(one) == len(other)]:
            seeds, digests = (" ".join(map(str, column)) for column in zip(*sorted(runs), strict=True))
            records.append(dict(zip(COLUMNS, (*place, seeds, digests, mean(shares)), strict=True)))
    return records


def update_agreement(path: Path, jobs: Sequence[Job], rows: Sequence[str], digests: Mapping[Run, str]) -> None:
    """Write the agreement of the finished runs `jobs` to a CSV, in the order of `rows`.

    An entry of more runs stays, such as that of folders that are gone, and entries of rows that are gone are removed.
    `digests`: the current recipe of each known run. Runs of another recipe do not count.
    """

    def count(record: Mapping[str, object]) -> int:
        place, seeds, made = tuple(record[key] for key in COLUMNS[:3]), record["seeds"], record.get("digests") or ""
        runs = zip(str(seeds).split(), str(made).split(), strict=False)  # an older version wrote no digests
        return sum(digests.get((*place, seed), digest) == digest for seed, digest in runs)

    kept = {tuple(record[key] for key in COLUMNS[:3]): record for record in (read_csv(path) if path.is_file() else [])}
    for record in between_seeds(jobs):
        key = tuple(str(record[name]) for name in COLUMNS[:3])
        if key not in kept or count(record) >= count(kept[key]):
            kept[key] = record
    order = {row: number for number, row in enumerate(rows)}
    found = sorted((record for record in kept.values() if record["row"] in order), key=lambda r: order[r["row"]])
    if found:
        write_text(path, to_csv(found, COLUMNS))


def agreement_markdown(records: Sequence[Mapping[str, str]]) -> str:
    """The agreement of each row, mean over pairs; empty without records."""
    if not records:
        return ""
    pairs = list(dict.fromkeys((record["source"], record["target"]) for record in records))
    by_place = {(record["row"], (record["source"], record["target"])): record for record in records}
    lines = []
    for row in dict.fromkeys(record["row"] for record in records):
        own = [by_place.get((row, pair)) for pair in pairs]
        known = [float(record["agreement"]) for record in own if record]
        cells = ["" if record is None else f"{100 * float(record['agreement']):.1f}" for record in own]
        lines.append([row, *cells, *([f"{100 * mean(known):.1f}"] * (len(pairs) > 1))])
    text = (
        "Agreement between seeds: share of target images, in %, that two final models of the same recipe and different "
        "seeds give the same class, mean over the pairs of seeds. It needs no labels."
    )
    return f"{text}\n\n{markdown_table(['Method', *map(name_of, pairs), *(['mean'] * (len(pairs) > 1))], lines)}"
