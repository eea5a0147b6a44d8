"""The runs of a search: ordinary runs of a config, of which the search watches the scores without target labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uda.kinds  # a config of another command is told by its kind
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.core.errors import UserError
from uda.core.yaml_files import find_config, read_config
from uda.data.domains import Domains
from uda.evaluation.validators import VALIDATORS
from uda.generalization.config import GeneralizationConfig
from uda.generalization.run import GeneralizationRun
from uda.training.checkpoint import Progress
from uda.training.config import RunConfig
from uda.training.records import REPORTS, SOURCE, read_record
from uda.training.session import Session

Record = Mapping[str, Any]
#: Name of the score of domain generalisation: the accuracy on held-out images of the seen domains.
HELD_OUT = "held-out"


class WatchedRun(Session):
    """Base of a run that calls `watch` after each checkpoint, with the records so far and whether reports are to come.

    `watch` may end the run by raising an error of its own.
    """

    def __init__(self, config: RunConfig, *arguments, watch: Callable[[Sequence[Record], bool], None], **options):
        self.watch = watch
        super().__init__(config, *arguments, **options)

    def train_stages(self) -> None:
        self._show()  # a run that was killed may have been about to be ended by `watch`
        super().train_stages()

    def save(self, progress: Progress, state: Mapping[str, object] | None = None) -> None:
        super().save(progress, state)
        self._show()

    def _show(self) -> None:
        source, reports = self.records.get(SOURCE), self.records.reports()
        _, to_come = self.report.parts()
        self.watch([source, *reports] if source else reports, bool(to_come))


class WatchedAdaptation(WatchedRun, AdaptationRun):
    """A watched run of `uda adapt`. Runs with the same data share their images."""

    def __init__(self, *arguments, shared: "SharedImages", **options):
        self.shared = shared
        super().__init__(*arguments, **options)

    def load_images(self) -> Domains:
        return self.shared.get(self.config, super().load_images)


class WatchedGeneralization(WatchedRun, GeneralizationRun):
    """A watched run of `uda generalize`."""

    def __init__(self, *arguments, shared: "SharedImages", **options):
        super().__init__(*arguments, **options)


class SharedImages:
    """The images of the last run, for the next one with the same data."""

    def __init__(self):
        self._key: str | None = None
        self._domains: Domains | None = None

    def get(self, config: AdaptationConfig, load: Callable[[], Domains]) -> Domains:
        """The images of a run. `load` reads them."""
        key = f"{config.data.model_dump_json()} {config.seed}"
        if key != self._key:
            self._key = self._domains = None  # frees their memory
            self._domains, self._key = load(), key
        return self._domains


@dataclass(frozen=True)
class KindOfRun:
    """What a search knows of a kind of run."""

    command: str
    """Command of such a run: `uda <command>`."""
    config: type[RunConfig]
    session: type[WatchedRun]
    measure: str
    """Key of the oracle accuracy in a report's record."""
    measure_name: str
    """Name of the oracle accuracy for people."""
    scores: Callable[[Record], dict[str, float | None]]
    """The scores of a report that need no target labels. Nothing else of a record decides anything."""


KINDS = (
    KindOfRun(
        "adapt",
        AdaptationConfig,
        WatchedAdaptation,
        "class_mean",
        "class mean on the target",
        lambda record: dict(record["validators"]),
    ),
    KindOfRun(
        "generalize",
        GeneralizationConfig,
        WatchedGeneralization,
        "overall",
        "accuracy on the unseen domain",
        lambda record: {HELD_OUT: record["validation"]},
    ),
)


def kind_of(config: str | Path | RunConfig) -> KindOfRun:
    """The kind of run of a config: a name, a path or a config. A config of no kind here counts as one of `uda adapt`.

    Raises:
        ConfigError: there is no such config, or it is not YAML.
    """
    if isinstance(config, RunConfig):
        found = next((kind for kind in KINDS if isinstance(config, kind.config)), None)
        if found is None:
            raise TypeError(f"config: must be of uda adapt or uda generalize; got a {type(config).__name__}")
        return found
    content, _ = read_config(find_config(config))
    declared = uda.kinds.kind_of(content)
    return next((kind for kind in KINDS if kind.config is declared), KINDS[0])


def validator_of(config: RunConfig, kind: KindOfRun, name: str | None) -> str:
    """The score that judges the trials. `name`: the user's choice; None: that of the config.

    Raises:
        UserError: no such validator, or the runs have none.
    """
    if kind.config is AdaptationConfig:
        VALIDATORS[name or config.validator]  # raises for an unknown name
        return name or config.validator
    if name is not None and name != HELD_OUT:
        raise UserError(
            f"`validator`: runs of uda {kind.command} are judged by the accuracy on held-out images of the seen "
            f"domains; leave it out; got {name}"
        )
    if config.target is None:
        raise UserError("target: a search needs one unseen domain, such as target=sketch; name one")
    return HELD_OUT


def records_in(folder: Path) -> list[Record]:
    """The records of a run folder: that of the source model, if there is one with scores, and those of the reports."""
    names = [SOURCE] if (folder / SOURCE).is_file() else []
    number = 0
    while (folder / REPORTS["rounds"].format(number)).is_file():
        names.append(REPORTS["rounds"].format(number))
        number += 1
    return [read_record(folder / name) for name in names]
