"""Fixtures of domain generalisation."""

import pytest

from tests.data.trees import make_folders
from uda.feature_bank import make_bank
from uda.generalization.config import GeneralizationConfig

CLASSES = ["ant", "bee", "cat", "dog"]
TINY = """\
data: {{dataset: null, domains: [{root}/drawn, {root}/photos, {root}/clay], cache: memory, store: {root}/store}}
target: {root}/clay
transforms: {{size: 24, resize: 28}}
augment: {{scale: [0.8, 1.0], flip: true}}
model: {{backbone: digits_cnn, weights: none, head: 16}}
training: {{steps: 7, evaluate_every: 3, batch_size: 4, holdout: 0.25, optim: {{lr: 0.05}}}}
runtime: {{device: cpu}}
report: {{loggers: [], page: false}}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A config of three domains of four classes, eight images each; the last one is never seen."""
    root = tmp_path_factory.mktemp("three")
    for seed, domain in enumerate(("drawn", "photos", "clay")):
        make_folders(root / domain, CLASSES, per_class=8, seed=seed)
    path = root / "tiny.yaml"
    path.write_text(TINY.format(root=root))
    return path


@pytest.fixture(scope="session")
def bank(tiny):
    """A feature bank of the three domains, with two augmented views that no run reads."""
    make_bank(GeneralizationConfig.load(tiny), tiny.parent / "bank", views=2, log=None)
    return tiny.parent / "bank"
