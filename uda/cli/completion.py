"""Shell completion: a script for bash, zsh or fish, made from the parsers of all commands."""

import argparse
from collections.abc import Iterator
from shlex import quote

from uda.cli.command_line import CommandParser

# If the script proposes nothing, `-o default` proposes files.
BASH = """\
_uda() {
    local IFS=$' \\t\\n' current="${COMP_WORDS[COMP_CWORD]}" command=uda number words=
    for ((number = 1; number < COMP_CWORD; number++)); do
        case "$command ${COMP_WORDS[number]}" in
            @commands@) command="$command ${COMP_WORDS[number]}" ;;
        esac
    done
    case "$command" in
@words@
    esac
    case "$command ${COMP_WORDS[COMP_CWORD-1]}" in
@values@
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _uda uda
"""

ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"

FISH = """\
function __uda_command
    set -l command uda
    for word in (commandline -opc)[2..-1]
        if contains -- "$command $word" @commands@
            set command "$command $word"
        end
    end
    test "$command" = "$argv"
end
"""

SHELLS = ("bash", "zsh", "fish")


def script(shell: str, parser: CommandParser) -> str:
    """The completion script for one of `SHELLS`. `parser` is the parser of the `uda` command."""
    if shell == "fish":
        return _fish(parser)
    return ZSH * (shell == "zsh") + _bash(parser)


def _commands(parser: CommandParser, *above: str) -> Iterator[tuple[str, CommandParser]]:
    """A parser and the parsers of all commands below it, each with its full name: `uda hardness score`."""
    yield " ".join(above), parser
    for name, command in parser.commands.items():
        yield from _commands(command, *above, name)


def _flags(parser: CommandParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings]


def _names(action: argparse.Action) -> list[str]:
    """The values of an argument, if they are known."""
    return list(action.offers() if getattr(action, "offers", None) else action.choices or [])


def _first_words(parser: CommandParser) -> list[str]:
    """The commands below a parser, or the values of its arguments without a flag."""
    return [name for action in parser._actions if not action.option_strings for name in _names(action)]


def _bash(parser: CommandParser) -> str:
    words, values, below, unknown = [], [], [], []
    for name, command in _commands(parser, "uda"):
        flags = [flag for action in _flags(command) for flag in action.option_strings]
        words.append(f'        "{name}") words={quote(" ".join([*_first_words(command), *flags]))} ;;')
        below.append(f'"{name}"')
        for action in _flags(command):
            cases = [f'"{name} {flag}"' for flag in action.option_strings]
            if known := _names(action):
                values.append(f"        {'|'.join(cases)}) words={quote(' '.join(known))} ;;")
            elif action.nargs != 0:
                unknown += cases
    values.append(f"        {'|'.join(unknown)}) words= ;;")
    text = BASH.replace("@commands@", "|".join(below[1:]))
    return text.replace("@words@", "\n".join(words)).replace("@values@", "\n".join(values))


def _fish(parser: CommandParser) -> str:
    below = [quote(name) for name, _ in _commands(parser, "uda")]
    lines = [FISH.replace("@commands@", " ".join(below[1:]))]
    for name, command in _commands(parser, "uda"):
        here = f"complete -c uda -n {quote(f'__uda_command {name}')}"
        if first := _first_words(command):
            lines.append(f"{here} -a {quote(' '.join(first))}\n")
        for action in _flags(command):
            flags = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in action.option_strings]
            value = [] if action.nargs == 0 else ["-r", f"-a {quote(' '.join(_names(action)))}"]
            lines.append(" ".join([here, *flags, *value]) + "\n")
    return "".join(lines)
