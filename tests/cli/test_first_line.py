"""The first line of a run, which comes before torch is imported."""

import os
import subprocess
import sys
import time

import pytest

from tests.in_process import adapt, generalize
from uda.core.resources import CHECKOUT
from uda.core.version import __version__

COMMANDS = {
    "uda adapt": ["-m", "uda", "adapt", "--cfg", "digits_avh.yaml"],
    "tools/self_train.py": ["tools/self_train.py", "--cfg", "digits_avh.yaml"],
    "uda generalize": ["-m", "uda", "generalize", "--cfg", "rotated_digits_erm.yaml"],
    "uda hardness dynamics": ["-m", "uda", "hardness", "dynamics", "--cfg", "cifar10_resnet.yaml"],
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(CHECKOUT)}


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_heavy_is_imported_before_the_first_line(command):
    """The command's own process ends in place of printing its first line, and says what it has imported."""
    code = (
        "import runpy, sys\n"
        "import uda.cli.supervise as supervise\n"
        "heavy = {'torch', 'timm', 'scipy', 'torchvision', 'matplotlib', 'uda.adaptation.config'}\n"
        "supervise.say_at_once = lambda line: sys.exit(f'{line}|{heavy & sys.modules.keys()}')\n"
        "from uda.cli.main import main, run_tool\n"
        "words = sys.argv[1:]\n"
        "main(words[2:]) if words[0] == '-m' else run_tool(words[0], 'adapt', words[1:])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *COMMANDS[command]], capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
    assert ended.stderr == f"uda {__version__}: {COMMANDS[command][-1]}; loading PyTorch ...|set()\n"


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
@pytest.mark.parametrize("command", ["uda adapt", "tools/self_train.py"])
def test_something_is_printed_within_a_second(command, terminal, tmp_path):
    """The best of three starts, because other programs may run beside the tests."""
    seconds = []
    for number in range(3):
        reader, writer = os.openpty() if terminal else os.pipe()
        begun = time.monotonic()
        words = [sys.executable, *COMMANDS[command], f"output={tmp_path / str(number)}"]
        process = subprocess.Popen(words, stdout=writer, stderr=subprocess.DEVNULL, cwd=CHECKOUT, env=ENVIRONMENT)
        os.close(writer)
        try:
            line = os.read(reader, 1000)
            seconds.append(time.monotonic() - begun)
        finally:
            process.kill()
            process.wait()
            os.close(reader)
        assert line.decode().split("\n")[0].rstrip() == f"uda {__version__}: digits_avh.yaml; loading PyTorch ..."
    assert min(seconds) < 1, seconds


def test_only_the_first_process_of_a_job_prints_it(monkeypatch, capsys, in_folder):
    monkeypatch.setenv("RANK", "1")
    assert adapt(["--cfg", "digits_avh.yaml", "sede=1"]) == 2
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    assert adapt(["--cfg", "digits_avh.yaml", "sede=1"]) == 2
    assert capsys.readouterr().out == f"uda {__version__}: digits_avh.yaml; loading PyTorch ...\n"


def test_several_configs_are_named(capsys, in_folder):
    words = [word for name in ("rotated_digits_erm.yaml", "rotated_digits_mldg.yaml") for word in ("--cfg", name)]
    assert generalize([*words, "sede=1"]) == 2
    first = "rotated_digits_erm.yaml, rotated_digits_mldg.yaml"
    assert capsys.readouterr().out == f"uda {__version__}: {first}; loading PyTorch ...\n"
