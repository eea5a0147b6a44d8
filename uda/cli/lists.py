"""What `uda list` and `--list` print: the names that a config or a command can choose, one per line."""

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uda.core.registry import Registry

#: Width of a list in columns.
LINE = 100

#: What can be listed.
KINDS = (
    *("configs", "methods", "selectors", "regularizers", "losses", "unlabelled_losses", "validators"),
    *("loggers", "datasets", "backbones", "bodies", "decoders", "scores", "degradations", "tables", "spaces"),
)

Row = tuple[str, str]


def listing(kind: str, commands: Sequence[str] | None = None) -> str:
    """The names of a kind, one per line.

    `commands`: those whose configs and methods are listed; None: all.
    """
    if commands is None and kind in ("configs", "methods"):
        from uda.kinds import COMMANDS

        commands = list(COMMANDS)
    if kind == "configs":
        groups = {command: _configs(command) for command in commands}
    elif kind == "methods":
        methods = _methods()
        groups = {command: methods[command].describe() for command in commands if command in methods}
    else:
        groups = {kind: _rows(kind)}
    width = LINE - 2 * (len(groups) > 1)
    blocks = [_block(rows, width) for rows in groups.values()]
    if len(blocks) > 1:
        headed = zip(groups, blocks, strict=True)
        blocks = [f"uda {command}:\n{textwrap.indent(block, '  ')}" for command, block in headed]
    if kind == "backbones":
        import timm

        blocks.append(f"...and each of timm's {len(timm.list_models())} models by its name (timm.list_models())")
    if kind == "bodies":
        blocks.append("...and each of timm's models that gives maps, by its name: most of `--list backbones`")
    return "\n".join(blocks)


def config_names(command: str) -> list[str]:
    """The configs in configs/ that a command takes."""
    return [name for name, _ in _configs(command)]


def table_names() -> list[str]:
    """The tables in configs/tables/."""
    return [path.stem for path in _files("tables/*.yaml")]


def space_names() -> list[str]:
    """The spaces in configs/spaces/."""
    return [path.stem for path in _files("spaces/*.yaml")]


def _rows(kind: str) -> list[Row]:
    if kind == "datasets":
        from uda.data.cards import CARDS

        return CARDS.describe()
    if kind in ("tables", "spaces"):
        return [(path.stem, _first_comment(path)) for path in _files(f"{kind}/*.yaml")]
    return _registry(kind).describe()


def _registry(kind: str) -> "Registry":
    from uda.adaptation.methods import UNLABELLED_LOSSES
    from uda.evaluation.validators import VALIDATORS
    from uda.hardness.probes.degradations import DEGRADATIONS
    from uda.hardness.scoring.scores import SCORES
    from uda.models.backbones import BACKBONES
    from uda.models.bodies import BODIES
    from uda.models.decoders import DECODERS
    from uda.models.losses import LOSSES
    from uda.report.loggers import LOGGERS
    from uda.selection.regularizers import REGULARIZERS
    from uda.selection.selectors import SELECTORS

    return {
        "selectors": SELECTORS,
        "regularizers": REGULARIZERS,
        "losses": LOSSES,
        "unlabelled_losses": UNLABELLED_LOSSES,
        "validators": VALIDATORS,
        "loggers": LOGGERS,
        "backbones": BACKBONES,
        "bodies": BODIES,
        "decoders": DECODERS,
        "scores": SCORES,
        "degradations": DEGRADATIONS,
    }[kind]


def _methods() -> "dict[str, Registry]":
    from uda.kinds import RUN_CONFIGS

    methods = {command: kind.methods() for command, kind in RUN_CONFIGS.items()}
    return {command: registry for command, registry in methods.items() if len(registry) > 1}  # else there is no choice


def _configs(command: str) -> list[Row]:
    """The configs that a command takes. The command knows all their sections and keys."""
    from uda.core.yaml_files import read_config
    from uda.kinds import COMMANDS
    from uda.training.config import knows

    kind = COMMANDS[command]
    return [(path.name, _first_comment(path)) for path in _files("*.yaml") if knows(kind, read_config(path)[0])]


def _files(pattern: str) -> Iterator[Path]:
    from uda.core.resources import CONFIGS

    yield from sorted(CONFIGS.glob(pattern))


def _block(rows: Sequence[Row], width: int) -> str:
    names = max(len(name) for name, _ in rows)
    indent = " " * (names + 2)
    return "\n".join(textwrap.fill(f"{name:<{names}}  {text}", width, subsequent_indent=indent) for name, text in rows)


def _first_comment(path: Path) -> str:
    """The first sentence of the comment at a config's head. The sentence may span several lines."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").split("\n"))
    sentence, end, _ = " ".join(line.removeprefix("#").strip() for line in lines).partition(". ")
    return sentence + end.strip()
