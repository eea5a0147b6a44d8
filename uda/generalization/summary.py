"""A study: several configs, each with every domain left out in turn, and the summary of all runs."""

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
from uda.generalization.results import CHOICES, hardness_seen
from uda.generalization.summary_page import render_summary
from uda.report.terminal import percent
from uda.training.records import read_results
from uda.training.run_folder import RunFolder

#: If the names of several configs make a longer file name, a digest replaces them.
_LONGEST_STEM = 120


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, read from its folder."""

    config: GeneralizationConfig
    results: dict[str, Any]
    final: dict[str, Any]
    """Record of the last report."""


def runs_of(configs: Sequence[GeneralizationConfig]) -> list[GeneralizationConfig]:
    """One config per run. A config without a target gives one run for each of its domains.

    Raises:
        UserError: the configs have different domains, or two runs share a folder.
    """
    for config in configs[1:]:
        if set(names_of(config)) != set(names_of(configs[0])) or config.data.dataset != configs[0].data.dataset:
            raise UserError(
                f"{configs[0].name} and {config.name} have different domains, so their averages cannot be compared; "
                "run them in separate commands"
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
    """The finished runs of a config by unseen domain. They may come from earlier commands.

    Raises:
        UserError: the results of a run are broken.
    """
    found = {}
    for name in names_of(config):
        run = config.model_copy(update={"target": name})
        try:
            folder = RunFolder(run)
        except UserError:  # the folder belongs to another config
            continue
        if folder.results.is_file():
            try:
                results, rounds = read_results(folder.results)
            except UserError as error:
                raise UserError(f"{error}; give the command of {config.name} with target={name} again") from None
            found[name] = FinishedRun(run, results, rounds[-1])
    return found


def summarise_runs(study: Sequence[tuple[GeneralizationConfig, dict[str, FinishedRun]]]) -> dict[str, Any]:
    """The summary of several configs and their finished runs, as in its JSON file.

    Returns:
        `targets` (all domains) and `rows`, one per config. A row has `config`, `method`, `loss`, `loss_options`,
        `seed` and `folders`. `final`, `validation_choice` and `oracle_best` have the accuracy on each unseen domain in
        `by_target`, None without a finished run, and their `average`, None if a run is missing. `per_class` has the
        final model's accuracy by target. `hardness` has, by target, AVH on `seen` (held-out) and `unseen` images, as
        `uda.evaluation.accuracy.hardness` returns it.
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


def runs_lines(summary: dict[str, Any]) -> Iterable[str]:
    """The lines of the three tables, config by unseen domain, for the terminal."""
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
    """Path of the summary of several configs, without a file extension. It is in the common parent of the run folders.

    `runs/<name>/summary_seed0` for one config, `runs/<common part of the names>_<a>_and_<b>_seed0` for several.
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
    """Print the summary of all finished runs of several configs, and write it as JSON and as a page.

    The page is written if `report.page` of any config is true.

    Returns:
        The JSON file; None if fewer than two runs are finished.
    """
    study = [(config, finished_runs(config)) for config in configs]
    if sum(len(runs) for _, runs in study) < 2:
        return None
    summary = summarise_runs(study)
    for line in runs_lines(summary):
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
