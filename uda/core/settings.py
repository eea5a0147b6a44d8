"""The base of every section of a config."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

#: A path, or a name in its place. A leading `~` or `~user` stands for a home folder; a folder called `~` is `./~`.
PathText = Annotated[str, AfterValidator(os.path.expanduser)]


def environment_folder(variable: str) -> Path | None:
    """The folder that an environment variable names; None where it names none."""
    text = os.environ.get(variable)
    return Path(os.path.expanduser(text)) if text else None


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, docstrings as field descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
