"""Write a study's results for a repository: CSVs, a document's tables made from them, and the document's figures."""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uda.core.errors import UserError
from uda.core.files import atomic_path, write_text
from uda.core.statistics import p_text
from uda.hardness.dynamics.dynamics import CORRELATED
from uda.report.findings import Row, write_rows
from uda.report.markdown import has_place, insert_markdown, markdown_table
from uda.tables import read_csv

Record = Mapping[str, str]


def publish(results: Mapping[str, Sequence[Row]], figures: Path, folder: Path, document: Path) -> None:
    """Write the CSVs, fill the document's tables from them, and copy the figures that it shows.

    Args:
        results: rows by the name of the CSV, which is also the name of its block in the document.
        figures: folder of the study's figures.
        folder: folder of the CSVs.
        document: a Markdown file with `<!-- table NAME -->` and `<!-- end NAME -->`. Each figure that it shows is
            copied to its place as PNG and as SVG.

    Raises:
        UserError: the document shows a figure that the study did not make; also as `require_places`.
    """
    require_places(document, list(results))
    text = document.read_text(encoding="utf-8")
    rounded = {n: [{key: _rounded(value) for key, value in row.items()} for row in rows] for n, rows in results.items()}
    for name, rows in rounded.items():
        records = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
        text = insert_markdown(text, name, _MARKDOWN[name](records))
    shown = both_forms(figures_of(text))
    missing = [name for name in shown if not (figures / Path(name).name).is_file()]
    if missing:
        raise UserError(f"{document}: the study made no figure {', '.join(missing)}")
    for name, rows in rounded.items():
        write_rows(folder / f"{name}.csv", rows)
    for name in shown:
        target = document.parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as path:
            shutil.copyfile(figures / target.name, path)
    write_text(document, text)


def require_places(document: Path, names: Sequence[str]) -> None:
    """Raise UserError if a document does not have exactly these tables of a study, each once."""
    if not document.is_file():
        raise UserError(
            f"`document`: no such file: {document}; it must have the lines <!-- table NAME --> and <!-- end NAME --> "
            f"for each of {', '.join(names)}"
        )
    text = document.read_text(encoding="utf-8")
    for name in names:
        insert_markdown(text, name, "")
    for name in _MARKDOWN.keys() - set(names):
        if has_place(text, name):
            raise UserError(f"{document}: has a block for table '{name}', which this study does not make")


def require_own_results(folder: Path, runs: Sequence[str]) -> None:
    """Raise UserError if a folder has the CSVs of a study with other runs only, because they would be lost."""
    path = folder / "hardness_training.csv"
    others = _distinct(read_csv(path), "run") if path.is_file() else []
    if others and not set(others) & set(runs):
        raise UserError(f"`results`: {folder} has CSVs of other runs, {', '.join(others)}; name another folder")


def _rounded(value: Any) -> Any:
    """A number with six digits. Further digits differ between machines."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def figures_of(markdown: str) -> list[str]:
    """Paths of the figures that a document shows or links to, relative to the document."""
    paths = re.findall(r"\]\((?!\w+:)([^)\s]+\.(?:png|svg))\)", markdown)
    return list(dict.fromkeys(paths))


def both_forms(figures: Sequence[str]) -> list[str]:
    """The figures, each as PNG and as SVG."""
    other = {".png": ".svg", ".svg": ".png"}
    paths = [path for name in figures for path in (name, Path(name).with_suffix(other[Path(name).suffix]).as_posix())]
    return list(dict.fromkeys(paths))


def blocks_of(folder: Path) -> dict[str, str]:
    """The tables of all existing CSVs, by the name of the block."""
    paths = {name: folder / f"{name}.csv" for name in _MARKDOWN}
    return {name: _MARKDOWN[name](read_csv(path)) for name, path in paths.items() if path.is_file()}


def _distinct(records: Sequence[Record], key: str) -> list[str]:
    return list(dict.fromkeys(record[key] for record in records))


def claims_markdown(records: Sequence[Record]) -> str:
    """The table of claims, one row per claim, with its rule and its figure."""
    rows = [
        [f"{r['claim']} ([figure](figures/{r['figure']}.png))", f"**{r['verdict']}**", r["rule"], r["evidence"]]
        for r in records
    ]
    return markdown_table(["Claim", "Verdict", "Rule", "Measured"], rows)


def reference_of(records: Sequence[Record]) -> str:
    """The score that the others are compared with: the only score without a difference."""
    (reference,) = set(_distinct(records, "score")) - {r["score"] for r in records if r["difference"]}
    return reference


def correlations_markdown(records: Sequence[Record]) -> str:
    """Spearman's rho with HSF, one row per score and one column per model, and AVH minus the reference."""
    models, scores = _distinct(records, "model"), _distinct(records, "score")
    found = {(r["score"], r["model"]): r for r in records}
    rows = [
        [score, *(_interval(found[score, m], "rho", "bootstrap_low", "bootstrap_high") for m in models)]
        for score in scores
    ]
    reference = reference_of(records)
    ahead = [found["avh", model] for model in models]
    cells = [_interval(r, "difference", "difference_low", "difference_high", "+.3f") for r in ahead]
    rows.append([f"avh minus {reference}", *cells])
    rows.append(["p (Meng, Rosenthal and Rubin)", *(p_text(float(r["meng_p"])) for r in ahead)])
    text = (
        "Spearman's rho with HSF and its 95 % bootstrap interval. The sign of rho is reversed for scores that are "
        "large for hard images."
    )
    return f"{text}\n\n{markdown_table(['Score', *models], rows)}"


def bins_markdown(records: Sequence[Record]) -> str:
    """Spearman's rho within bins of HSF: one row per model and bin, one column per score of the paper's claims."""
    scores = [name for name in _distinct(records, "score") if name in CORRELATED or name == reference_of(records)]
    found = {(r["model"], r["bin"], r["score"]): r for r in records}
    places = dict.fromkeys((r["model"], r["bin"]) for r in records)
    rows = []
    for place in places:
        own = [found[(*place, score)] for score in scores]
        cells = [_interval(r, "rho", "bootstrap_low", "bootstrap_high", ".2f") if r["rho"] else "-" for r in own]
        ahead = found[(*place, "avh")]
        p = p_text(float(ahead["meng_p"])) if ahead["meng_p"] else "-"
        rows.append([*place, own[0]["n"], *cells, p])
    text = "Spearman's rho within a bin of HSF and its 95 % bootstrap interval. p: AVH against the reference (Meng)."
    return f"{text}\n\n{markdown_table(['Model', 'HSF', 'images', *scores, 'p'], rows)}"


def training_markdown(records: Sequence[Record]) -> str:
    """The table of means after the last epoch, one row per run."""
    head = list(records[0])
    return markdown_table(head, [[r[head[0]], *(f"{float(r[key]):.3f}" for key in head[1:])] for r in records])


def plateaus_markdown(records: Sequence[Record]) -> str:
    """Plateau epochs, one row per run and share of the change that counts as near."""
    names = _distinct(records, "quantity")
    found = {(r["run"], r["near, %"], r["quantity"]): r for r in records}
    places = dict.fromkeys((r["run"], r["near, %"]) for r in records)
    rows = [
        [
            run,
            f"{float(near):g}",
            *(_interval(found[run, near, n], "plateau epoch", "low", "high", ".1f") for n in names),
        ]
        for run, near in places
    ]
    return markdown_table(["Run", "near, %", *(f"plateau epoch of {name}" for name in names)], rows)


def degraded_markdown(records: Sequence[Record]) -> str:
    """How well each score follows the levels of degradation, one row per model and degradation."""
    scores = _distinct(records, "score")
    found = {(r["model"], r["degradation"], r["score"]): r for r in records}
    places = dict.fromkeys((r["model"], r["degradation"]) for r in records)
    rows = []
    for place in places:
        cells = [f"{float(found[(*place, score)]['spearman']):.3f}" for score in scores]
        rows.append([*place, *cells, _interval(found[(*place, "avh")], *_LESS_CONFIDENCE, "+.3f")])
    text = (
        "Rank correlation of level and score, mean over the images. 1 means harder with every level. Last column: "
        "AVH's correlation minus confidence's, paired by image, with its 95 % interval."
    )
    return f"{text}\n\n{markdown_table(['Model', 'degradation', *scores, 'avh minus confidence'], rows)}"


_LESS_CONFIDENCE = ("less_confidence", "less_confidence_low", "less_confidence_high")


def _interval(record: Record, key: str, low: str, high: str, form: str = ".3f") -> str:
    return f"{float(record[key]):{form}} [{float(record[low]):{form}}, {float(record[high]):{form}}]"


_MARKDOWN: dict[str, Callable[[Sequence[Record]], str]] = {
    "hardness": correlations_markdown,
    "hardness_bins": bins_markdown,
    "hardness_claims": claims_markdown,
    "hardness_training": training_markdown,
    "hardness_plateaus": plateaus_markdown,
    "hardness_degraded": degraded_markdown,
}
