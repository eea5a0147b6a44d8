"""Shell completion, asked as the shells ask it."""

import shutil
import subprocess

import pytest

from uda.cli.completion import SHELLS, script
from uda.cli.main import main, tree


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """What bash proposes for a command line that ends where the cursor is."""
    folder = tmp_path_factory.mktemp("completion")
    path = folder / "uda.bash"
    path.write_text(script("bash", tree()))

    def proposed(*words):
        command = """
            source "$1"; shift
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
            $(complete -p uda | sed -E 's/.* -F ([^ ]+) .*/\\1/')
            printf '%s\\n' "${COMPREPLY[@]}"
        """
        ended = subprocess.run(
            ["bash", "--norc", "-c", command, "bash", str(path), *words], capture_output=True, text=True, cwd=folder
        )
        assert ended.returncode == 0 and not ended.stderr, ended.stderr
        return ended.stdout.split()

    return proposed


pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["a"], ["adapt"]),
        (["che"], ["check-data", "check-device"]),
        (["hardness", "s"], ["score"]),
        (["adapt", "--d"], ["--dry-run"]),
        (["hardness", "all", "--d"], ["--dry-run"]),
        (["adapt", "--cfg", "digits_av"], ["digits_avh.yaml"]),
        (["generalize", "--dry-run", "--cfg", "pacs_e"], ["pacs_erm.yaml"]),
        (["hardness", "dynamics", "--cfg", "cifar10_r"], ["cifar10_resnet.yaml"]),
        (["adapt", "--list", "sel"], ["selectors"]),
        (["list", "sco"], ["scores"]),
        (["table", "digits_"], ["digits_labels", "digits_recipe"]),
        (["search", "--space", "pacs"], ["pacs_bank"]),
        (["check-data", "vis"], ["visda2017"]),
        (["completion", "z"], ["zsh"]),
        (["hardness", "fetch", "c"], ["cifar10"]),
        (["table", "digits", "--into", ""], []),  # bash proposes files
        (["adapt", "seed="], []),
    ],
)
def test_bash_proposes_commands_flags_and_names(words, found, complete):
    assert complete("uda", *words) == found


def test_bash_proposes_all_commands_and_flags_of_the_first_word(complete):
    assert set(complete("uda", "")) == {*tree().commands, "-h", "--help", "--version"}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_printed_and_its_shell_can_read_it(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "uda hardness score" in text and "digits_avh.yaml" in text and "--dry-run" in text.replace("-l dry", "--dry")
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(text)
        ended = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
