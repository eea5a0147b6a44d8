"""The commands of README.md and docs/: those that need no download run, at reduced size; all others are valid."""

import contextlib
import os
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import fake_trackers
from tests.data.trees import write_image
from tests.docs.documents import TEXTS, commands, marked
from tests.forked import forked_job
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.cli.main import main, tree
from uda.core.resources import CHECKOUT
from uda.data import banks, digits
from uda.data.cards import CARDS
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import names_of
from uda.hardness.dynamics.config import SupervisedConfig
from uda.hardness.study.config import StudyConfig
from uda.hardness.study.study import load_study
from uda.kinds import register_tables
from uda.selection.selectors import SELECTORS
from uda.tables import load_table, read_csv
from uda.tables.launchers.local import Worker

register_tables()

#: Scripts in tools/ and the commands that they are.
TOOLS = {
    **{f"tools/{name}.py": [name] for name in ("adapt", "bank", "generalize", "hardness", "search", "table")},
    "tools/self_train.py": ["adapt"],
    "tools/check_data.py": ["check-data"],
    "tools/check_device.py": ["check-device"],
}
KINDS = {
    "adapt": AdaptationConfig,
    "generalize": GeneralizationConfig,
    "hardness dynamics": SupervisedConfig,
    "hardness all": StudyConfig,
}
#: Commands that measure for minutes, or need a data set that is downloaded: their flags alone are checked.
NOT_RUN = ("bench", "check-device", "hardness fetch", "hardness correlate", "hardness degrade", "hardness trajectory")

#: `check-data` counts the digits. All other commands are given fewer.
ALL_DIGITS = digits.mnist
#: What makes a run small.
SMALL = {
    "adapt": (
        *("data.rendered_per_class=20", "source.epochs=1", "self_training.rounds=1", "self_training.steps=2"),
        *("adaptation.steps=2", "report.gallery=2", "report.loggers=[]", "runtime.threads=1"),
    ),
    "bank": ("data.rendered_per_class=20", "runtime.threads=1"),
    "generalize": ("training.steps=2", "report.gallery=2", "report.loggers=[]", "runtime.threads=1"),
    "hardness toy": ("--epochs", "1"),
    "search": (
        *("--trials", "2", "data.rendered_per_class=20", "source.epochs=1"),
        *("self_training.rounds=1", "self_training.steps=2"),
    ),
}
#: What a command needs, and the command that makes it or comes before it, in whatever order tests run.
MADE = {
    "runs/digits_avh/seed0": "uda adapt --cfg digits_avh.yaml",
    "runs/digits_mcd/seed0": "uda adapt --cfg digits_mcd.yaml",
    "runs/digits_*": "uda adapt --cfg digits_avh.yaml",  # a comparison needs two runs
    "runs/digits_*/seed": "uda adapt --cfg digits_mcd.yaml",
    "runs/softmax": "uda adapt --cfg digits_avh.yaml self_training.selector=softmax seed=1 output=runs/softmax",
    "runs/my_search": "uda search --cfg digits_avh.yaml --space my_space.yaml --out runs/my_search --dry-run",
    "runs/digits_source/seed0": "uda adapt --cfg digits_source.yaml",
    "data.features=bank": "uda bank --cfg digits_avh.yaml --run runs/digits_source/seed0 --output bank",
}
SNIPPETS = {
    "plugin": ("python", "my_selectors.py"),
    "method": ("python", "my_method.py"),
    "own data": ("yaml", "own.yaml"),
    "comparison": ("yaml", "my_table.yaml"),
    "space": ("yaml", "my_space.yaml"),
    "wandb": ("python", "wandb_logger.py"),
    "mlflow": ("python", "mlflow_logger.py"),
}


def as_uda(words: list[str]) -> list[str]:
    """The words after `uda` of a command of ours."""
    return words[1:] if words[0] == "uda" else [*TOOLS[words[0]], *words[1:]]


def name_of(words: list[str]) -> str:
    """A command's name, with that of the command below it."""
    words = as_uda(words)
    below = words[0] == "hardness" and len(words) > 1 and not words[1].startswith("-")
    return " ".join(words[: 2 if below else 1])


#: The changelog speaks of commands of its time.
READ = [text for name, text in TEXTS.items() if name != "CHANGELOG.md"]
FOUND = list(dict.fromkeys(shlex.join(words) for text in READ for words in commands(text)))
OURS = [command for command in FOUND if re.match(r"uda |tools/", command)]
SCRIPTS = [command for command in FOUND if command not in OURS]


def parsed(words: list[str]):
    """The options of a command; None where it takes its words to another program."""
    parser, rest = tree(), as_uda(words)
    while parser.commands:
        parser, rest = parser.commands[rest[0]], rest[1:]
    return None if parser.pass_on else parser.parse_intermixed_args(rest)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the snippets of the documentation, in which commands run one after the other."""
    folder = tmp_path_factory.mktemp("newcomer")
    for marker, (language, name) in SNIPPETS.items():
        block = next(block for text in TEXTS.values() for block in marked(text, marker, language))
        (folder / name).write_text(block, encoding="utf-8")
    (folder / "my.yaml").write_text("_base_: digits_avh.yaml\n", encoding="utf-8")
    for number in range(3):
        write_image(folder / "photos" / f"{number}.png", number, np.random.default_rng(0), size=(28, 28))
    with pytest.MonkeyPatch.context() as patch:
        fake_trackers.install(patch)
        yield folder
    fake_trackers.forget()
    SELECTORS._entries.pop("mine", None)
    ADAPTATION_METHODS._entries.pop("nuclear", None)


@pytest.fixture(scope="module")
def done():
    """Commands that have run, with their exit codes."""
    return {}


@pytest.fixture
def there(folder, monkeypatch, fewer_digits):
    """Work in that folder, without data of this machine. A config may name a bank of PACS, which is not there."""
    identity, absent = banks.identity, "pacs_tf_efficientnet_lite0"  # no test makes this bank
    monkeypatch.setattr(
        banks, "identity", lambda bank, wanted: "" if Path(bank).name == absent else identity(bank, wanted)
    )
    monkeypatch.chdir(folder)
    monkeypatch.delenv("UDA_DATA", raising=False)
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


def carry_out(words: list[str]) -> int:
    """Run a command at reduced size; its exit code."""
    small = SMALL.get(name_of(words), ())
    if "--dry-run" not in words or name_of(words) in ("adapt", "search"):
        words = [*words, *small]
    if name_of(words) == "generalize" and not any(word.startswith("target=") for word in words):
        words = [*words, "target=m15"]
    with pytest.MonkeyPatch.context() as patch:
        if name_of(words) == "check-data":
            patch.setattr(digits, "mnist", ALL_DIGITS)
        return main(as_uda(words))


def runs_here(words: list[str], options) -> bool:
    """Whether a command needs no download."""
    name = name_of(words)
    if name in NOT_RUN or options is None:
        return False
    if name in KINDS and options.cfg:
        files = options.cfg if isinstance(options.cfg, list) else [options.cfg]
        kind = KINDS[name]
        if kind is StudyConfig:
            return False
        words = [word for word in options.overrides if not word.startswith("data.features=")]  # may not be there yet
        return all(kind.load(f, words).data.dataset in ("digits", "rotated_digits") for f in files)
    if name == "check-data":
        return "digits" in words
    if name == "bank":
        return "digits" in options.cfg
    if name == "hardness score":
        return any("digits:" in word for word in words)
    if name == "table":
        return "--dry-run" in words
    return True


@pytest.mark.parametrize("command", OURS)
def test_a_command_is_valid_and_runs_where_it_needs_no_download(command, there, done, capsys):
    """Flags parse, configs validate, domains are the card's; a run ends with 0 and leaves its page."""
    words = shlex.split(command)
    options = parsed(words)
    check(words, options)
    if not runs_here(words, options):
        return
    run_once(command, done)
    assert done[command] == 0, capsys.readouterr().err


def run_once(command: str, done: dict[str, int]) -> None:
    """Run a command that has not run yet, after those that make what it needs."""
    for made, by in MADE.items():
        if by != command and any(made in word for word in shlex.split(command)):
            run_once(by, done)
    if command not in done:
        done[command] = carry_out(shlex.split(command))


def check(words: list[str], options) -> None:
    """Raise where a command names what is not there."""
    name = name_of(words)
    if options is None:
        return
    if name in KINDS and getattr(options, "cfg", None):
        kind = KINDS[name]
        files = options.cfg if isinstance(options.cfg, list) else [options.cfg]
        for file in files:
            if kind is StudyConfig:
                load_study(file, options.overrides)
                continue
            words = [word for word in options.overrides if not word.startswith("data.features=")]
            config = kind.load(file, words)
            if kind is AdaptationConfig and config.data.dataset:
                assert {*config.data.sources, *config.data.targets} <= CARDS[config.data.dataset].domains.keys()
            if kind is GeneralizationConfig and config.data.dataset:
                assert set(names_of(config)) <= CARDS[config.data.dataset].domains.keys()
    if name == "table":
        assert load_table(options.table).rows
    if name == "check-data" and options.features is None:
        own = words[-1].startswith("./") or words[-1].endswith(".yaml")  # a folder or a card of the reader's
        assert own or words[-1] in CARDS


@pytest.mark.parametrize("command", SCRIPTS)
def test_every_flag_of_a_script_is_in_its_help(command, monkeypatch, capsys):
    script, *arguments = shlex.split(command)
    monkeypatch.setattr("sys.argv", [script, "--help"])
    file = script if script.endswith(".py") else f"{script.replace('.', '/')}.py"
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(CHECKOUT / file), run_name="__main__")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for flag in arguments:
        assert not flag.startswith("--") or re.search(rf"{flag}\b", text), flag


def test_two_processes_of_torchrun_as_the_page_has_them(there):
    command = "torchrun --standalone --nproc_per_node=2 tools/self_train.py --cfg digits_avh.yaml"
    assert command in TEXTS["docs/distributed.md"].splitlines()
    script, *words = command.partition("nproc_per_node=2 ")[2].split()
    codes, output = forked_job(2, CHECKOUT / script, *words, "output=runs/two", *SMALL["adapt"])
    assert codes == [0, 0], output
    assert Path("runs/two/results.json").is_file() and os.path.exists("runs/two/report.html")


def test_a_comparison_runs_as_its_page_has_it(there, in_folder, monkeypatch):
    """The table of docs/tables.md with one seed and small runs without pages."""

    def in_this_process(self, words, output, again, plugins):
        with open(output, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            return main(words)

    command = "uda table my_table.yaml --jobs 2 --results my_results"
    assert command in OURS
    small = ("report.page=false", *SMALL["adapt"])
    listed = ", ".join(f"'{word}'" for word in small if "runtime" not in word)  # a table sets the threads itself
    text = (there / "my_table.yaml").read_text(encoding="utf-8").replace("[0, 1, 2]", "[0]")
    text = text.replace("[validator=bnm]", f"[validator=bnm, {listed}]")
    Path("my_table.yaml").write_text(text.replace(", set: [adaptation.steps=400]", ""), encoding="utf-8")
    monkeypatch.setattr(Worker, "run", in_this_process)
    words = shlex.split(command.replace("--jobs 2", "--jobs 1"))  # the runs share this process's stdout
    assert main(as_uda(words)) == 0
    records = read_csv(in_folder / "my_results" / "my_table.csv")
    assert [record["row"] for record in records] == ["Source", "CBST", "MCC"]


def test_there_are_commands_to_check():
    assert len(OURS) >= 40
    assert {name_of(shlex.split(command)) for command in OURS} >= {
        *KINDS,
        "hardness toy",
        "list",
        "check-data",
        "table",
    }
