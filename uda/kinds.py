"""The kinds of run. A new kind is a package, which is named in this module, and a module in `uda/cli/commands/`."""

import uda.adaptation.config
import uda.generalization.config
import uda.hardness.dynamics.config
import uda.hardness.study.config  # noqa: F401  (configs register themselves)
from uda.core.settings import Settings
from uda.training.config import CONFIG_CLASSES, RunConfig, knows

#: The config class of each command that takes a config file.
COMMANDS: dict[str, type[Settings]] = dict(CONFIG_CLASSES.items())

#: The config classes of runs: `COMMANDS` without the study, which consists of several runs.
RUN_CONFIGS: dict[str, type[RunConfig]] = {
    command: kind for command, kind in COMMANDS.items() if issubclass(kind, RunConfig)
}


def kind_of(settings: object) -> type[RunConfig] | None:
    """The config class of the content of a config, which has all of its keys; None if it is of no known kind.

    If no class has all of them, because a key within a section is wrong, the keys at the top decide.
    """
    content = settings if isinstance(settings, dict) and settings else {"": None}
    at_the_top = (kind for kind in RUN_CONFIGS.values() if content.keys() <= kind.model_fields.keys())
    return next((kind for kind in RUN_CONFIGS.values() if knows(kind, content)), next(at_the_top, None))


def register_tables() -> None:
    """Register the kinds of table, so that `uda.tables.load_table` knows them."""
    import uda.adaptation.table
    import uda.generalization.table  # noqa: F401
