"""Shared fixtures."""

import pytest
import torch

#: Overrides that make a digits run take seconds.
TINY_DIGITS = [
    "data.rendered_per_class=20",
    "source.epochs=1",
    "source.batch_size=50",
    "self_training.rounds=2",
    "self_training.steps=3",
    "report.tensorboard=false",
    "report.gallery=4",
    "runtime.predict_batch_size=1000",
]


@pytest.fixture(autouse=True)
def fixed_randomness():
    """Every test starts from one seed and leaves torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """Work in a temporary folder, so that runs/ does not land in the checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
