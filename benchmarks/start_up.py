"""The time that a user waits for `--help`, for an import and for the first training step."""

import os
import subprocess
import sys
import tempfile

from benchmarks.contest import BENCHMARKS, Contest
from uda.core.resources import CHECKOUT

SELF_TRAIN = str(CHECKOUT / "tools" / "self_train.py")


@BENCHMARKS.register("start_up_help")
def help_text(scale: float) -> Contest:
    """`tools/self_train.py --help` from start to end of the process, against a Python that does nothing; within 2 s."""
    return Contest(lambda: _python(SELF_TRAIN, "--help"), lambda: _python("-c", "pass"), limit_seconds=2.0)


@BENCHMARKS.register("import_uda")
def import_uda(scale: float) -> Contest:
    """`import uda, uda.training.config` in a new process, against a Python that does nothing; within 2 s."""
    return Contest(
        lambda: _python("-c", "import uda, uda.training.config"), lambda: _python("-c", "pass"), limit_seconds=2.0
    )


@BENCHMARKS.register("import_rounds")
def import_rounds(scale: float) -> Contest:
    """`import uda.adaptation.run`, which imports all modules of a run, against importing torch and torchvision."""
    return Contest(
        lambda: _python("-c", "import uda.adaptation.run"),
        lambda: _python("-c", "import torch, torchvision.transforms.v2"),
    )


@BENCHMARKS.register("first_step_digits")
def first_step_digits(scale: float) -> Contest:
    """digits_avh from process start to the end of the first training step, against importing torch; within 10 s."""
    images = max(20, round(1000 * scale))

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            _python("-c", FIRST_STEP, f"output={folder}/run", f"data.rendered_per_class={images}")

    return Contest(ours, lambda: _python("-c", "import torch, torchvision.transforms.v2"), limit_seconds=10.0)


#: The main job, which ends after its first step. The exit code is 1 if it ends without a step.
FIRST_STEP = """
import os, sys
from uda.adaptation.methods import ADAPTATION_METHODS

step = ADAPTATION_METHODS["source_only"].step

def only_step(self, *arguments):
    step(self, *arguments)
    os._exit(0)

ADAPTATION_METHODS["source_only"].step = only_step
from uda.cli.main import main
main(["adapt", "--cfg", "digits_avh.yaml", *sys.argv[1:]])
sys.exit(1)
"""


def _python(*arguments: str) -> None:
    """Run a new Python process to its end. Raises CalledProcessError if it fails. Its errors go to stderr."""
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, env=environment, check=True)
