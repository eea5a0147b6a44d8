"""Shared fixtures, and how many processes the tests take."""

import functools
import itertools
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

# Tests run in a process per core: with more threads than one each, they would wait for one another. Before torch is
# imported, because it reads this once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

from tests.data.trees import make_folders
from uda.data import digits
from uda.training import run_folder


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config):
    """With `-n auto`, which pyproject.toml has: no other process for files and tests that are named, nor with `-s`.

    A person waits for these, and they are over before another process has imported torch. Otherwise pytest-xdist
    decides: a process per core, and none with `--pdb`.
    """
    named = all(".py" in word for word in config.args)
    return 0 if named or config.option.capture == "no" else None


@pytest.fixture(autouse=True, scope="session")
def quick_starts():
    """Runs wait neither for the disk nor for git: no test cuts the power, and the commit is one and the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(run_folder, "code_commit", functools.cache(run_folder.code_commit))
        yield


def pytest_runtest_setup(item):
    """Tests of a GPU are skipped where there is none."""
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def fixed_randomness():
    """Every test starts from one seed and leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def starts_apart(monkeypatch):
    """Event files of starts within one second are read in the order of the starts. TensorBoard sorts them by name."""
    from tensorboard.summary.writer import event_file_writer

    seconds = itertools.count(1_700_000_000)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(seconds)))


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """Work in a temporary folder, so that runs/ does not land in the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def held():
    """A context in which another process has locked a folder."""
    pytest.importorskip("fcntl")
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"

    @contextmanager
    def by_another(folder):
        command = [sys.executable, "-c", hold, str(folder / ".lock")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            other.stdout.readline()
            yield
            other.communicate(b"\n")

    return by_another


@pytest.fixture
def fewer_digits(monkeypatch):
    """A tenth of the handwritten digits, all classes alike: runs predict each of them several times."""
    images, labels = digits.mnist()
    rows = np.argsort(labels, kind="stable")[::10]
    monkeypatch.setattr(digits, "mnist", lambda: (images.take(rows), labels[rows]))


TINY = """\
data: {{dataset: null, source: {root}/drawn, target: {root}/photos, cache: memory}}
transforms: {{size: 24, resize: 28, source: {{scale: [0.8, 1.0], flip: true}}, target: {{scale: [0.8, 1.0]}}}}
model: {{backbone: digits_cnn, weights: none, head: 16}}
source: {{epochs: 1, batch_size: 8, optim: {{lr: 0.05}}}}
self_training:
  rounds: 2
  steps: 3
  portion: {{start: 0.5, step: 0.1, max: 0.9}}
  source_share: {{start: 0.5, max: 1.0}}
  batch: {{source: 4, selected: 4}}
  optim: {{lr: 0.05}}
runtime: {{device: cpu}}
report: {{loggers: [], page: false, gallery: 2}}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Path of a config whose runs take a second: four classes of drawn stripes, eight images each in either domain."""
    root = tmp_path_factory.mktemp("tiny")
    for seed, domain in enumerate(("drawn", "photos")):
        make_folders(root / domain, ["ant", "bee", "cat", "dog"], per_class=8, seed=seed)
    path = root / "tiny.yaml"
    path.write_text(TINY.format(root=root))
    return path
