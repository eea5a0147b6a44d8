"""Parts with whole runs: started on a CPU and resumed on the device, interrupted, two processes on one GPU."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.core.distributed import Ranks
from uda.core.interruption import Interrupted, Interruption
from uda.device_check.parts import Finding, Setup, part
from uda.training.device import set_up_process
from uda.training.run_folder import RunLog

CLASSES = 4
#: The smallest class mean of a correct run on these images.
WELL = 0.9


class StopAfter(Interruption):
    """Asks a run to stop after `looks` training steps. A run looks at `requested` once per step."""

    def __init__(self, looks: int):
        self._looks = looks
        super().__init__()

    @property
    def requested(self) -> int | None:
        self._looks -= 1
        return signal.SIGTERM if self._looks < 0 else None

    @requested.setter
    def requested(self, number: int | None) -> None:
        pass


def write_domains(root: Path, each: int) -> None:
    """Write two folders of grey images. The class is the position of a bright stripe, so a correct run learns it."""
    for number, domain in enumerate(("drawn", "photos")):
        random = np.random.default_rng(number)
        for label in range(CLASSES):
            folder = root / domain / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = random.integers(0, 100, (28, 28), dtype=np.uint8)
                pixels[7 * label : 7 * label + 5] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")


def overrides(setup: Setup, root: Path, output: str, *more: str) -> list[str]:
    """Settings of a digits run on these images that takes seconds."""
    return [
        f"data={{dataset: null, source: {root}/drawn, target: {root}/photos, cache: memory}}",
        "source={epochs: 4, batch_size: 16, optim: {lr: 0.05}}",
        "self_training={rounds: 2, steps: 6, batch: {source: 8, selected: 8}, optim: {lr: 0.02}}",
        "report={loggers: [], page: false, gallery: 0}",
        f"runtime.device={setup.device}",
        f"output={root / output}",
        *more,
    ]


@part("resume", seconds=50)
def resume(setup: Setup) -> Iterator[Finding]:
    """A run that is stopped within a stage on the CPU and resumed on the device, with SGD and with AdamW."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_domains(root, 6 if setup.tiny else 16)
        for name in ("sgd", "adamw"):
            yield _resume(setup, root, name)


def _resume(setup: Setup, root: Path, name: str) -> Finding:
    lr = {"sgd": 0.05, "adamw": 0.005}[name]
    optim = [f"{stage}.optim={{name: {name}, lr: {lr}}}" for stage in ("source", "self_training")]
    began = AdaptationConfig.load("digits_avh", [*overrides(setup, root, name, *optim), "runtime.device=cpu"])
    try:
        set_up_process(began.runtime)
        AdaptationRun(began, RunLog(silent=True), Ranks(), StopAfter(7)).execute()
        return Finding(name, {}, "the run did not stop on request")
    except Interrupted:
        pass
    going_on = AdaptationConfig.load("digits_avh", overrides(setup, root, name, *optim))
    set_up_process(going_on.runtime)
    run = AdaptationRun(going_on, RunLog(silent=True), Ranks())
    place = run.progress.describe()
    reached = run.execute()["final"]["class_mean"]
    flaw = "" if reached >= WELL else f"a correct run reaches a class mean of {WELL:.0%}"
    figures = {"fused": str(bool(run.engine.settings.fused)), "from": place, "class mean": reached}
    return Finding(name, figures, flaw)


@part("runs", seconds=80)
def runs(setup: Setup) -> Iterator[Finding]:
    """The main command, interrupted and resumed; FixMatch in fp16; a dry run."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_domains(root, 6 if setup.tiny else 16)
        yield _interrupted(setup, root)
        steps = "adaptation={steps: 10, batch: {source: 8, target: 8}}"
        fp16 = overrides(setup, root, "fixmatch", "runtime.precision=fp16", steps)
        yield _command(setup, "digits_fixmatch, fp16", ["--cfg", "digits_fixmatch.yaml", *fp16])
        yield _command(
            setup, "digits_avh, dry run", ["--cfg", "digits_avh.yaml", "--dry-run", *overrides(setup, root, "dry")]
        )


def _interrupted(setup: Setup, root: Path) -> Finding:
    words = ["--cfg", "digits_avh.yaml", *overrides(setup, root, "cut"), "source.epochs=40"]
    over = threading.Event()

    def interrupt() -> None:
        """Send SIGTERM, as a scheduler does, when the first checkpoint is written."""
        while not over.wait(0.05):
            if any((root / "cut" / "checkpoints").glob("state-*.pt")):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watch = threading.Thread(target=interrupt, daemon=True)
    watch.start()
    first = _command(setup, "digits_avh, interrupted", words, code=128 + signal.SIGTERM)
    over.set()
    watch.join()
    if first.flaw:
        return first
    second = _command(setup, "digits_avh, given again", words)
    if second.flaw:
        return second
    results = json.loads((root / "cut" / "results.json").read_text(encoding="utf-8"))
    return Finding(second.what, {**second.figures, "class mean": results["final"]["class_mean"]})


def _command(setup: Setup, what: str, words: list[str], code: int = 0) -> Finding:
    """Run the main command in this process. The flaw has the exit code and the last output if the code is wrong."""
    said, started = io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        ended = setup.command(["adapt", *words])
    flaw = "" if ended == code else f"exit code {ended}: {_last_words(said.getvalue())}"
    return Finding(what, {"seconds": time.monotonic() - started}, flaw)


@part("ranks", seconds=60)
def ranks(setup: Setup) -> Iterator[Finding]:
    """Two processes of torchrun on one GPU: they work, or end with a clear error."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_domains(root, 6)
        device = f"runtime.device={setup.device.partition(':')[0]}"
        words = ["--cfg", "digits_avh.yaml", *overrides(setup, root, "two"), device]
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if setup.cuda:
            environment["CUDA_VISIBLE_DEVICES"] = _card(setup)
        process = subprocess.Popen(
            [*launcher, "-m", "uda", "adapt", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        try:
            said, _ = process.communicate(timeout=50)
        except subprocess.TimeoutExpired:
            process.terminate()
            said, _ = process.communicate()
            yield Finding("two processes, one device", {}, f"did not end within 50 s: {_last_words(said)}")
            return
        errors = [line.partition("error: ")[2] for line in said.splitlines() if "error: " in line]
        if process.returncode == 0:
            yield Finding("two processes, one device", {"they": "work"})
        elif errors:
            yield Finding("two processes, one device", {"they": f"say: {errors[0]}"})
        else:
            yield Finding("two processes, one device", {}, f"ended without a clear error: {_last_words(said)}")


def _card(setup: Setup) -> str:
    """The checked GPU's name for CUDA_VISIBLE_DEVICES. The variable may already limit what this process sees."""
    number = int(setup.device.partition(":")[2])
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[number] if visible else str(number)


def _last_words(said: str) -> str:
    return " / ".join(line.strip() for line in said.strip().splitlines()[-3:])[:500]
