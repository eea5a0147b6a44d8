"""Figures of single images."""

import numpy as np
import pytest

from uda.evaluation import per_image as module
from uda.evaluation.per_image import per_image
from uda.models.network import Prediction

PI = np.pi


@pytest.fixture
def prediction():
    """Class weights along the axes of the plane. The first feature lies at 30 degrees, so its angles to them are 30 and
    60; the second at 90 degrees, so 90 and 0; the third is 0, so both are 90."""
    features = np.array([[np.sqrt(3), 1], [0, 5], [0, 0]], np.float32)
    logits = np.array([[2.0, 1.0], [0.0, 5.0], [0.5, 0.5]], np.float32)
    return Prediction(features, logits, np.eye(2, dtype=np.float32) * 7)


def test_figures_by_hand(prediction):
    """AVH is the angle's share of both angles, AVC that of 180 degrees less the angle."""
    found = per_image(prediction)
    assert found["prediction"].tolist() == [0, 1, 0]
    assert found["probability"] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-5)), 0.5])
    assert found["avh"] == pytest.approx([30 / 90, 0, 0.5], abs=1e-6)
    assert found["avc"] == pytest.approx([150 / 270, 180 / 270, 0.5], abs=1e-6)
    assert found["norm"] == pytest.approx([2, 5, 0])
    assert {values.dtype for name, values in found.items() if name != "prediction"} == {np.dtype(np.float32)}


def test_angles_of_other_labels(prediction):
    found = per_image(prediction, np.array([1, 0, 1]))
    assert found["avh"] == pytest.approx([60 / 90, 1, 0.5], abs=1e-6)
    assert found["avc"] == pytest.approx([120 / 270, 90 / 270, 0.5], abs=1e-6)
    assert found["prediction"].tolist() == [0, 1, 0] and found["probability"][0] > 0.7


def test_parts_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in ((23, 6), (23, 4), (4, 6))]
    whole = per_image(Prediction(*arrays))
    monkeypatch.setattr(module, "CHUNK_ENTRIES", 30)
    parts = per_image(Prediction(*arrays))
    for name, values in whole.items():
        assert np.array_equal(values, parts[name]), name


def test_no_images_have_no_figures():
    empty = Prediction(np.zeros((0, 3), np.float32), np.zeros((0, 2), np.float32), np.ones((2, 3), np.float32))
    assert {len(values) for values in per_image(empty).values()} == {0}
