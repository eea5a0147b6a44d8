"""Fixtures of the study of hardness."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.data.trees import make_folders
from uda.report import findings

CLASSES = ["ant", "bee", "cat"]
TINY = """\
data: {{dataset: null, train: {root}/train, test: {root}/test, cache: memory}}
transforms: {{size: 24, resize: 28}}
augment: {{flip: true}}
model: {{backbone: digits_cnn, weights: none, head: null}}
training: {{epochs: 3, batch_size: 8, optim: {{lr: 0.05, schedule: one_cycle}}}}
human: {{file: {root}/human.csv, format: csv, bins: [0, 0.5, 1]}}
runtime: {{device: cpu}}
report: {{loggers: []}}
"""


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Figures are made but not drawn, which is most of a page's time: for what looks at tables and text alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(findings, "_encoded", lambda figure, kind: b"")
        patch.setattr(findings.figures, "to_svg", lambda figure, name, description, themed: "<svg></svg>")
        yield


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """Three classes, eight images each to train on and ten to score; people know every other image well."""
    root = tmp_path_factory.mktemp("labelled")
    make_folders(root / "train", CLASSES, per_class=8, seed=0)
    make_folders(root / "test", CLASSES, per_class=10, seed=1)
    names = sorted(f"{path.parent.name}/{path.name}" for path in (root / "test").rglob("*.jpg"))
    lines = [f"{name},{0.9 if number % 2 else 0.1 + number / 100}\n" for number, name in enumerate(names)]
    (root / "human.csv").write_text("image,frequency\n" + "".join(lines))
    path = root / "tiny.yaml"
    path.write_text(TINY.format(root=root))
    return path
