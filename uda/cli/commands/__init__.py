"""The commands of `uda`, one per module.

The module `check_data` is the command `uda check-data`. `uda --help` prints the first line of the module's docstring.
`add_to(parser)` adds the arguments and sets `run`. `run` takes the parsed options and returns the exit code, or None
for 0. A new command needs only a new module.
"""
