"""From one class to another: PGD by hand, the path's numbers, and figures that draw just those."""

import csv
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.data.trees import make_folders
from tests.in_process import hardness
from uda.core.errors import UserError
from uda.data.images import ImageArray
from uda.data.settings import TransformSettings
from uda.hardness.probes.image_paths import Paths, choose, find_class, follow
from uda.hardness.probes.pgd import DEFAULT_RADIUS, Attack, lengths, pgd
from uda.hardness.probes.pixels import Pixels
from uda.hardness.probes.trajectory import aligned_rows, event_rows, step_rows, trajectory, where_avh_crosses
from uda.hardness.probes.trajectory_figures import frames_figure, magnification, path_figure, shown_steps
from uda.hardness.scoring.classifier import LoadedClassifier, with_linear_head
from uda.hardness.scoring.images import LabelledImages
from uda.models.network import Network
from uda.report.findings import Findings
from uda.selection.angular import avh
from uda.training.settings import RuntimeSettings

CLASSES = ("ant", "bee", "cat", "dog")
CPU = RuntimeSettings(device="cpu")
SMALL = TransformSettings(size=8, resize=8)


class Flat(nn.Sequential):
    """16-entry features of images of 8 pixels, by way of a BatchNorm, which eval mode must hold still."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(36, 16))


@pytest.fixture(params=["linear_head", "network"])
def classifier(request):
    """A random network of either kind, in train mode."""
    if request.param == "network":
        network = Network(Flat(), 16, 4, head=8, dropout=0.5)
    else:
        network = with_linear_head(nn.Sequential(Flat(), nn.Dropout(0.5), nn.Linear(16, 4)), torch.randn(2, 3, 8, 8))
    return LoadedClassifier("small", network.train(), SMALL, CLASSES)


@pytest.fixture
def data():
    """Twenty random images, which no network need be right about."""
    pixels = np.random.default_rng(0).integers(256, size=(20, 3, 8, 8)).astype(np.uint8)
    return LabelledImages(ImageArray(pixels, [f"{i:02d}.png" for i in range(20)]), np.arange(20) % 4, CLASSES)


def labelled_as_predicted(classifier, data):
    """The images with the labels that the classifier gives them, and its two commonest classes."""
    pixels = torch.stack([data.images.read(i) for i in range(20)]) / 255
    with torch.no_grad():
        predicted = classifier.network.eval()(Pixels(SMALL).to_inputs(pixels)).logits.argmax(1).numpy()
    common = np.bincount(predicted, minlength=4).argsort()[::-1]
    return LabelledImages(data.images, predicted, CLASSES), int(common[0]), int(common[1])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_step_long_hand(classifier, norm):
    """One step down the gradient of -log softmax, of length 0.01 in its norm, by autograd image by image."""
    network, pixels = classifier.network, Pixels(SMALL)
    images = 0.25 + 0.5 * torch.rand(3, 3, 8, 8)
    before = images.clone()
    with torch.no_grad():  # the caller's mode must not matter
        path = list(pgd(network, pixels, images, 2, Attack(norm, 1, 0.01, 0.1)))
    assert not network.training and torch.equal(images, before) and torch.equal(path[0][0], images)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (SMALL.mean, SMALL.std))
    for i in range(3):
        image = images[i : i + 1].clone().requires_grad_()
        loss = -network((image - mean) / std).logits.log_softmax(1)[0, 2]
        gradient = torch.autograd.grad(loss, image)[0][0]
        step = gradient.sign() if norm == "linf" else gradient / gradient.pow(2).sum().sqrt()
        assert torch.allclose(path[1][0][i], images[i] - 0.01 * step, atol=1e-6)
    assert lengths(path[1][0] - images, norm).tolist() == pytest.approx([0.01] * 3, rel=1e-4)


def test_gradients_of_the_parameters_are_left_alone(classifier):
    parameters = list(classifier.network.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    state = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    list(pgd(classifier.network, Pixels(SMALL), torch.rand(4, 3, 8, 8), 0, Attack("l2", 3, 0.1, 0.2)))
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
    assert all(p.grad is None for p in parameters[1:]) and all(p.requires_grad for p in parameters)
    assert all(torch.equal(value, state[key]) for key, value in classifier.network.state_dict().items())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_paths_stay_in_the_ball_and_the_loss_falls(classifier, norm):
    images = torch.rand(4, 3, 8, 8).round(decimals=1)  # some values are 0 and 1
    attack = Attack(norm, steps=12, step_size=0.05, eps=0.2)
    path = list(pgd(classifier.network, Pixels(SMALL), images, 1, attack))
    assert len(path) == 13
    reached = torch.stack([lengths(moved - images, norm) for moved, _ in path])
    assert (reached <= 0.2 + 1e-6).all() and (reached[-1] > 0.15).all()
    assert all(moved.min() >= 0 and moved.max() <= 1 for moved, _ in path)
    losses = torch.stack([F.cross_entropy(o.logits, torch.full((4,), 1), reduction="none") for _, o in path])
    assert (losses[-1] < losses[0]).all() and (losses.diff(dim=0).mean(1)[:3] < 0).all()
    alone = list(pgd(classifier.network, Pixels(SMALL), images[2:3], 1, attack))
    assert torch.allclose(alone[-1][0][0], path[-1][0][2], atol=1e-5), "no image depends on the others"


def test_open_values_are_decided_by_the_size_of_the_image():
    found = Attack().settled(3 * 32 * 32)
    assert found.eps == pytest.approx(DEFAULT_RADIUS * math.sqrt(3072)) and found.step_size == found.eps / 50
    assert Attack("linf", steps=10).settled(3072).eps == DEFAULT_RADIUS
    assert Attack("linf", 10, step_size=0.3, eps=0.5).settled(5) == Attack("linf", 10, 0.3, 0.5)


def test_a_path_holds_what_the_classifier_makes_of_its_last_image(classifier, data):
    data, source, target = labelled_as_predicted(classifier, data)
    chosen = choose(classifier, data, source, count=2, runtime=CPU, log=None)
    assert len(chosen.images) == 2 and (chosen.labels == source).all()
    paths = follow(classifier, chosen, source, target, Attack(steps=5), CPU, None)
    last = torch.from_numpy(paths.frames[-1]).permute(2, 0, 1)[None]
    with torch.no_grad():
        output = classifier.network(Pixels(SMALL).to_inputs(last))
    for end, label in (("from", source), ("to", target)):
        expected = avh(output.features, classifier.network.weight.detach(), torch.tensor([label]))
        assert paths.values[f"avh_{end}"][-1, 0] == pytest.approx(float(expected), abs=1e-6)
        assert paths.values[f"p_{end}"][-1, 0] == pytest.approx(float(output.logits.softmax(1)[0, label]), abs=1e-5)
    assert paths.values["norm"][-1, 0] == pytest.approx(float(output.features.norm()), rel=1e-5)
    assert paths.predicted[-1, 0] == int(output.logits.argmax())
    first = torch.from_numpy(paths.frames[0]).permute(2, 0, 1)
    assert torch.allclose(first * 255, chosen.images.read(0).float(), atol=1e-3)
    assert paths.values["l2"][-1, 0] == pytest.approx(float((last[0] - first).norm()), rel=1e-4)
    assert paths.values["linf"][-1, 0] == pytest.approx(float((last[0] - first).abs().max()), rel=1e-4)
    assert (paths.values["p_to"][-1] > paths.values["p_to"][0]).all()
    more = follow(classifier, data.take(np.arange(20)), source, target, Attack(steps=1), CPU, None)
    assert more.values["l2"].shape == (2, 20) and len(more.ids) == 20, "more than go at once"


@pytest.fixture
def paths():
    """Three images over four steps between classes 0 and 1 of four: flips at steps 2 and 1 and never."""
    predicted = np.array([[0, 0, 0], [2, 1, 0], [1, 1, 2], [1, 1, 2]])
    avh_from = np.array([[0.1, 0.1, 0.1], [0.2, 0.2, 0.1], [0.2, 0.3, 0.1], [0.2, 0.3, 0.1]])
    avh_to = np.array([[0.3, 0.3, 0.3], [0.1, 0.25, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    steps = np.arange(4.0)[:, None].repeat(3, 1)
    values = {"avh_from": avh_from, "avh_to": avh_to, "norm": steps + np.arange(3), "l2": steps, "linf": steps / 9}
    values |= {f"{name}_{end}": steps / 7 for name in ("angle", "p") for end in ("from", "to")}
    frames = np.random.default_rng(0).random((4, 8, 8, 3))
    return Paths("m", CLASSES, 0, 1, ("a", "b", "c"), Attack("l2", 3, 1.0, 3.0), values, predicted, frames)


def test_events_by_hand(paths):
    events = event_rows(paths)
    assert [tuple(row.values()) for row in events] == [
        ("a", 1, 2, 1, -1), ("b", 1, 1, 2, 1), ("c", 2, None, None, None)
    ]  # fmt: skip
    assert where_avh_crosses(events[:1]).endswith("falls below AVH to the source class 1 step earlier.")
    text = where_avh_crosses(events)
    assert "step 1.5 (median of the 2 of 3 images that reach the target class)" in text
    assert "at the same step (median; from -1 to +1): earlier in 1, at the same step in 0, later in 1" in text
    assert where_avh_crosses(events[2:]).startswith("No image reaches the target class")


def test_means_by_hand(paths):
    rows = step_rows(paths)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[1]["avh_from"] == pytest.approx(4 * 0.5 / 3)
    half = 1.96 * 4 * np.std([0.2, 0.2, 0.1], ddof=1) / math.sqrt(3)
    assert rows[1]["avh_from_high"] == pytest.approx(4 * 0.5 / 3 + half)
    assert [row["share_to"] for row in rows] == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3])
    assert rows[2]["norm"] == 3 and rows[2]["predicted"] == "bee"
    aligned = {row["from_flip"]: row for row in aligned_rows(paths, event_rows(paths))}
    assert sorted(aligned) == [-2, -1, 0, 1, 2]
    assert aligned[-1]["images"] == 2 and aligned[-1]["avh_to"] == pytest.approx(4 * (0.1 + 0.3) / 2)
    assert aligned[2]["images"] == 1 and aligned[2]["avh_from"] == pytest.approx(4 * 0.3)


@pytest.mark.parametrize("quantity", ["avh", "angle", "p", "norm"])
def test_curves_draw_the_rows(paths, quantity):
    rows = step_rows(paths)
    (axes,) = path_figure(rows, quantity, ("ant", "bee"), flip=1.5).axes
    keys = ["norm"] if quantity == "norm" else [f"{quantity}_from", f"{quantity}_to"]
    *lines, flip = axes.lines
    assert len(lines) == len(axes.collections) == len(keys)
    for key, line, band in zip(keys, lines, axes.collections, strict=True):
        assert list(line.get_xdata()) == [0, 1, 2, 3] and list(line.get_ydata()) == [row[key] for row in rows]
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(min(row[f"{key}_low"] for row in rows))
        assert heights.max() == pytest.approx(max(row[f"{key}_high"] for row in rows))
    assert list(flip.get_xdata()) == [1.5, 1.5]
    assert axes.get_xlabel() == "PGD step" and axes.get_ylabel()
    names = [text.get_text() for text in axes.figure.legends[0].texts]
    assert names == (["from ant", "to bee"] if len(keys) == 2 else []) + ["prediction flips"]


def test_frames_show_the_image_and_its_change():
    first = np.full((4, 4, 3), 0.4)
    frames = np.stack([first, first + 0.04, first - 0.06])
    assert magnification(frames) == 5, "10 times 0.06 is more than half the range"
    figure = frames_figure(frames, [0, 3, 7], ["a", "b", "c"], [False, False, True], 5)
    images, changes = figure.axes[:3], figure.axes[3:]
    assert [axes.get_title() for axes in images] == ["step 0", "step 3", "step 7"]
    assert [axes.images[0].get_array().tolist() for axes in images] == frames.tolist()
    assert [axes.images[0].get_array().mean() for axes in changes] == pytest.approx([0.5, 0.7, 0.2])
    assert changes[0].get_ylabel() == "change × 5"
    assert shown_steps(50, 31) == [0, 12, 25, 30, 31, 38, 50] and shown_steps(4, None) == [0, 1, 2, 3, 4]


def test_what_cannot_be_moved_is_named(classifier, data):
    with pytest.raises(UserError, match=r"`target`: unknown class 'bees', did you mean 'bee'"):
        find_class("bees", CLASSES, "`target`")
    data, source, target = labelled_as_predicted(classifier, data)
    missing = LabelledImages(data.images, np.full(20, target), CLASSES)
    with pytest.raises(UserError, match=f"the data have no image of class '{CLASSES[source]}'"):
        choose(classifier, missing, source, runtime=CPU, log=None)
    others = data.take(np.flatnonzero(data.labels != source))
    wrong = LabelledImages(others.images, np.full(len(others.labels), source), CLASSES)
    with pytest.raises(UserError, match=f"none of {len(others.labels)} images is; choose another"):
        choose(classifier, wrong, source, runtime=CPU, log=None)
    with pytest.raises(UserError, match=rf"{others.images.ids[0]} is classified as '"):
        choose(classifier, wrong, source, image=others.images.ids[0], runtime=CPU, log=None)
    with pytest.raises(UserError, match=f"is of class .*, not of `source` '{CLASSES[source]}'"):
        choose(classifier, data, source, image=others.images.ids[0], runtime=CPU, log=None)
    with pytest.raises(UserError, match=r"no image '3.png', did you mean '[0-9]3.png'"):
        choose(classifier, data, source, image="3.png", runtime=CPU, log=None)
    with pytest.raises(UserError, match=r"`image` names one image, but `count` is 3"):
        choose(classifier, data, source, count=3, image="03.png", runtime=CPU, log=None)
    said = []
    right = choose(classifier, data, source, count=50, runtime=CPU, log=said.append)
    assert len(right.labels) == (data.labels == source).sum() and "only" in said[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "ant"], "--from and --to are both 'ant'"),
        (["--to", "cow"], "--to: unknown class 'cow' (ant, bee, "),
        (["--to", "bee", "--norm", "l1"], "--norm: unknown 'l1' (known: l2, linf)"),
        (["--to", "bee", "--steps", "0"], "--steps: 0: must be at least 1"),
        (["--to", "bee", "--eps", "0"], "--eps: 0.0: must be above 0"),
        (
            ["--to", "bee", "--norm", "linf", "--eps", "8"],
            "--eps: 8: must be at most 1 (pixels are from 0 to 1; 8/255 is .031)",
        ),
        (["--to", "bee", "--step-size", "nan"], "--step-size: nan: must be above 0"),
        (["--to", "bee", "--count", "0"], "--count: 0: must be at least 1"),
    ],
)
def test_mistakes_on_the_command_line_are_named(words, message, in_folder, monkeypatch, capsys):
    network = Network(Flat(), 16, 4)
    monkeypatch.setattr(
        "uda.hardness.scoring.classifier.load_classifier", lambda *_: LoadedClassifier("m", network, SMALL, CLASSES)
    )
    make_folders(in_folder / "own", CLASSES)
    assert hardness(["trajectory", "--model", "m", "--data", "own", "--from", "ant", "--out", "o", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (in_folder / "o").exists()


def test_the_page_of_several_images(data, tmp_path):
    classifier = LoadedClassifier("small", Network(Flat(), 16, 4), SMALL, CLASSES)
    data, source, target = labelled_as_predicted(classifier, data)
    findings = Findings(tmp_path, "t")
    found = trajectory(
        classifier, data, findings, source=CLASSES[source], target=CLASSES[target], count=2,
        attack=Attack(steps=8, eps=5.0), runtime=CPU, log=None,
    )  # fmt: skip
    page = findings.write().read_text()
    assert any(row["flips"] is not None for row in found["events"]), "eps reaches far enough"
    assert f"From {CLASSES[source]} to {CLASSES[target]}" in page and where_avh_crosses(found["events"]) in page
    with (tmp_path / "trajectory_paths.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 9
    assert [float(row["avh_to"]) for row in rows] == [row["avh_to"] for row in found["paths"]]
    names = {path.name for path in tmp_path.glob("*.png")}
    assert names == {f"trajectory_{name}.png" for name in ("avh", "angle", "p", "norm", "aligned", "frames")}
