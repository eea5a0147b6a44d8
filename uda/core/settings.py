"""The base class of every section of a config."""

import os
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict

#: A path or a name. A leading `~` or `~user` stands for a home folder. A folder called `~` is written `./~`.
PathText = Annotated[str, AfterValidator(os.path.expanduser)]


def environment_folder(variable: str) -> Path | None:
    """The folder that an environment variable names. None if the variable is not set or empty."""
    text = os.environ.get(variable)
    return Path(os.path.expanduser(text)) if text else None


def one_or_several(value: object) -> object:
    """Check a name or a list of different names. pydantic's errors for a union are harder to read."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"give a name or a list of names; got {value!r}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{', '.join(twice)} is named twice")
    return value


class Settings(BaseModel):
    """Base of every section. It is frozen, refuses unknown keys and uses docstrings as field descriptions."""

    gone: ClassVar[dict[str, str]] = {}
    """Keys that the section no longer has, each with what to write instead."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
