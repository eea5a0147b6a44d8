"""The kinds of run. A new kind is a package of its own and a line or two here."""

import uda.adaptation.config
import uda.generalization.config
import uda.hardness.dynamics.config
import uda.hardness.study.config  # noqa: F401  (configs register themselves)
from uda.core.settings import Settings
from uda.training.config import CONFIG_CLASSES, RunConfig

#: What is configured by a file, by the command of `uda` that takes it.
COMMANDS: dict[str, type[Settings]] = dict(CONFIG_CLASSES.items())

#: The configs of runs: `COMMANDS` without the study, which is made of runs.
RUN_CONFIGS: dict[str, type[RunConfig]] = {
    command: kind for command, kind in COMMANDS.items() if issubclass(kind, RunConfig)
}


def register_tables() -> None:
    """Make the kinds of table known to `uda.tables.load_table`."""
    import uda.adaptation.table
    import uda.generalization.table  # noqa: F401
