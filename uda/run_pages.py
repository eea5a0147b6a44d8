"""Pages built again from run folders, for any kind of run."""

from pathlib import Path

from uda.adaptation.config import AdaptationConfig
from uda.core.errors import UserError
from uda.core.files import write_json, write_text
from uda.generalization.config import GeneralizationConfig
from uda.kinds import kind_of
from uda.report.page import RunPage
from uda.report.run_record import RunRecord, read_run_record
from uda.training.config import RunConfig
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
    if isinstance(config, GeneralizationConfig) or (config is None and record.settings.get("target")):
        from uda.generalization.page import generalization_page
        from uda.generalization.report import summarise

        results = summarise(config, record.reports, record.seconds) if config and record.reports else None
        return generalization_page(record, config), results
    from uda.adaptation.page import adaptation_page
    from uda.adaptation.results import summarise

    adaptation = config if isinstance(config, AdaptationConfig) else None
    results = None
    if adaptation is not None:
        results = summarise(adaptation, record.source, record.reports, record.seconds)
    return adaptation_page(record, adaptation), results
