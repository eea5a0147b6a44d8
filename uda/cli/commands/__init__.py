"""The commands of `uda`, a module each.

A module's name is its command's (`check_data` is `uda check-data`), and the first line of its docstring is the
command's line in `uda --help`. `add_to(parser)` adds the arguments and sets `run`, which gets the parsed options and
returns the exit code, or None for 0. A new command needs a new module and nothing else.
"""
