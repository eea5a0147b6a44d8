"""`uda adapt`: what it lists, what it explains, and what a mistake gets."""

import os
import subprocess
import sys

import pytest

from tests.in_process import adapt
from uda.adaptation.methods import ADAPTATION_METHODS, UNLABELLED_LOSSES
from uda.cli.commands.adapt import LISTS
from uda.core.resources import CHECKOUT
from uda.core.version import __version__
from uda.core.yaml_files import read_config
from uda.data.cards import CARDS
from uda.evaluation.validators import VALIDATORS
from uda.models.backbones import BACKBONES
from uda.models.losses import LOSSES
from uda.report.loggers import LOGGERS
from uda.selection.regularizers import REGULARIZERS
from uda.selection.selectors import SELECTORS

HELD = {
    "configs": [
        p.name for p in (CHECKOUT / "configs").glob("*.yaml") if not {"training", "runs"} & read_config(p)[0].keys()
    ],
    "methods": ADAPTATION_METHODS,
    "selectors": SELECTORS,
    "regularizers": REGULARIZERS,
    "losses": LOSSES,
    "unlabelled_losses": UNLABELLED_LOSSES,
    "validators": VALIDATORS,
    "loggers": LOGGERS,
    "datasets": CARDS,
    "backbones": BACKBONES,
}


def run_python(*arguments):
    """A Python process of its own on this checkout."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, env=environment)


def test_a_config_of_another_command_is_told_in_one_line():
    """In a process of its own, which has imported nothing of the other kinds of run."""
    ended = run_python("-m", "uda", "adapt", "--cfg", "rotated_digits_erm", "--dry-run")
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert "rotated_digits_erm.yaml: this config is for `uda generalize`; run it with that command" in ended.stderr


def test_one_config_a_run(capsys):
    with pytest.raises(SystemExit) as stopped:
        adapt(["--cfg", "digits_avh.yaml", "--cfg", "digits_mcd.yaml"])
    assert stopped.value.code == 2 and "--cfg: give it only once" in capsys.readouterr().err


@pytest.mark.parametrize("what", sorted(LISTS))
def test_list_prints_what_the_registry_holds_with_a_line_each(what, capsys):
    assert adapt(["--list", what]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 100
    lines = [line.split(maxsplit=1) for line in printed if not line.startswith(" ")]
    described = {line[0] for line in lines if len(line) == 2}
    if what == "configs":
        assert described == set(HELD[what]), "another command's configs are not listed"
    assert described >= set(HELD[what]), "each with a description"


def test_the_list_of_configs_has_the_whole_first_sentence_of_each(capsys):
    """SHOT's continues in the second line of its comment, entropy minimisation's ends within the first."""
    adapt(["--list", "configs"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(Table 5) with the defaults of image_source.py and image_target.py. visda_source.yaml" in text
    assert "entropy minimisation on the target. visda_fixmatch.yaml" in text


def test_list_backbones_says_that_all_of_timm_can_be_had(capsys):
    adapt(["--list", "backbones"])
    assert "timm" in capsys.readouterr().out.splitlines()[-1]


def test_help_shows_examples_that_name_real_configs(capsys):
    with pytest.raises(SystemExit) as stopped:
        adapt(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    examples = [line.split() for line in text.split("examples:")[1].splitlines() if "uda adapt" in line]
    named = {words[words.index("--cfg") + 1] for words in examples if "--cfg" in words}
    assert named and named <= set(HELD["configs"])
    assert any("--list" in words for words in examples)
    assert all(what in text for what in LISTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg", "digits_avh.yaml", "--dryrun"], "--dryrun"),
        (["--cfg", "digits_avh.yaml", "--dry"], "--dry"),  # no abbreviations
        (["--list", "selector"], "selectors"),
        (["--cfg"], "--cfg"),
        ([], "digits_avh.yaml"),
        (["seed=1"], "--cfg FILE is needed"),
    ],
)
def test_wrong_use_ends_with_2_and_says_why(arguments, message, in_folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        adapt(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("uda adapt: error: ") and message in error[-1]
    assert list(in_folder.iterdir()) == []


def error_lines(capsys):
    """Lines on standard error: every one must be a mistake's."""
    lines = capsys.readouterr().err.splitlines()
    assert lines and all(line.startswith("error: ") for line in lines), lines
    return lines


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("self_training.selecter=avc", ["command line: self_training.selecter", "did you mean 'selector'?"]),
        ("self_training.rounds=many", ["self_training.rounds", "'many'"]),
        ("self_training.selector=sofmax", ["self_training.selector", "did you mean 'softmax'?"]),
        ("self_training.regularizer=mrk", ["self_training.regularizer", "known: "]),
        ("method=self_trainig", ["method", "did you mean 'self_training'?"]),
        ("seed=-1", ["seed", "-1"]),
        ("softmax", ["'softmax'", "key=value"]),
        ("data=photos", ["data", "section of keys"]),
        ("plugins=mein.py", ["plugins: no such file", "mein.py"]),
        ("data.source=renderings", ["data.source", "no such folder: renderings"]),
        ("data.dataset=visda17", ["visda17", "did you mean 'visda2017'?"]),
        ("source.checkpoint=best.safetensors", ["best.safetensors"]),
        ("model.backbone=resnet1", ["resnet1"]),
        ("runtime.device=abacus", ["abacus"]),
    ],
)
def test_a_mistake_gets_one_line_with_key_and_cure_and_leaves_nothing(override, parts, tiny, in_folder, capsys):
    assert adapt(["--cfg", str(tiny), override]) == 2
    (line,) = error_lines(capsys)
    assert all(part in line for part in parts), line
    assert list(in_folder.iterdir()) == []


def test_settings_that_the_method_does_not_read_are_named(tiny, in_folder, capsys):
    words = ["--cfg", str(tiny), "--dry-run", "self_training.selector=avc"]
    for method, count in (("mmd", 1), ("source_only", 1), ("self_training", 0)):
        assert adapt([*words, f"method={method}"]) == 0
        notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
        assert notes == [f"note: method '{method}' does not read self_training.selector"] * count


def test_an_unknown_config_names_the_nearest(in_folder, capsys):
    assert adapt(["--cfg", "digits_avg.yaml"]) == 2
    (line,) = error_lines(capsys)
    assert "digits_avg.yaml: no such config" in line and "did you mean 'digits_avh.yaml'?" in line


def test_missing_data_says_what_to_get_and_where_to_put_it(in_folder, monkeypatch, capsys):
    monkeypatch.setenv("UDA_DATA", str(in_folder / "data"))
    if (CHECKOUT / "datasets" / "visda2017").exists():
        pytest.skip("VisDA-2017 lies in datasets/")
    assert adapt(["--cfg", "visda_avh.yaml", "model.weights=none"]) == 2
    (line,) = error_lines(capsys)
    assert CARDS["visda2017"].url in line and str(in_folder / "data" / "visda2017") in line
    assert list(in_folder.iterdir()) == []


def test_all_mistakes_at_once_a_line_each(tiny, in_folder, capsys):
    wrong = ["sede=1", "self_training.rounds=many", "self_training.selector=sofmax", "loud"]
    assert adapt(["--cfg", str(tiny), *wrong]) == 2
    lines = error_lines(capsys)
    assert len(lines) == len(wrong)
    for part in ("sede", "'many'", "'sofmax'", "'loud'"):
        assert sum(part in line for line in lines) == 1, part


def test_overrides_may_stand_anywhere(tiny, in_folder, capsys):
    assert adapt(["self_training.rounds=7", "--cfg", str(tiny), "--dry-run", "seed=5"]) == 0
    plan = capsys.readouterr().out
    assert "seed5" in plan and "7" in plan
    assert list(in_folder.iterdir()) == []


def test_the_tool_itself_ends_with_2_and_no_traceback(tmp_path):
    wrong = ["self_training.selecter=avc", f"output={tmp_path / 'run'}"]
    ended = run_python(str(CHECKOUT / "tools" / "self_train.py"), "--cfg", "digits_avh.yaml", *wrong)
    assert ended.returncode == 2
    assert ended.stdout == f"uda {__version__}: digits_avh.yaml; loading PyTorch ...\n"
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ") and "did you mean 'selector'?" in line
    assert not (tmp_path / "run").exists()
