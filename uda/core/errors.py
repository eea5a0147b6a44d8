"""The errors that a user can correct."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class UserError(Exception):
    """A mistake in a config, a path or the data that the user can correct.

    The command line prints the message without a traceback and ends with exit code 2. The message names the file, key
    or class, and the cure.
    """


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A text with parameters in backquotes (`bins`), in which the parameters in `names` are replaced."""
    return re.sub(r"`([a-z_]+)`", lambda parameter: names.get(parameter[1], parameter[0]), text)


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Context or decorator that renames the parameters in the messages of UserErrors.

    Library code names its parameters in backquotes. A user knows them as flags of the command line or settings of a
    config.

    Args:
        names: the new name of each parameter: `{"bins": "--bins"}` or `{"bins": "human.bins"}`.
    """
    try:
        yield
    except UserError as error:
        raise UserError(renamed(str(error), names)) from error
