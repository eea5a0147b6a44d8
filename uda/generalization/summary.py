"""A study: some configs, each with every domain left out in turn, and what all their runs come to."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uda.core.errors import UserError
from uda.core.files import write_json, write_text
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import names_of
from uda.generalization.page import CHOICES, hardness_seen, render_summary
from uda.report.terminal import percent
from uda.training.records import read_results
from uda.training.run_folder import RunFolder

#: Longer than this, the names of many configs give way to a digest in a file's name.
_LONGEST_STEM = 120


@dataclass(frozen=True)
class FinishedRun:
    """A run that has its results, as its folder tells of it."""

    config: GeneralizationConfig
    results: dict[str, Any]
    final: dict[str, Any]
    """Record of the last report."""


def runs_of(configs: Sequence[GeneralizationConfig]) -> list[GeneralizationConfig]:
    """A config for each run: with its own target, or with each domain of its in turn.

    Raises:
        UserError: the configs have different domains, or two runs share a folder.
    """
    for config in configs[1:]:
        if set(names_of(config)) != set(names_of(configs[0])) or config.data.dataset != configs[0].data.dataset:
            raise UserError(
                f"{configs[0].name} and {config.name} have different domains: one average over both would mean "
                "nothing; give them to commands of their own"
            )
    runs = [
        config.model_copy(update={"target": name})
        for config in configs
        for name in ([config.target] if config.target else names_of(config))
    ]
    owners: dict[Path, GeneralizationConfig] = {}
    for run in runs:
        other = owners.setdefault(run.folder, run)
        if other is not run:
            missing = "{target}" if other.name == run.name and other.target != run.target else "{name}"
            raise UserError(f"output: two runs would share the folder {run.folder}; put {missing} into it")
    return runs


def finished_runs(config: GeneralizationConfig) -> dict[str, FinishedRun]:
    """The runs of a config that have their results, by unseen domain, whichever command has made them.

    Raises UserError where the results of one are broken.
    """
    found = {}
    for name in names_of(config):
        run = config.model_copy(update={"target": name})
        try:
            folder = RunFolder(run)
        except UserError:  # it is another config's
            continue
        if folder.results.is_file():
            try:
                results, rounds = read_results(folder.results)
            except UserError as error:
                raise UserError(f"{error}; give the command of {config.name} with target={name} again") from None
            found[name] = FinishedRun(run, results, rounds[-1])
    return found


def summarise(study: Sequence[tuple[GeneralizationConfig, dict[str, FinishedRun]]]) -> dict[str, Any]:
    """The summary of some configs and their finished runs, as its JSON file holds it.

    Returns:
        `targets`: all domains; `rows`, one a config: `config`, `method`, `loss`, `loss_options`, `seed`; for each of
        `final`, `validation_choice`, `oracle_best` the accuracy on each unseen domain in `by_target`, None where no
        run is finished, and their `average`, None unless all are there; `per_class` accuracy of the final model by
        target; `hardness` by target, `seen` (held out) and `unseen`, as `evaluation.hardness` gives it; `folders`.
    """
    targets = names_of(study[0][0])
    return {"targets": targets, "rows": [_row(config, runs, targets) for config, runs in study]}


def _row(config: GeneralizationConfig, runs: dict[str, FinishedRun], targets: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "config": config.name,
        "method": config.method,
        "loss": config.model.loss,
        "loss_options": config.model.loss_options,
        "seed": config.seed,
    }
    for choice in CHOICES:
        reached = {name: runs[name].results[choice]["overall"] if name in runs else None for name in targets}
        whole = None not in reached.values()
        row[choice] = {"by_target": reached, "average": float(np.mean(list(reached.values()))) if whole else None}
    ordered = {name: runs[name] for name in targets if name in runs}
    row["per_class"] = {name: run.final["accuracy"]["per_class"] for name, run in ordered.items()}
    row["hardness"] = {
        name: {"seen": hardness_seen(run.final), "unseen": run.final["hardness"]} for name, run in ordered.items()
    }
    row["folders"] = {name: run.config.folder.as_posix() for name, run in ordered.items()}
    return row


def summary_lines(summary: dict[str, Any]) -> Iterable[str]:
    """The three tables of method x unseen domain for the terminal."""
    columns, rows = [*summary["targets"], "average"], summary["rows"]
    names = max(len(row["config"]) for row in rows) + 2
    widths = [max(8, len(column) + 2) for column in columns]
    yield "accuracy on each domain, left out in turn, % (oracle):"
    for choice, (title, note) in CHOICES.items():
        yield f"{title}: {note}"
        head = "".join(f"{column:>{width}}" for column, width in zip(columns, widths, strict=True))
        yield " " * (2 + names) + head
        for row in rows:
            cells = (*row[choice]["by_target"].values(), row[choice]["average"])
            line = "".join(f"{percent(cell):>{width}}" for cell, width in zip(cells, widths, strict=True))
            yield f"  {row['config']:<{names}}{line}"


def summary_file(configs: Sequence[GeneralizationConfig]) -> Path:
    """Where the summary of some configs lies, without an ending: in the folder that holds all their runs' folders.

    `runs/<name>/summary_seed0` for one config, `runs/<what their names share>_<a>_and_<b>_seed0` for several.
    """
    folders = [
        config.model_copy(update={"target": name}).folder.parent for config in configs for name in names_of(config)
    ]
    seeds = "_".join(str(seed) for seed in sorted({config.seed for config in configs}))
    stem = "summary" if len(configs) == 1 else _joined([config.name for config in configs])
    return Path(os.path.commonpath([folder.absolute() for folder in folders])) / f"{stem}_seed{seeds}"


def _joined(names: Sequence[str]) -> str:
    words = [name.split("_") for name in names]
    alike = 0
    while all(len(own) > alike + 1 and own[alike] == words[0][alike] for own in words):
        alike += 1
    shared, own = "_".join(words[0][:alike]), ["_".join(parts[alike:]) for parts in words]
    stem = "_".join(part for part in (shared, "_and_".join(own)) if part)
    if len(stem) <= _LONGEST_STEM:
        return stem
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
    return "_".join(part for part in (shared[:_LONGEST_STEM], f"{len(names)}_configs_{digest}") if part)


def write_summary(configs: Sequence[GeneralizationConfig], log: Callable[[str], None] = print) -> Path | None:
    """Write and print what all finished runs of some configs come to: a JSON file and, if any has pages, a page.

    Returns:
        The JSON file; None where there are not two runs to put side by side.
    """
    study = [(config, finished_runs(config)) for config in configs]
    if sum(len(runs) for _, runs in study) < 2:
        return None
    summary = summarise(study)
    for line in summary_lines(summary):
        log(line)
    file = summary_file(configs)
    path = file.with_name(f"{file.name}.json")
    written = [path]
    write_json(path, summary)
    if any(config.report.page for config in configs):
        written.append(file.with_name(f"{file.name}.html"))
        links = {
            config.name: {
                name: os.path.relpath(run.config.folder / "report.html", file.parent).replace(os.sep, "/")
                for name, run in runs.items()
                if (run.config.folder / "report.html").is_file()
            }
            for config, runs in study
        }
        write_text(written[-1], render_summary(configs, summary, links))
    log(f"summary: {', '.join(os.path.relpath(path) for path in written)}")
    return path
