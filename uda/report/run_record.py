"""What a run folder holds for its page, read without trusting it: every flaw is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from uda.core.errors import UserError
from uda.report.image_table import ImageTable
from uda.report.pictures import PICTURES, read_pictures
from uda.training import checkpoint
from uda.training.checkpoint import Checkpoints, Progress
from uda.training.records import REPORTS, SOURCE, Records, disagreements, read_record
from uda.training.run_folder import is_locked

IMAGES = "images.parquet"
SOURCE_IMAGES = f"rounds/source/{IMAGES}"
HELD_OUT = "held_out.parquet"
MAP = "map.parquet"
#: Columns of `images.parquet` that the page reads.
PAGE_COLUMNS = (
    *("label", "pseudo_label", "softmax_label", "prediction"),
    *("score", "ratio", "selected", "softmax_selected", "probability", "avc", "avh"),
)


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
    source: dict[str, Any] | None = None
    """Record of the source model."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    """Records of the rounds or reports, in order."""
    tables: dict[int, ImageTable] = field(default_factory=dict)
    """`images.parquet` by number of report."""
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
    trusted: bool = True
    """Whether the figures are those of one run: from the checkpoint, or from files that agree."""

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
    record = RunRecord(folder, {}, running=is_locked(folder))
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
    """Progress and records of the newest checkpoint; None without a readable one."""
    warnings: list[str] = []
    try:
        content = Checkpoints(folder / "checkpoints", warnings.append).read()
        problems += [f"{warning.removeprefix('warning: ')}." for warning in warnings]
        if content is None:
            return None, None
        progress, state = checkpoint.parse(content, "checkpoints")
        return progress, state["records"]
    except UserError as error:
        problems.append(f"The checkpoint cannot be read: {_short(error, folder)}.")
    return None, None


def _from_checkpoint(record: RunRecord, kept: Records, progress: Progress) -> None:
    """Take the records of the checkpoint, and tell which files differ."""
    record.source, record.reports = kept.get(SOURCE), kept.reports()
    record.seconds, done = progress.seconds, progress.stage == "done"
    for name in kept.state():
        try:
            if read_record(record.folder / name) != kept.get(name):
                record.problems.append(f"{name} was changed. The figures come from the checkpoint.")
        except UserError as error:
            record.problems.append(f"{_short(error, record.folder)}. Its figures come from the checkpoint.")
    later = [number for number in _numbers(record.folder) if number >= len(record.reports)]
    if later and not record.running:
        record.problems.append(
            f"{_numbered(later)} in rounds/ came after the last checkpoint. The run will make them again."
        )
    results = record.folder / "results.json"
    if not results.is_file():
        if done and not record.running:
            record.problems.append("results.json is missing. The figures come from the checkpoint.")
        record.finished = done
        return
    record.finished = done
    try:
        if wrong := disagreements(read_record(results), record.source, record.reports):
            why = ": ".join(wrong[0])
            record.problems.append(f"results.json contradicts the checkpoint ({why}). The checkpoint is shown.")
    except UserError as error:
        record.problems.append(f"{_short(error, record.folder)}. The figures come from the checkpoint.")


def _from_files(record: RunRecord) -> None:
    """Take the records from their files, and tell which are missing."""
    folder = record.folder
    results: Mapping[str, Any] | None = None
    if (folder / "results.json").is_file():
        try:
            results = read_record(folder / "results.json")
        except UserError as error:
            record.problems.append(f"{_short(error, folder)}.")
    key = "epochs" if results and isinstance(results.get("epochs"), list) else "rounds"
    numbers = _numbers(folder, key)
    expected = len(results[key]) if results and isinstance(results.get(key), list) else max(numbers, default=-1) + 1
    flaws = []
    for number in range(expected):
        try:
            record.reports.append(read_record(folder / REPORTS[key].format(number)))
        except UserError as error:
            flaws.append(f"{_short(error, folder)}, so this report is left out.")
    if (folder / SOURCE).exists() or (results and isinstance(results.get("source_only"), dict)):
        try:
            record.source = read_record(folder / SOURCE)
        except UserError as error:
            flaws.append(f"{_short(error, folder)}.")
    if results is not None:
        record.finished, record.seconds = True, results.get("seconds")
        if not flaws:
            wrong = disagreements(results, record.source, record.reports)
            flaws += [f"results.json contradicts the records of the reports ({': '.join(wrong[0])})."] if wrong else []
    elif not (folder / "results.json").exists():
        record.problems.append("There is no readable checkpoint and no results.json: the run was not finished here.")
    else:
        flaws.append("There is no checkpoint to compare with.")
    record.problems += flaws
    record.trusted = not flaws


def _numbers(folder: Path, key: str = "rounds") -> list[int]:
    """Numbers of the reports that have a file."""
    pattern = REPORTS[key].replace("{:02d}", "*")
    names = [path.relative_to(folder) for path in folder.glob(pattern)]
    texts = [name.parts[1].removesuffix(".json") for name in names]
    return sorted(int(text) for text in texts if text.isdigit())


def _numbered(numbers: Sequence[int]) -> str:
    return f"{'Report' if len(numbers) == 1 else 'Reports'} {', '.join(map(str, numbers))}"


def read_tables(record: RunRecord, kept: Mapping[str, ImageTable] | None = None, only_last: bool = False) -> None:
    """Read the tables of images, the map and the thumbnails. What is missing becomes a problem.

    Args:
        record: the record, which gets the tables.
        kept: tables by file that need not be read.
        only_last: whether to read the newest table and the thumbnails alone. The other files must only be there.
    """
    folder, missing = record.folder, []
    numbers = [report["round"] for report in record.reports if "round" in report]
    newest = images_of(numbers[-1]) if numbers else SOURCE_IMAGES

    def table(name: str, columns: Sequence[str] | None = PAGE_COLUMNS) -> ImageTable | None:
        if kept and name in kept:
            return kept[name]
        if only_last and name != newest and (folder / name).is_file():
            return None
        try:
            return ImageTable.read(folder / name, columns)
        except UserError as error:
            missing.append(_short(error, folder))
            return None

    if record.source and record.source.get("predicted_per_class"):
        record.source_table = table(SOURCE_IMAGES)
    for report in record.reports:
        if "round" in report and (found := table(images_of(report["round"]))) is not None:
            record.tables[report["round"]] = found
    has_images = record.tables or record.source_table
    wanted = len(numbers) + bool(record.source and record.source.get("predicted_per_class"))
    if missing and len(missing) == wanted:
        record.problems.append(
            "No images.parquet can be read (older versions of uda wrote none), so histograms, gallery, map and "
            "calibration are missing."
        )
        return
    if record.tables and "seen" in record.reports[-1]:
        record.held_out = table(held_out_of(record.reports[-1]["round"]))
    if record.finished and has_images and (folder / MAP).exists():
        record.map = table(MAP, None)
    if (folder / PICTURES).exists():
        try:
            record.pictures = read_pictures(folder / PICTURES)
        except UserError as error:
            missing.append(_short(error, folder))
    rows = {len(found) for found in (record.source_table, *record.tables.values()) if found is not None}
    if len(rows) > 1:
        missing.append("the tables of images have different numbers of rows, so they are of different runs")
        record.tables, record.source_table, record.map, record.pictures = {}, None, None, {}
        record.held_out = None
    record.problems += [f"{text[0].upper()}{text[1:]}. What the page shows of it is left out." for text in missing]
