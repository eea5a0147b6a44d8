"""Pages from run folders, for any kind of run: the page of a run, built again, and a page that compares several."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uda.adaptation.config import AdaptationConfig
from uda.core.errors import UserError
from uda.core.files import write_json, write_text
from uda.generalization.config import GeneralizationConfig
from uda.hardness.dynamics.config import SupervisedConfig
from uda.kinds import kind_of
from uda.report.comparison import ComparedRun
from uda.report.comparison_page import comparison_page
from uda.report.page import RunPage
from uda.report.run_record import RunRecord, read_run_record
from uda.tables.recipe import below
from uda.training.config import RunConfig, flatten, option_defaults
from uda.training.records import plain


def rebuild(folder: Path) -> RunRecord:
    """Write the page of a run folder again, and tell in `results.json` what is wrong with the folder.

    Nothing but these two files is changed. An unfinished run gets no `results.json`, because that would end it.

    Raises:
        UserError: the folder is not a run folder, or the files cannot be written.
    """
    record = read_run_record(folder)
    config = config_of(record)
    page, results = _page(record, config)
    write_text(record.folder / "report.html", page.render())
    if record.finished and record.trusted and results is not None:
        write_json(record.folder / "results.json", plain({**results, "problems": record.problems}))
    return record


def compare(folders: Sequence[Path], path: Path) -> list[RunRecord]:
    """Write one page that compares runs, finished or not. Nothing in the run folders is changed.

    Args:
        folders: two or more run folders. Differences are to the first one and the runs that differ from it only in
            the seed.
        path: the file to write.

    Returns:
        The records of the runs, with what is wrong with their folders.

    Raises:
        UserError: a folder is not a run folder, fewer than two different folders are given, or the file cannot be
            written.
    """
    different: dict[Path, Path] = {}
    for folder in folders:
        different.setdefault(folder.resolve(), folder)
    if len(different) < 2:
        raise UserError("a comparison needs two different run folders")
    records = [read_run_record(folder, only_last=True) for folder in different.values()]
    links = {
        str(record.folder): os.path.relpath(record.folder / "report.html", path.resolve().parent)
        for record in records if (record.folder / "report.html").is_file()
    }  # fmt: skip
    write_text(path, comparison_page([compared(record) for record in records], links))
    return records


def compared(record: RunRecord) -> ComparedRun:
    """A run for a comparison."""
    config = config_of(record)
    settings = option_defaults(config) | flatten(config.model_dump(mode="json")) if config else flatten(record.settings)
    skipped = ("seed", *(config or RunConfig).not_identity, *(config.unread if config else ()))
    compute = record.environment.get("compute")
    circumstances = {key: value for key, value in settings.items() if below(key, ("runtime",))}
    circumstances |= {f"{name} (version)": record.environment.get(name) for name in ("uda", "commit", "torch")}
    circumstances["device"] = compute.get("device") if isinstance(compute, Mapping) else None
    found = ComparedRun(
        record=record,
        kind="",
        identity={key: value for key, value in settings.items() if not below(key, skipped)},
        circumstances=circumstances,
        target="",
        measure="class_mean",
        unit="report",
        score="",
    )
    if _generalises(record, config):
        _describe_generalization(found, config)
    elif isinstance(config, SupervisedConfig) or any("epoch" in report for report in record.reports):
        found.kind, found.has_target = "supervised training", False
    elif config is None or isinstance(config, AdaptationConfig):
        _describe_adaptation(found, config)
    return found


def _describe_generalization(run: ComparedRun, config: GeneralizationConfig | None) -> None:
    from uda.generalization.results import choice_of

    data = run.record.settings.get("data")
    run.kind, run.measure, run.score = "domain generalisation", "overall", "held-out images"
    run.target = _target(data, str(config.target if config else run.record.settings["target"]))
    run.scores = [report.get("validation") for report in run.reports]
    run.choice = choice_of(run.reports) if run.reports else None


def _describe_adaptation(run: ComparedRun, config: AdaptationConfig | None) -> None:
    from uda.adaptation.results import best_round

    settings = run.record.settings
    data, validator = settings.get("data"), str(settings.get("validator", "im"))
    names = data.get("target") if isinstance(data, Mapping) else None
    run.kind, run.score = "adaptation", f"validator '{validator}'"
    run.target = _target(data, " + ".join(config.data.targets) if config else str(names or ""))
    run.unit = "round" if any("portion" in report for report in run.reports) else "report"
    run.scores = [(report.get("validators") or {}).get(validator) for report in run.reports]
    run.zero_shot_score = ((run.zero_shot or {}).get("validators") or {}).get(validator)
    number = best_round(run.reports, run.scores)["round"]
    run.choice = next((report for report in run.reports if report["round"] == number), None)


def _target(data: Any, name: str) -> str:
    card = data.get("dataset") if isinstance(data, Mapping) else None
    return f"{name} of {card}" if card and name else name


def _generalises(record: RunRecord, config: RunConfig | None) -> bool:
    return isinstance(config, GeneralizationConfig) or (config is None and bool(record.settings.get("target")))


def config_of(record: RunRecord) -> RunConfig | None:
    """The config of a run; None if this version of uda cannot read it, which becomes a problem of the record."""
    kind = kind_of(record.settings)
    if not record.settings:
        return None
    if kind is None:
        record.problems.append("config.yaml is not of a kind of run that this version of uda knows.")
        return None
    try:
        return kind.load(record.folder / "config.yaml", saved=True)
    except UserError as error:
        first = str(error).split("\n")[0]
        record.problems.append(f"This version of uda cannot read the config ({first}), so less is told about the run.")
        return None


def _page(record: RunRecord, config: RunConfig | None) -> tuple[RunPage, dict | None]:
    """The page of a run, and what `results.json` must hold; None if it cannot be computed."""
    if _generalises(record, config):
        from uda.generalization.page import generalization_page
        from uda.generalization.results import summarise

        results = summarise(config, record.reports, record.seconds) if config and record.reports else None
        return generalization_page(record, config), results
    if isinstance(config, SupervisedConfig) or any("epoch" in report for report in record.reports):
        from uda.hardness.dynamics.page import supervised_page
        from uda.hardness.dynamics.results import summarise

        results = summarise(config, record.reports, record.seconds) if config and record.reports else None
        return supervised_page(record, config), results
    from uda.adaptation.page import adaptation_page
    from uda.adaptation.results import summarise

    adaptation = config if isinstance(config, AdaptationConfig) else None
    results = None
    if adaptation is not None:
        given = record.seconds, record.zero_shot, record.choice
        results = summarise(adaptation, record.source, record.reports, *given)
    return adaptation_page(record, adaptation), results
