"""Degraded images: what is done to them, what their scores are, and that the figures draw just that."""

import csv
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.data.trees import make_folders
from tests.hardness.conftest import undrawn
from tests.in_process import hardness
from uda.data.images import ImageArray
from uda.data.settings import TransformSettings
from uda.data.transforms import make_predict
from uda.hardness.probes.degradations import DEGRADATIONS, degraded, seed_of
from uda.hardness.probes.degrade import (
    Degraded,
    curve_rows,
    degrade,
    level_correlation,
    measure,
    order_rows,
    typical,
    views,
)
from uda.hardness.probes.degrade_figures import CURVES, curves_figure, examples_figure
from uda.hardness.scoring.classifier import LoadedClassifier, with_linear_head
from uda.hardness.scoring.images import LabelledImages, engine_for, stratified
from uda.hardness.scoring.scores import compute_scores
from uda.report.figures import INK
from uda.report.findings import Findings
from uda.training.settings import RuntimeSettings

CPU = RuntimeSettings(device="cpu", predict_batch_size=4)
SMALL = TransformSettings(size=16, resize=16)
LEVELS = [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.fixture(scope="module")
def images():
    """Six colour images of 16 pixels with structure at several scales, (6, 3, 16, 16) in 0..1."""
    coarse = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    fine = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return 0.6 * nn.functional.interpolate(coarse, scale_factor=4) + 0.4 * fine


@pytest.mark.parametrize("kind", sorted(DEGRADATIONS))
def test_level_0_is_the_image_and_each_level_is_farther_from_it(kind, images):
    before = images.clone()
    found = [degraded(images, kind, level, range(6)) for level in LEVELS]
    assert torch.equal(images, before)
    assert torch.equal(found[0], images)
    distances = torch.stack([(image - images).flatten(1).norm(dim=1) for image in found])
    assert (distances.diff(dim=0) > 0).all()
    assert all(float(image.min()) >= 0 and float(image.max()) <= 1 for image in found)


@pytest.mark.parametrize("kind", sorted(DEGRADATIONS))
def test_an_image_is_degraded_alike_in_any_batch(kind, images):
    together = degraded(images, kind, 0.5, [7, 8, 9, 10, 11, 12])
    alone = [degraded(images[i : i + 1], kind, 0.5, [7 + i])[0] for i in range(6)]
    assert torch.allclose(together, torch.stack(alone), atol=1e-6)
    if kind == "noise":
        assert not torch.equal(together[0] - images[0], together[1] - images[1])
        assert torch.equal(together, torch.stack(alone))


def test_contrast_at_level_1_leaves_a_hundredth():
    """Pixels 0 and 1 in equal parts: mean .5, so .5 -+ .5 * .01; at level 1/2 .5 -+ .5 * .1."""
    image = torch.tensor([0.0, 1.0]).repeat(8, 4)[None, None]
    assert degraded(image, "contrast", 1.0, [0])[0, 0, 0, :2].tolist() == pytest.approx([0.495, 0.505])
    assert degraded(image, "contrast", 0.5, [0])[0, 0, 0, :2].tolist() == pytest.approx([0.45, 0.55])


@pytest.mark.parametrize("side", [32, 224])
def test_blur_is_a_gaussian_relative_to_the_side(side):
    """A point becomes exp(-r^2 / 2 sigma^2) of its new middle, sigma = .5^1.5 / 8 of the side."""
    image = torch.zeros(1, 1, side, side)
    image[0, 0, side // 2, side // 2] = 1
    found = degraded(image, "blur", 0.5, [0])[0, 0]
    sigma, step = 0.5**1.5 / 8 * side, side // 32
    middle = found[side // 2, side // 2]
    assert float(found[side // 2, side // 2 + step] / middle) == pytest.approx(math.exp(-(step**2) / 2 / sigma**2))
    assert float(found[side // 2 + step, side // 2 + step] / middle) == pytest.approx(math.exp(-(step**2) / sigma**2))
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_noise_has_the_standard_deviation_it_says():
    grey = torch.full((1, 3, 64, 64), 0.5)
    found = degraded(grey, "noise", 0.3, [5]) - grey
    assert float(found.std()) == pytest.approx(0.09, rel=0.02)  # 0.5 is 5.5 of them away from either end
    assert float(found.mean()) == pytest.approx(0, abs=0.003)


def test_an_images_seed_is_its_names_alone():
    assert seed_of("a/1.png", 0) == seed_of("a/1.png", 0)
    assert len({seed_of("a/1.png", 0), seed_of("a/2.png", 0), seed_of("a/1.png", 1)}) == 3


def test_stratified_draws_hold_each_class_in_its_share():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    drawn = stratified(labels, 20, 3)
    assert np.bincount(labels[drawn]).tolist() == [12, 6, 2]
    assert drawn.tolist() == sorted(set(drawn.tolist())) == stratified(labels, 20, 3).tolist()
    assert drawn.tolist() != stratified(labels, 20, 4).tolist()
    assert stratified(labels, 500, 0).tolist() == list(range(100))


def test_level_correlation_by_hand():
    """Columns: rising, falling, constant, and (1, 3, 2): 1 - 6 (0 + 1 + 1) / (3 * 8) = .5."""
    values = np.array([[1, 3, 5, 1], [2, 2, 5, 3], [9, 1, 5, 2]], float)
    assert level_correlation(values).tolist() == pytest.approx([1, -1, 0, 0.5])


def classifier_of(seed=0, name="small"):
    """Four classes of 16-pixel colour images by a random network, in which neighbouring pixels work together."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LoadedClassifier(name, small_network(), SMALL, ("ant", "bee", "cat", "dog"))


def small_network():
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten())
    return with_linear_head(nn.Sequential(body, nn.Linear(72, 4)), torch.randn(2, 3, 16, 16))


@pytest.fixture(scope="module")
def data(images):
    pixels = (torch.cat([images, images.flip(-1)]) * 255).byte().numpy()
    return LabelledImages(
        ImageArray(pixels, [f"{i}.png" for i in range(12)]), np.arange(12) % 4, ("ant", "bee", "cat", "dog")
    )


def test_measured_scores_are_those_of_the_degraded_images(data):
    """Against each level's images made by hand, normalised and predicted as images of their own."""
    classifier = classifier_of()
    found = measure(classifier, data, ["noise", "blur"], levels=3, seed=5, runtime=CPU, log=None)
    plain = engine_for(classifier, CPU, None).predict_images(data.images, make_predict(classifier.transforms))
    assert found.scores["avh"][0, 0].tolist() == pytest.approx(
        compute_scores(plain, data.labels, ["avh"])["avh"].tolist(), abs=1e-6
    )
    assert found.predicted[1, 0].tolist() == plain.logits.argmax(1).tolist()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (classifier.transforms.mean, classifier.transforms.std))
    pixels = torch.stack([data.images.read(i) for i in range(12)]) / 255
    for k, kind in enumerate(["noise", "blur"]):
        changed = degraded(pixels, kind, 0.5, [seed_of(f"{i}.png", 5) for i in range(12)])
        prediction = engine_for(classifier, CPU, None).predict([(changed - mean) / std], 12)
        for name, values in compute_scores(prediction, data.labels, list(found.scores)).items():
            assert found.scores[name][k, 1].tolist() == pytest.approx(values.tolist(), rel=1e-4, abs=1e-5), name
    shown = views(classifier, found, 3, seed=5)
    assert shown.shape == (2, 3, 16, 16, 3)
    changed = degraded(pixels[3:4], "noise", 1.0, [seed_of("3.png", 5)])[0]
    assert torch.allclose(torch.from_numpy(shown[0, 2]).permute(2, 0, 1), changed, atol=1e-5)


def test_rows_by_hand(data):
    """Four images of class 0, K = 4, three levels: AVH rises in three of them, confidence falls in one of them."""
    four = LabelledImages(data.images.take(np.arange(4)), np.zeros(4, np.int64), data.classes)
    avh = np.array([[0.1, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.05], [0.3, 0.3, 0.3, 0.05]])[None]
    confidence = np.array([[0.9, 0.8, 0.7, 0.5], [0.5, 0.9, 0.7, 0.5], [0.1, 0.85, 0.7, 0.5]])[None]
    predicted = np.array([[0, 0, 0, 1], [0, 1, 1, 1], [2, 2, 2, 2]])[None]
    found = Degraded("m", 4, ("blur",), np.array([0, 0.5, 1]), four, {"avh": avh, "confidence": confidence}, predicted)
    curves = {(row["level"], row["quantity"]): row for row in curve_rows(found)}
    assert [curves[level, "accuracy"]["mean"] for level in (0, 0.5, 1)] == [0.75, 0.25, 0]
    assert curves[0.5, "avh_k"]["mean"] == pytest.approx(4 * 0.65 / 4)
    half = 1.96 * np.std([0.2, 0.2, 0.2, 0.05], ddof=1) / 2
    assert curves[0.5, "avh"]["high"] == pytest.approx(0.65 / 4 + half)
    assert curves[1, "accuracy"]["low"] == 0 and 0.3 < curves[1, "accuracy"]["high"] < 0.6  # Wilson, not 0
    hardness, confident = order_rows(found)
    assert hardness["harder_at_every_level"] == 0.75 and confident["harder_at_every_level"] == 0.25
    # AVH 1, 1, 1 and ranks (3, 1.5, 1.5): -1.5 / sqrt(1.5 * 2); confidence: 1, then .8 < .85 < .9 is (1, 3, 2), 0, 0
    assert hardness["spearman"] == pytest.approx((3 - 1.5 / math.sqrt(3)) / 4)
    assert confident["spearman"] == pytest.approx((1 - 0.5 + 0 + 0) / 4)
    apart = [0, 1.5, 1, -1.5 / math.sqrt(3)]  # AVH's less confidence's, image by image
    half = 1.96 * np.std(apart, ddof=1) / 2
    keys = ("less_confidence", "less_confidence_low", "less_confidence_high")
    mean = np.mean(apart)
    assert [hardness[key] for key in keys] == pytest.approx([mean, mean - half, mean + half])
    assert [confident[key] for key in keys] == [None, None, None]
    assert typical(found) == 1, "three are right at level 0 and of one AVH: the middle one"


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out")
    findings = Findings(folder, "Degraded")
    classifiers = [classifier_of(0), classifier_of(1)]
    found = degrade(classifiers, data, findings, images=8, levels=3, kinds=["blur", "noise"], runtime=CPU, log=None)
    findings.write()
    return found, folder


def test_figures_draw_the_rows(written):
    found, folder = written
    for quantity in CURVES:
        figure = curves_figure(found["curves"], quantity)
        scale = 100 if quantity == "accuracy" else 1
        panels = figure.axes
        assert [axes.get_title() for axes in panels] == ["blur", "noise"]
        assert figure.get_supxlabel() and figure.get_supylabel() == CURVES[quantity][0]
        assert [text.get_text() for text in figure.legends[0].texts] == ["small (1)", "small (2)"]
        for axes in panels:
            assert len(axes.lines) == len(axes.collections) == 2
            for line, band in zip(axes.lines, axes.collections, strict=True):
                rows = [
                    row
                    for row in found["curves"]
                    if (row["model"], row["degradation"], row["quantity"])
                    == (line.get_label(), axes.get_title(), quantity)
                ]
                assert line.get_xdata().tolist() == [0, 0.5, 1]
                assert line.get_ydata().tolist() == [scale * row["mean"] for row in rows]
                corners = band.get_paths()[0].vertices[:, 1]
                assert corners.min() == pytest.approx(scale * min(row["low"] for row in rows))
                assert corners.max() == pytest.approx(scale * max(row["high"] for row in rows))
        with (folder / f"degrade_{quantity.removesuffix('_k')}.csv").open() as file:
            assert [float(row["mean"]) for row in csv.DictReader(file)] == [
                row["mean"] for row in found["curves"] if row["quantity"] == quantity
            ]


def test_examples_show_the_image_and_its_scores(written):
    _, folder = written
    with (folder / "degrade_examples_1.csv").open() as file:
        rows = [
            {key: float(v) if key in ("avh_k", "confidence", "level") else v for key, v in row.items()}
            for row in csv.DictReader(file)
        ]
    looks = np.random.default_rng(0).random((2, 3, 16, 16, 3))
    figure = examples_figure(looks, rows)
    assert len(figure.axes) == len(rows) == 6
    for i, (axes, row) in enumerate(zip(figure.axes, rows, strict=True)):
        assert axes.images[0].get_array().tolist() == looks[i // 3, i % 3].tolist()
        label, wrong = axes.xaxis.label, row["predicted"] != row["label"]
        assert f"AVH {row['avh_k']:.2f} / K\np_y {row['confidence']:.3f}" in label.get_text()
        assert (label.get_color() != INK) == wrong and ("predicted" in label.get_text()) == wrong
    page = (folder / "index.html").read_text()
    assert page.count("<svg") == len(CURVES) and page.count("data:image/png") == 2


def test_a_kind_of_ones_own_on_the_command_line(in_folder, monkeypatch, capsys):
    """Classes are named as the classifier names them; the plug-in's kind is drawn as the built-in ones are."""
    monkeypatch.setattr(DEGRADATIONS, "_entries", dict(DEGRADATIONS))
    monkeypatch.setattr(
        "uda.hardness.scoring.classifier.load_classifier", lambda model, weights, classes: classifier_of(name=model)
    )
    make_folders(in_folder / "own", ["ant", "bee", "cat", "dog"], per_class=2)
    (in_folder / "dark.py").write_text(
        "from uda.hardness.probes.degradations import DEGRADATIONS\n\n"
        '@DEGRADATIONS.register("dark")\ndef dark(images, level, seeds):\n'
        '    "Darker by level."\n    return images * (1 - level)\n'
    )
    words = ["degrade", "--model", "a", "--model", "b", "--data", "own", "--out", "o", "runtime.device=cpu"]
    with undrawn():
        assert hardness([*words, "--plugin", "dark.py", "--kinds", "dark", "--levels", "3"]) == 0
    out = capsys.readouterr().out
    assert "a, dark" in out and "b, dark" in out and "page: o/index.html" in out
    page = (in_folder / "o" / "index.html").read_text()
    assert "dark: Darker by level." in page and "Gaussian" not in page, "what was done to these images and no other"
    assert hardness([*words, "--kinds", "blurr"]) == 2
    assert "unknown degradation 'blurr', did you mean 'blur'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--levels", "1"], "--levels: 1: must be at least 2"),
        (["--images", "0"], "--images: 0: must be at least 1"),
        (["--weights", "a", "--weights", "b", "--weights", "c"], "--weights: given 3 times for 1 models"),
    ],
)
def test_mistakes_are_named(words, message, in_folder, monkeypatch, capsys):
    monkeypatch.setattr(
        "uda.hardness.scoring.classifier.load_classifier", lambda model, weights, classes: classifier_of(name=model)
    )
    make_folders(in_folder / "own", ["ant", "bee", "cat", "dog"])
    assert hardness(["degrade", "--model", "a", "--data", "own", "--out", "o", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (in_folder / "o").exists()
