"""What a run is made of: every change of images, labels or classes is told in words."""

import io

import numpy as np
import pytest
import torch

from uda.data.domains import TargetLabels
from uda.training.inputs import InputImages, Inputs

NAMES = ("cat/1.png", "cat/2.png", "dog/1.png")


def inputs(names=NAMES, labels=(0, 0, 1), target=("x", "y"), truth=(0, -1), classes=("cat", "dog")):
    truth = None if truth is None else TargetLabels(np.array(truth))
    parts = {"source": InputImages(names, np.array(labels)), "target": InputImages(target, truth)}
    return Inputs(classes, parts)


def saved(of):
    """A state on its way through a file."""
    buffer = io.BytesIO()
    torch.save(of.state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("of", [inputs(), inputs(truth=None), inputs(names=("a b", "ä\udcff\n", "雪"))])
def test_the_same_inputs_are_the_same(of):
    assert of.change_since(saved(of)) is None


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"classes": ("cat", "emu")}, "classes: of 2 classes 1 is gone (dog), 1 is new (emu)"),
        ({"classes": ("dog", "cat")}, "classes: of 2 classes all are present, in another order"),
        (
            {"names": ("cat/1.png", "a.png", "b.png", "c.png"), "labels": (0, 0, 0, 1)},
            "images: of 3 source images 2 are gone (cat/2.png...), 3 are new (a.png...)",
        ),
        ({"target": ("y", "x")}, "images: of 2 target images all are present, in another order"),
        ({"target": ("x",), "truth": (0,)}, "images: of 2 target images 1 is gone (y)"),
        ({"labels": (1, 0, 0)}, "labels: 2 of 3 source labels changed (cat/1.png: cat, now dog)"),
        ({"truth": (1, -1)}, "labels: the target labels are not the ones that the run was evaluated with so far"),
        ({"truth": None}, "labels: the target labels are not the ones that the run was evaluated with so far"),
    ],
)
def test_a_change_is_told(changed, words):
    before, now = inputs(), inputs(**changed)
    assert now.change_since(saved(before)) == words
    assert before.describe() != now.describe()


def test_target_labels_are_not_in_the_state():
    """A checksum is all that is kept of them."""
    part = inputs().state["images"]["target"]
    assert isinstance(part["labels"], str) and len(part["labels"]) == 8
