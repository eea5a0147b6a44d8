"""Records of the reports of a run. The checkpoint keeps them; files in the run folder are for people and programs."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uda.core.errors import UserError
from uda.core.files import write_json


def plain(value: Any) -> Any:
    """`value` in types of strict JSON: NumPy values become Python values, NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


#: File of the source model's record in a run folder.
SOURCE = "rounds/source.json"
#: File of the record of the untouched network with the class vectors of `model.classifier`.
ZERO_SHOT = "rounds/zero_shot.json"
#: Entries of `results.json` for models before the first report, and the files of their records.
BEFORE = {"zero_shot": ZERO_SHOT, "source_only": SOURCE}
#: File of the record that says which of several selectors was kept.
CHOICE = "selectors/choice.json"
#: Files of the reports' records, by the name of their list in `results.json`.
REPORTS = {"rounds": "rounds/{:02d}/report.json", "epochs": "epochs/{:02d}.json"}


class Records:
    """The records of a run by file name.

    The checkpoint holds them, so they always match its progress. The files are copies. Nothing is read from them, and
    lost or damaged files are written again.

    Args:
        folder: the run folder.
        kept: the `state` in a checkpoint.
    """

    def __init__(self, folder: Path, kept: Mapping[str, str] | None = None):
        self.folder = Path(folder)
        self._texts = dict(kept or {})

    def state(self) -> dict[str, str]:
        """State for a checkpoint: each record as JSON."""
        return dict(self._texts)

    def write(self, name: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Keep a record and write its file. Returns the record in types of JSON."""
        text = json.dumps(plain(record), separators=(",", ":"), allow_nan=False)
        write_json(self.folder / name, json.loads(text))
        self._texts[name] = text
        return json.loads(text)

    def get(self, name: str) -> dict[str, Any] | None:
        """The record of a file; None if there is none yet."""
        return json.loads(self._texts[name]) if name in self._texts else None

    def reports(self) -> list[dict[str, Any]]:
        """The records of all reports, in order."""
        names = (pattern.format(number) for pattern in REPORTS.values() for number in range(len(self._texts)))
        return [json.loads(self._texts[name]) for name in names if name in self._texts]

    def restore(self, log: Callable[[str], None]) -> None:
        """Write the files again that differ from their records, with a warning for each."""
        for name, text in self._texts.items():
            record = json.loads(text)
            try:
                found = read_record(self.folder / name)
                problem = None if found == record else f"{self.folder / name} was changed"
            except UserError as error:
                problem = str(error)
            if problem:
                write_json(self.folder / name, record)
                log(f"warning: {problem}; it was written again from the checkpoint")


def read_record(path: Path) -> dict[str, Any]:
    """The record in a file. Raises UserError if it is missing or broken."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{path} is broken")
    return record


def read_results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`results.json` of a finished run, and the records of its reports.

    Raises:
        UserError: one of the files is missing or broken, or they belong to different runs.
    """
    results = read_record(path)
    final = results.get("final")
    lists = {key: results[key] for key in REPORTS if isinstance(results.get(key), list)}
    if not isinstance(final, dict) or len(lists) != 1:
        raise UserError(f"{path} is broken")
    ((key, entries),) = lists.items()
    records = [read_record(path.parent / REPORTS[key].format(number)) for number in range(len(entries))]
    before = {
        entry: read_record(path.parent / name) for entry, name in BEFORE.items() if isinstance(results.get(entry), dict)
    }
    if wrong := disagreements(results, before, records):
        name, why = wrong[0]
        raise UserError(f"{path} and {path.parent / name} belong to different runs ({why})")
    return results, records


def disagreements(
    results: Mapping[str, Any], before: Mapping[str, Mapping[str, Any] | None], records: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Where `results.json` contradicts the records of the reports: pairs of a record's file and what differs.

    `before`: records of the models before the first report, by their names in `BEFORE`.
    """
    key = next((key for key in REPORTS if isinstance(results.get(key), list)), "rounds")
    entries = results.get(key)
    if not isinstance(entries, list) or len(entries) != len(records):
        count = len(entries) if isinstance(entries, list) else "no"
        return [(REPORTS[key].format(len(records)), f"{count} {key} there, {len(records)} here")]
    told = [(REPORTS[key].format(number), entry, records[number]) for number, entry in enumerate(entries)]
    if records:
        told.append((told[-1][0], results.get("final"), records[-1]))
    known = [name for name in BEFORE if isinstance(results.get(name), dict) and before.get(name) is not None]
    told = [*((BEFORE[name], results[name], before[name]) for name in known), *told]
    return [(name, why) for name, entry, record in told for why in _differing(entry, record)]


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _differing(entry: Any, record: Mapping[str, Any]) -> list[str]:
    """Figures of an entry of `results.json` that a record has too, with another value."""
    if not isinstance(entry, dict):
        return ["it is broken"]
    return [
        f"{key} is {_short(value)} there, {_short(record[key])} here"
        for key, value in entry.items()
        if key in record and not isinstance(value, (dict, list)) and value != record[key]
    ]
