"""The tree of commands: what belongs to it, what every `--help` has, and its doors."""

import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from tests.in_process import adapt
from uda.cli import commands
from uda.cli.command_line import CommandParser
from uda.cli.commands import bench
from uda.cli.lists import KINDS, config_names
from uda.cli.main import main, run_tool, tree
from uda.core.resources import CHECKOUT
from uda.core.version import __version__
from uda.kinds import COMMANDS

TOOLS = {
    "self_train": "adapt",
    "bank": "bank",
    "adapt": "adapt",
    "generalize": "generalize",
    "hardness": "hardness",
    "search": "search",
    "table": "table",
    "check_data": "check-data",
    "check_device": "check-device",
}


def parsers(parser=None, *above):
    """Every parser of the tree, by the words that lead to it."""
    parser = parser or tree()
    yield above, parser
    for name, command in parser.commands.items():
        yield from parsers(command, *above, name)


def run_python(*arguments, **environment):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment)


def test_the_commands_are_the_modules():
    assert list(tree().commands) == [
        "adapt", "bank", "bench", "check-data", "check-device", "completion", "export", "generalize", "hardness",
        "list", "predict", "report", "search", "table",
    ]  # fmt: skip


def test_a_command_joins_by_one_module(tmp_path, monkeypatch, capsys):
    (tmp_path / "say_hello.py").write_text(
        '"""Greet someone."""\n\n\ndef add_to(parser):\n    parser.add_argument("who")\n'
        '    parser.set_defaults(run=lambda options: print(f"hello {options.who}"))\n'
    )
    monkeypatch.setattr(commands, "__path__", [*commands.__path__, str(tmp_path)])
    assert main(["say-hello", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    assert "say-hello   Greet someone\n" in tree().format_help()


@pytest.mark.parametrize("program", ["uda", "python -m uda"])
def test_every_help_has_examples_and_80_columns(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for words, parser in parsers(tree(program)):
        text = parser.format_help()
        assert max(map(len, text.splitlines())) <= 80, words
        assert parser.pass_on or "examples:\n  " in text, words


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_a_tool_is_a_door_of_its_command_and_says_its_own_name(tool, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["x", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(CHECKOUT / "tools" / f"{tool}.py"), run_name="__main__")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: tools/{tool}.py ") and f"    python tools/{tool}.py" in text
    assert "uda " not in text.partition("examples:")[2].replace("uda adapt", "")
    assert max(map(len, text.splitlines())) <= 80
    own = tree().commands[TOOLS[tool]]
    assert set(re.findall(r"--[a-z][a-z-]+", text)) == set(re.findall(r"--[a-z][a-z-]+", own.format_help()))


def test_every_example_is_valid(in_folder):
    """Words parse, and configs are there. What an example of a command above says is one of its commands."""
    known = {name for command in COMMANDS for name in config_names(command)}
    seen = 0
    for words, parser in parsers():
        text = (parser.epilog or "").replace(" \\\n", " ")
        for line in re.findall(r"^    (?:torchrun \S+ -m )?(uda .*)$", text, flags=re.MULTILINE):
            given = shlex.split(line.partition(" > ")[0])[1:]
            assert given[: len(words)] == list(words), line
            leaf = tree()
            while leaf.commands and not given[0].startswith("-"):
                leaf, given = leaf.commands[given[0]], given[1:]
            options = leaf.parse_intermixed_args(given) if not leaf.commands else leaf.parse_args(given)
            cfg = getattr(options, "cfg", None) or []
            assert {cfg} <= known if isinstance(cfg, str) else {*cfg} <= known, line
            seen += 1
    assert seen > 40


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adpt", "--cfg", "x"], "uda: error: unknown command 'adpt', did you mean 'adapt'? (known: adapt, bank"),
        ([], "uda: error: name a command: adapt, bank"),
        (["hardness"], "uda hardness: error: name a command: score, correlate"),
        (["hardness", "scroe"], "uda hardness: error: unknown command 'scroe', did you mean 'score'?"),
        (["--cfg", "x"], "uda: error: unrecognized arguments: --cfg"),
        (["adapt"], "uda adapt: error: --cfg FILE is needed"),
        (["list", "selector"], "uda list: error: unknown 'selector', did you mean 'selectors'? (known: configs"),
        (["table"], "uda table: error: name a table; `--list` prints all tables"),
        (["search", "--cfg", "digits_avh"], "uda search: error: --cfg FILE and --space FILE are needed"),
        (["check-data"], "uda check-data: error: name one card"),
        (["check-data", "pacs", "seed=1"], "unrecognized arguments: seed=1; uda check-data takes no key=value words"),
        (["completion", "tcsh"], "uda completion: error: argument shell: invalid choice: 'tcsh'"),
    ],
)
def test_wrong_use_is_told_with_the_program_s_name(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["adapt", "--cfg", "digits_avg.yaml"], "did you mean 'digits_avh.yaml'?"),
        (["generalize", "--cfg", "nowhere.yaml"], "nowhere.yaml: no such config"),
        (["hardness", "toy", "runtime.divice=cpu"], "did you mean 'device'?"),
        (["table", "digit"], "digit"),
        (["search", "--cfg", "digits_avg", "--space", "digits"], "did you mean 'digits_avh.yaml'?"),
        (["check-data", "pasc"], "did you mean 'pacs'?"),
        (["check-device", "--only", "metods"], "did you mean 'methods'?"),
        (["bench", "--only", "nothing"], "unknown benchmark 'nothing'"),
    ],
)
def test_every_command_tells_a_mistake_alike(words, message, in_folder, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == "" and all(line.startswith("error: ") for line in lines) and message in lines[0], lines
    assert list(in_folder.iterdir()) == []


def test_an_interruption_ends_with_its_code(monkeypatch, capsys):
    def wait(options):
        raise KeyboardInterrupt

    parser = CommandParser(prog="uda")
    parser.add_command("wait", "Wait").set_defaults(run=wait)
    monkeypatch.setattr("uda.cli.main.tree", lambda program: parser)
    assert main(["wait"]) == 130
    assert capsys.readouterr().err.strip() == "interrupted by SIGINT: there is nothing to resume"


def test_the_benchmarks_are_those_of_a_checkout(monkeypatch, capsys):
    assert main(["bench", "--list"]) == 0
    assert "start_up_help" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert capsys.readouterr().out.startswith("usage: uda bench ")
    monkeypatch.setattr(bench, "CHECKOUT", None)
    assert main(["bench"]) == 2
    assert "error: uda bench: the benchmarks are not part of an installation" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_list_has_a_line_for_each_name(kind, capsys):
    assert main(["list", kind]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and max(map(len, lines)) <= 100
    named = [line for line in lines if not line.startswith("    ") and not line.endswith(":")]
    assert named and all(re.match(r"( {2})?\S+ +\S", line) for line in named)


def test_list_alone_prints_the_kinds(capsys):
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == list(KINDS)


def test_every_config_is_of_one_command():
    names = [name for command in COMMANDS for name in config_names(command)]
    assert sorted(names) == sorted(path.name for path in (CHECKOUT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("words", [["table", "--list"], ["check-data", "--list"], ["check-device", "--list"]])
def test_list_of_a_command_with_one_kind_prints_the_names(words, capsys):
    assert main(words) == 0
    names = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert names & {"digits", "methods"}


@pytest.mark.parametrize("words", ["--help", "list", "adapt --help", "hardness score --help", "list configs"])
def test_no_help_and_no_list_waits_for_torch(words):
    """Importing torch takes seconds."""
    code = f"""
import sys
from uda.cli.main import main
try:
    main({words.split()!r})
finally:
    print({{"torch", "timm", "scipy"}} & sys.modules.keys())
"""
    ended = run_python("-c", code)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "set()"


def test_python_m_uda_is_the_command():
    ended = run_python("-m", "uda", "--version")
    assert (ended.returncode, ended.stdout) == (0, f"uda {__version__}\n")
    ended = run_python("-m", "uda", "adapt")
    assert ended.returncode == 2
    assert "python -m uda adapt: error: --cfg FILE is needed" in ended.stderr


def test_a_tool_gives_its_exit_code(in_folder, capsys):
    assert run_tool("tools/self_train.py", "adapt", ["--cfg", "digits_avh.yaml", "sede=1"]) == 2
    assert adapt(["--cfg", "digits_avh.yaml", "sede=1"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and "did you mean 'seed'?" in first
