"""What a run folder holds for its page, read without trusting it: every flaw is told."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from uda.core.errors import UserError
from uda.report.feature_map import TITLES
from uda.report.image_table import CLASS_COLUMNS, ImageTable
from uda.report.pictures import PICTURES, read_pictures
from uda.report.record_form import checked_choice, classes_of, completed
from uda.training import checkpoint
from uda.training.checkpoint import Checkpoints, Progress
from uda.training.records import BEFORE, CHOICE, REPORTS, Records, disagreements, read_record, read_results
from uda.training.run_folder import is_locked

IMAGES = "images.parquet"
SOURCE_IMAGES = f"rounds/source/{IMAGES}"
HELD_OUT = "held_out.parquet"
MAP = "map.parquet"
#: Columns of `images.parquet` that the page reads.
PREDICTED = ("prediction", "probability", "avc", "avh")
CHOSEN = ("pseudo_label", "softmax_label", "score", "ratio", "selected", "softmax_selected")
PAGE_COLUMNS = ("label", *PREDICTED, *CHOSEN)
#: A problem names at most this many files.
MOST_NAMED = 5


def images_of(number: int) -> str:
    """Path of a report's `images.parquet` below the run folder."""
    return str(Path(REPORTS["rounds"].format(number)).with_name(IMAGES))


def held_out_of(number: int) -> str:
    """Path of a report's `held_out.parquet` below the run folder."""
    return str(Path(REPORTS["rounds"].format(number)).with_name(HELD_OUT))


@dataclass
class RunRecord:
    """The records of a run, finished or not."""

    folder: Path
    settings: Mapping[str, Any]
    """The content of `config.yaml`; empty if it cannot be read."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """The content of `environment.json`."""
    zero_shot: dict[str, Any] | None = None
    """Record of the untouched network with the class vectors of `model.classifier`."""
    source: dict[str, Any] | None = None
    """Record of the source model."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    """Records of the rounds or reports, in order."""
    tables: dict[int, ImageTable] = field(default_factory=dict)
    """`images.parquet` by number of report."""
    choice: Mapping[str, Any] | None = None
    """The choice among several selectors, as in `results.json`; None for a run with one, and before the choice."""
    source_table: ImageTable | None = None
    held_out: ImageTable | None = None
    """`held_out.parquet` of the newest report: images of the seen domains that training did not see."""
    map: ImageTable | None = None
    pictures: dict[int, bytes] = field(default_factory=dict)
    """Thumbnails (JPEG) by row of the target."""
    finished: bool = False
    """Whether the run is finished."""
    running: bool = False
    """Whether a process works on the run now."""
    seconds: float | None = None
    """Duration so far, over all starts."""
    seconds_left: float | None = None
    """Estimated time to the end of a running run; None if unknown."""
    problems: list[str] = field(default_factory=list)
    """Flaws of the folder, one sentence each."""
    hurried: bool = False
    """Whether a training or the end of a process waits for the page. Then only its first figure is drawn."""
    unsaved: list[int] = field(default_factory=list)
    """Reports that an interrupted run has written after its last checkpoint, and will make again."""
    trusted: bool = True
    """Whether the figures are those of one run: from the checkpoint, or from files that agree."""

    @property
    def has_checkpoint(self) -> bool:
        """Whether the folder has a checkpoint, readable or not."""
        return any((self.folder / "checkpoints").glob("state-*.pt"))

    @property
    def models(self) -> list[dict[str, Any]]:
        """The records of all models: the untouched network, the source model and the reports, as far as they exist."""
        return [record for record in (self.zero_shot, self.source, *self.reports) if record]

    @property
    def last_table(self) -> ImageTable | None:
        """The table of the newest report; that of the source model before the first report."""
        return self.tables[max(self.tables)] if self.tables else self.source_table

    @property
    def truth(self) -> np.ndarray | None:
        """(N,) labels of the target images; None if no label is known."""
        table = self.last_table
        return None if table is None else table.get("label")


def read_run_record(folder: Path, only_last: bool = False) -> RunRecord:
    """Read a run folder. Flaws become `problems`.

    The checkpoint holds the records of all reports. It decides where a file differs. Without a checkpoint, files that
    contradict one another make the figures untrusted.

    Args:
        folder: the run folder.
        only_last: whether to read the newest of the tables of images alone, which takes a fraction of the time.

    Raises:
        UserError: the folder is not a run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if not any((folder / name).exists() for name in ("config.yaml", "results.json", "rounds", "epochs")):
        raise UserError(f"{folder} is not a run folder: there is no config.yaml")
    record = RunRecord(folder, {}, running=bool(is_locked(folder)))
    record.settings = _settings(folder, record.problems)
    record.environment = _json(folder / "environment.json", record.problems)
    progress, kept = _checkpoint(folder, record.problems)
    if kept is None:
        _from_files(record)
    else:
        _from_checkpoint(record, Records(folder, kept), progress)
    read_tables(record, only_last=only_last)
    return record


def _settings(folder: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append("config.yaml is missing, so the settings of the run are unknown.")
        return {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        content = None
    if isinstance(content, dict):
        return content
    problems.append("config.yaml is broken, so the settings of the run are unknown.")
    return {}


def _json(path: Path, problems: list[str]) -> Mapping[str, Any]:
    try:
        return read_record(path)
    except UserError as error:
        problems.append(f"{_short(error, path.parent)}.")
        return {}


def _short(error: UserError, folder: Path) -> str:
    """An error about a file in a folder, without the folder's path."""
    return str(error).replace(f"{folder}/", "")


def _checkpoint(folder: Path, problems: list[str]) -> tuple[Progress | None, Mapping[str, str] | None]:
    """Progress and records of the newest checkpoint; None without one that says more than the files."""
    warnings: list[str] = []
    try:
        content = Checkpoints(folder / "checkpoints", warnings.append).read()
        problems += [f"{warning.removeprefix('warning: ')}." for warning in warnings]
        if content is None:
            return None, None
        progress, state = checkpoint.parse(content, "checkpoints")
        kept = dict(state["records"])
    except UserError as error:
        problems.append(f"The checkpoint cannot be read: {_short(error, folder).partition(';')[0]}.")
        return None, None
    except (KeyError, TypeError, ValueError):
        problems.append("The checkpoint cannot be read: it has no records of reports.")
        return None, None
    if warnings and _files_go_on(folder, kept):
        return None, None
    return progress, kept


def _files_go_on(folder: Path, kept: Mapping[str, str]) -> bool:
    """Whether the files are those of a finished run that an older checkpoint is a part of."""
    try:
        read_results(folder / "results.json")
        return all(read_record(folder / name) == json.loads(text) for name, text in kept.items())
    except UserError:
        return False


def _from_checkpoint(record: RunRecord, kept: Records, progress: Progress) -> None:
    """Take the records of the checkpoint, and tell which files differ."""
    before, reports = {key: kept.get(name) for key, name in BEFORE.items()}, kept.reports()
    record.seconds, done = progress.seconds, progress.stage == "done"
    for name in kept.state():
        try:
            if read_record(record.folder / name) != kept.get(name):
                record.problems.append(f"{name} was changed. The figures come from the checkpoint.")
        except UserError as error:
            record.problems.append(f"{_short(error, record.folder)}. Its figures come from the checkpoint.")
    later = [number for number in _numbers(record.folder) if number >= len(reports)]
    if later and done:
        record.problems.append(f"{_numbered(later)} in rounds/ came after the last checkpoint. They are not shown.")
    elif not record.running:
        record.unsaved = later
    record.finished = done
    results = record.folder / "results.json"
    if results.is_file():
        try:
            if wrong := disagreements(read_record(results), before, reports):
                why = ": ".join(wrong[0])
                record.problems.append(f"results.json contradicts the checkpoint ({why}). The checkpoint is shown.")
        except UserError as error:
            record.problems.append(f"{_short(error, record.folder)}. The figures come from the checkpoint.")
    elif done and not record.running:
        record.problems.append("results.json is missing. The figures come from the checkpoint.")
    record.choice = kept.get(CHOICE)
    flaws = _take(record, before, list(enumerate(reports)))
    record.problems += flaws
    record.trusted = not flaws


def _from_files(record: RunRecord) -> None:
    """Take the records from their files, and tell which are missing."""
    folder = record.folder
    results: Mapping[str, Any] | None = None
    if (folder / "results.json").is_file():
        try:
            results = read_record(folder / "results.json")
        except UserError as error:
            record.problems.append(f"{_short(error, folder)}.")
    listed = (key for key in REPORTS if results and isinstance(results.get(key), list))
    key = next(listed, "rounds" if _numbers(folder) else "epochs")
    numbers = _numbers(folder, key)
    told = results[key] if results and isinstance(results.get(key), list) else []
    flaws, found, before = [], [], {}
    if missing := max(len(told), *(number + 1 for number in numbers), 0) - len(numbers):
        there = set(numbers)
        first = islice((number for number in count() if number not in there), min(missing, MOST_NAMED))
        more = f" and {missing - MOST_NAMED} more" if missing > MOST_NAMED else ""
        flaws.append(f"{_numbered(list(first))}{more} in {key}/ {'is' if missing == 1 else 'are'} missing.")
    for number in numbers:
        try:
            found.append((number, read_record(folder / REPORTS[key].format(number))))
        except UserError as error:
            flaws.append(f"{_short(error, folder)}, so this report is left out.")
    for entry, name in BEFORE.items():
        if (folder / name).exists() or (results and isinstance(results.get(entry), dict)):
            try:
                before[entry] = read_record(folder / name)
            except UserError as error:
                flaws.append(f"{_short(error, folder)}.")
    if results is not None:
        seconds = results.get("seconds")
        record.finished, record.seconds = True, seconds if isinstance(seconds, int | float) else None
        if not flaws and (wrong := disagreements(results, before, [report for _, report in found])):
            flaws.append(f"results.json contradicts the records of the reports ({', '.join(wrong[0])}).")
    elif (folder / "results.json").exists():
        flaws.append("There is no checkpoint to compare with.")
    else:
        record.problems.append("There is no results.json, so the run was not finished here.")
    if results is not None and results.get("selectors"):
        try:
            record.choice = checked_choice(results["selectors"])
        except UserError as error:
            flaws.append(f"{error}.")
    flaws += _take(record, before, found, key)
    record.problems += flaws
    record.trusted = not flaws


def _take(
    record: RunRecord,
    before: Mapping[str, Mapping[str, Any] | None],
    reports: Sequence[tuple[int, Mapping[str, Any]]],
    key: str = "rounds",
) -> list[str]:
    """Take records that have the form of a record and the same classes. Returns what is wrong with the others.

    `before`: records of the models before the first report, by their names in `BEFORE`.
    """
    flaws = []
    names = [classes for one in (*before.values(), *(report for _, report in reports)) if (classes := _classes_of(one))]
    classes = Counter(names).most_common(1)[0][0] if names else ()
    chooses = any("portion" in report for _, report in reports)

    def good(name: str, one: Mapping[str, Any], number: int | None) -> bool:
        try:
            completed(name, one, number)
            if _classes_of(one) not in ((), classes):
                raise UserError(f"{name} has other classes than the other reports")
            if chooses and number is not None and "portion" not in one:
                raise UserError(f"{name} does not tell what its round selected, as the other reports do")
        except UserError as error:
            flaws.append(f"{error}. It is left out.")
            return False
        return True

    taken = {
        entry: completed(BEFORE[entry], one)
        for entry, one in before.items()
        if one is not None and good(BEFORE[entry], one, None)
    }
    record.zero_shot, record.source = taken.get("zero_shot"), taken.get("source_only")
    for number, report in reports:
        name = REPORTS[key].format(number)
        if "epoch" in report:  # of a supervised training, whose page knows their form
            record.reports.append(dict(report))
        elif good(name, report, number):
            record.reports.append(completed(name, report, number))
    return flaws


def _classes_of(record: Mapping[str, Any] | None) -> tuple[str, ...]:
    try:
        return () if record is None else classes_of(record)
    except (AttributeError, TypeError):  # `completed` tells what is wrong with it
        return ()


def _numbers(folder: Path, key: str = "rounds") -> list[int]:
    """Numbers of the reports that have a file."""
    names = {path.relative_to(folder).as_posix() for path in folder.glob(REPORTS[key].replace("{:02d}", "*"))}
    texts = (name.split("/")[1].removesuffix(".json") for name in names)
    numbers = {int(text) for text in texts if text.isdecimal()}
    return sorted(number for number in numbers if REPORTS[key].format(number) in names)


def _numbered(numbers: Sequence[int]) -> str:
    return f"{'Report' if len(numbers) == 1 else 'Reports'} {', '.join(map(str, numbers))}"


def read_tables(record: RunRecord, kept: Mapping[str, ImageTable] | None = None, only_last: bool = False) -> None:
    """Read the tables of images, the map and the thumbnails. What is missing becomes a problem.

    Args:
        record: the record, which gets the tables.
        kept: tables by file that need not be read.
        only_last: whether to read the newest table and the thumbnails alone. The other files must only be there.
    """
    folder, flaws = record.folder, []
    absent: list[str] = []
    numbers = [report["round"] for report in record.reports if "round" in report]
    newest = images_of(numbers[-1]) if numbers else SOURCE_IMAGES
    classes = next(filter(None, map(classes_of, filter(None, [*record.reports, record.source]))), ())

    def table(name: str, report: Mapping[str, Any], columns: Sequence[str] | None = PAGE_COLUMNS) -> ImageTable | None:
        if kept and name in kept:
            return kept[name]
        if not (folder / name).is_file():
            absent.append(name)
            return None
        if only_last and name != newest:
            return None
        try:
            found = ImageTable.read(folder / name, columns)
        except UserError as error:
            flaws.append(_short(error, folder))
            return None
        if flaw := _flaw_of(found, classes, report):
            flaws.append(f"{name} {flaw}")
            return None
        return found

    if record.source and record.source.get("predicted_per_class"):
        record.source_table = table(SOURCE_IMAGES, record.source)
    for report in record.reports:
        if "round" in report and (found := table(images_of(report["round"]), report)) is not None:
            # All tables are of the same images, and the names of 55,000 take some megabytes.
            before = record.last_table
            same = before is not None and found.paths == before.paths
            record.tables[report["round"]] = replace(found, paths=before.paths) if same else found
    if len(absent) == len(numbers) + bool(record.source and record.source.get("predicted_per_class")) > 0:
        record.problems.append(
            "There is no images.parquet (older versions of uda wrote none), so histograms, gallery, map and "
            "calibration are missing."
        )
        return
    rows = {len(found) for found in (record.source_table, *record.tables.values()) if found is not None}
    if len(rows) > 1:
        flaws.append("The tables of images have different numbers of rows, so they are of different runs")
        record.tables, record.source_table = {}, None
    if record.tables and "seen" in record.reports[-1]:
        record.held_out = table(held_out_of(record.reports[-1]["round"]), {})
    last, shown = record.last_table, record.settings.get("report")
    shown = shown if kept is None and isinstance(shown, Mapping) and shown.get("page") is True else {}
    if last is not None and record.finished and not only_last:
        if (folder / MAP).is_file():
            record.map = _map(folder, last, flaws)
        elif shown.get("map", "none") != "none":
            absent.append(MAP)
    if last is not None and (folder / PICTURES).is_file():
        try:
            record.pictures = read_pictures(folder / PICTURES, last.paths)
        except UserError as error:
            flaws.append(_short(error, folder))
    elif last is not None and shown.get("gallery"):
        absent.append(PICTURES)
    if absent:
        more = f" and {len(absent) - MOST_NAMED} more files" if len(absent) > MOST_NAMED else ""
        flaws.append(f"{', '.join(absent[:MOST_NAMED])}{more} {'is' if len(absent) == 1 else 'are'} missing")
    record.problems += [f"{flaw}. The page leaves out what came from it." for flaw in flaws]


def _flaw_of(table: ImageTable, classes: Sequence[str], report: Mapping[str, Any]) -> str | None:
    """Why a table of images is not that of a report; None if it is."""
    needed = [*PREDICTED, *(CHOSEN if any(table.get(name) is not None for name in CHOSEN) else ())]
    if lacking := [name for name in needed if table.get(name) is None]:
        return f"has no column {' and no '.join(lacking)}"
    if classes and table.classes != tuple(classes):
        return "has other classes than the reports"
    if any((table.get(name) < 0).any() for name in needed if name in CLASS_COLUMNS):
        return "has images without a class"
    counts = report.get("predicted_per_class")
    predicted = np.bincount(table.get("prediction"), minlength=len(table.classes)).tolist()
    if counts and predicted != [counts[name] for name in table.classes]:
        return "does not fit the record of its report"
    return None


def _map(folder: Path, last: ImageTable, flaws: list[str]) -> ImageTable | None:
    """The map; None if it is broken or not of these images."""
    try:
        table = ImageTable.read(folder / MAP)
    except UserError as error:
        flaws.append(_short(error, folder))
        return None
    rows = table.get("row")
    whole = all(table.get(name) is not None for name in ("x", "y", "label", "prediction", "row"))
    if not whole or table.classes != last.classes or table.about.get("projection") not in TITLES:
        flaws.append(f"{MAP} is not a map of this run")
        return None
    if any(
        row >= len(last) or last.paths[row] != path for row, path in zip(rows, table.paths, strict=True) if row >= 0
    ):
        flaws.append(f"{MAP} has other images than the last report")
        return None
    return table
