"""Runs of `tests/tables/stand_in_worker.py`, as launchers know runs."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

#: Module of a program for launchers that imports no torch.
WORKER = "tests.tables.stand_in_worker"


@dataclass
class StandIn:
    """A run of `tests/tables/stand_in_worker.py`."""

    folder: Path
    command: list[str]
    plugins: list[str] = field(default_factory=list)
    device: str = "auto"
    name: str = "row"

    def words(self):
        return self.command

    @property
    def runs(self):
        return self.folder.parent

    @property
    def table(self):
        return SimpleNamespace(name="stand_in")

    @property
    def row(self):
        return SimpleNamespace(name=self.name)

    @property
    def config(self):
        return SimpleNamespace(plugins=self.plugins, runtime=SimpleNamespace(device=self.device))

    @property
    def output(self):
        return self.folder.parent / f"{self.folder.name}.out"
