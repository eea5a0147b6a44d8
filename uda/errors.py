"""The errors that a user can mend."""


class UserError(Exception):
    """A mistake in a config, a path or the data that the user can mend.

    The command line prints its message as it stands, without a traceback, and ends with
    exit code 2. The message names the file, key or class concerned, and the cure.
    """
