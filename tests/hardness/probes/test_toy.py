"""Digits in the plane: class boundaries by hand, a short training, and a figure that draws just the table."""

import csv
import math

import numpy as np
import pytest
import torch

from tests.in_process import hardness
from uda.core.errors import UserError
from uda.data import digits
from uda.hardness.probes import toy
from uda.hardness.probes.toy_figures import embedding_figure
from uda.hardness.scoring.images import LabelledImages
from uda.hardness.scoring.scores import compute_scores
from uda.models.network import Prediction
from uda.report.findings import Findings
from uda.training.settings import RuntimeSettings

CPU = RuntimeSettings(device="cpu")
THREE = [[1, 0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]]


def prediction_of(features, weight):
    features, weight = np.array(features, np.float32), np.array(weight, np.float32)
    return Prediction(features, features @ weight.T, weight)


@pytest.mark.parametrize(
    ("weight", "degrees"),
    [
        (THREE, [-60, 60, 180]),  # directions 0, 120, 240: the bisectors
        ([[1, 0], [0, 2]], [-153.43494882, 26.56505118]),  # orthogonal to (1, -2): tan 26.565 degrees is 1/2
        ([[1, 0], [0, 1], [-1, -1], [0.1, 0.1]], [-63.43494882, 45, 153.43494882]),  # the last is never the largest
        ([[2, 0], [1, 0]], [-90, 90]),  # one direction, two lengths
        ([[1, 1], [1, 1]], []),  # equal everywhere
    ],
)
def test_boundaries_by_hand(weight, degrees):
    assert np.degrees(toy.boundaries(np.array(weight))).tolist() == pytest.approx(degrees)


def test_boundaries_are_where_the_largest_logit_changes():
    """Against a walk round the circle in 200,000 steps, for weights of all lengths."""
    weight = np.random.default_rng(4).normal(size=(8, 2))
    circle = np.linspace(-math.pi, math.pi, 200_001)
    largest = (np.stack([np.cos(circle), np.sin(circle)], 1) @ weight.T).argmax(1)
    changes = circle[1:][np.diff(largest) != 0]
    assert toy.boundaries(weight).tolist() == pytest.approx(changes.tolist(), abs=5e-5)


def test_boundary_angle_by_hand():
    """Boundaries at -60, 60 and 180 degrees; features at 0, 50 and 190 degrees and at 70, labelled as of the first."""
    turns = np.radians([0, 50, 190, 70])
    features = np.stack([np.cos(turns), np.sin(turns)], 1) * np.array([[1], [30], [0.2], [5]])
    found = toy.boundary_angle(prediction_of(features, THREE), np.array([0, 0, 2, 0]))
    assert np.degrees(found).tolist() == pytest.approx([60, 10, 10, -10], abs=1e-4)
    with pytest.raises(UserError, match="no boundary"):
        toy.boundary_angle(prediction_of(features, [[1, 1], [1, 1]]), np.zeros(4, np.int64))


@pytest.fixture(scope="module")
def few():
    """Digits 0, 1 and 7, 100 of each."""
    images, labels = digits.mnist()
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:100] for digit in (0, 1, 7)])
    return LabelledImages(images.take(chosen), np.repeat([0, 1, 2], 100), ("0", "1", "7"))


@pytest.fixture(scope="module")
def trained(few):
    rows = np.flatnonzero(np.arange(300) % 5 > 0)
    return toy.train(few, rows, epochs=6, seed=3, runtime=CPU, log=None), rows


def test_a_short_training_tells_a_few_digits(trained, few):
    (network, prediction), rows = trained
    assert prediction.features.shape == (300, 2) and prediction.weight.shape == (3, 2)
    assert network.classifier.bias is None
    right = prediction.logits.argmax(1) == few.labels
    assert right[rows].mean() > 0.9
    assert np.allclose(prediction.logits, prediction.features @ prediction.weight.T, atol=1e-4)
    assert prediction.features.min() < 0, "no ReLU after the feature"


def test_training_is_its_seeds(few):
    features = [
        toy.train(few, np.arange(0, 300, 3), epochs=1, seed=seed, runtime=CPU, log=None)[1].features
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(features[0], features[1]) and not np.allclose(features[0], features[2])


def toy_of(prediction, few, held_out):
    scores = compute_scores(prediction, few.labels, toy.SCORE_NAMES)
    return toy.Toy(few, held_out, prediction, scores, toy.boundary_angle(prediction, few.labels))


def test_correlations_by_hand(few):
    """Equal weights round the circle: p_y falls with the angle to w_y as AVH rises, the norm is one of two values.

    All images of the first class, so that the angle to its boundary is 60 degrees less that to its weight.
    """
    turns = np.radians([-50, -40, -30, -20, -10, 5, 15, 25, 35, 45])
    features = np.stack([np.cos(turns), np.sin(turns)], 1) * np.where(np.arange(10) % 2, 1, 2)[:, None]
    ten = LabelledImages(few.images.take(np.arange(10)), np.zeros(10, np.int64), few.classes)
    found = toy_of(prediction_of(features, THREE), ten, np.zeros(10, bool))
    found.scores["norm"] = found.scores["norm"].round(3)  # in single precision no two are equal
    assert np.degrees(found.boundary).tolist() == pytest.approx([10, 20, 30, 40, 50, 55, 45, 35, 25, 15], abs=1e-4)
    rows = {row["score"]: row for row in toy.correlation_rows(found)}
    assert rows["avh"]["spearman"] == pytest.approx(-1) and rows["avh"]["by_class"] == pytest.approx(-1)
    # Ranks of the angle 1 3 5 7 9 10 8 6 4 2; those of norm 2 (at even places) 8, of norm 1 3: sums 27 and 28.
    covariance = (27 * 8 + 28 * 3) / 10 - 5.5 * 5.5
    expected = covariance / math.sqrt(8.25 * 6.25)
    assert rows["norm"]["spearman"] == pytest.approx(expected)
    half = 1.959964 * math.sqrt((1 + expected**2 / 2) / 7)
    assert rows["norm"]["high"] == pytest.approx(math.tanh(math.atanh(expected) + half))
    assert {row["images"] for row in toy.correlation_rows(found)} == {"trained on"}


def test_the_figure_draws_the_rows(trained, few):
    (_, prediction), rows = trained
    found = toy_of(prediction, few, ~np.isin(np.arange(300), rows))
    points = toy.point_rows(found)
    weights = [
        {"class": name, "direction": math.atan2(w[1], w[0])}
        for name, w in zip(few.classes, prediction.weight, strict=True)
    ]
    figure = embedding_figure(points, weights, toy.boundaries(prediction.weight))
    by_class, by_avh, by_norm, *bars = figure.axes
    x = np.array([[row["x1"], row["x2"]] for row in points])
    for axes in (by_class, by_avh, by_norm):
        assert axes.get_aspect() == 1 and axes.get_xlabel() == "x1"
    drawn = {cloud.get_label(): cloud.get_offsets().tolist() for cloud in by_class.collections}
    assert drawn == {f"class {name}": x[[row["label"] == name for row in points]].tolist() for name in few.classes}
    for axes, key, scale in ((by_avh, "avh", 3), (by_norm, "norm", 1)):
        (cloud,) = axes.collections
        assert cloud.get_offsets().tolist() == x.tolist() and cloud.get_rasterized()
        assert cloud.get_array().tolist() == pytest.approx([scale * row[key] for row in points])
    assert [bar.get_ylabel() for bar in bars] == ["AVH, in units of 1 / K", "norm |x|"]
    assert sorted(text.get_text() for text in by_class.texts) == ["0", "1", "7"]
    for text, weight in zip(by_class.texts, prediction.weight, strict=True):
        place = np.array(text.get_position())
        assert place / np.linalg.norm(place) == pytest.approx(weight / np.linalg.norm(weight), abs=1e-6)


def test_the_digits_are_held_out_by_class():
    data, held_out = toy.load_digits(None)
    assert np.bincount(data.labels[held_out]).tolist() == [100] * 10 and len(held_out) == 5000


def test_torchvisions_mnist_by_its_folder(in_folder, monkeypatch, capsys):
    """Files in MNIST's own format: a head of big-endian numbers, then bytes."""
    raw = in_folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    stored = {}
    for part, count in (("train", 6), ("t10k", 4)):
        pixels = random.integers(256, size=(count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = np.array([2051, count, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">i4").tobytes() + labels.tobytes())
        stored[part] = pixels
    data, held_out = toy.load_digits(in_folder)
    assert held_out.tolist() == [False] * 6 + [True] * 4
    assert data.images.ids[0] == "train/00000" and data.images.ids[6] == "test/00000"
    assert torch.equal(data.images.read(7)[0], torch.from_numpy(stored["t10k"][1]))
    assert hardness(["toy", "--data", "nowhere", "--out", "o"]) == 2
    assert "--data: MNIST is not in nowhere" in capsys.readouterr().err
    assert hardness(["toy", "--epochs", "0"]) == 2
    assert "--epochs: 0: must be at least 1" in capsys.readouterr().err


def test_the_command_leaves_a_page_with_the_raw_data(in_folder, few, monkeypatch, capsys):
    monkeypatch.setattr(toy, "load_digits", lambda folder: (few, np.arange(300) % 3 == 0))
    assert hardness(["toy", "--epochs", "2", "--out", "found", "runtime.device=cpu"]) == 0
    out = capsys.readouterr().out
    assert "of 200 images trained on" in out and "page: found/index.html" in out
    with (in_folder / "found" / "toy_embedding.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == few.images.ids
    assert list(rows[0]) == [
        "image", "x1", "x2", "label", "predicted", "held_out", "avh", "norm", "confidence", "boundary_angle"
    ]  # fmt: skip
    assert all(math.hypot(float(r["x1"]), float(r["x2"])) == pytest.approx(float(r["norm"])) for r in rows)
    page = (in_folder / "found" / "index.html").read_text()
    assert "Digits in the plane" in page and "100 images held out" in page
    findings = Findings(in_folder, "t")
    assert set(toy.toy(findings, epochs=1, runtime=CPU, log=None, name="other")) == {
        "points", "weights", "correlations", "accuracy"
    }  # fmt: skip
    assert (in_folder / "other_embedding.png").is_file()
