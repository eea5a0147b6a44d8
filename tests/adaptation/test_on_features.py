"""Runs on feature banks: every method, selector and regulariser; equal to runs on images; resumed; refused."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import uda
from tests.adaptation.test_run import cut_after_every_save, same_end
from tests.data.banks import blob_bank, blobs, write_npz
from tests.data.trees import make_folders
from tests.in_process import adapt
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS, UNLABELLED_LOSSES
from uda.core.errors import UserError
from uda.data.given_images import named_images
from uda.feature_bank import make_bank
from uda.models.backbones import BACKBONES
from uda.report.pictures import read_pictures
from uda.searches.space import read_space
from uda.selection.regularizers import REGULARIZERS
from uda.selection.selectors import SELECTORS

CONFIG = """\
data: {source: drawn, target: photos}
model: {backbone: digits_cnn, weights: none, head: 8, dropout: 0.2}
source: {epochs: 4, batch_size: 8, optim: {lr: 0.05}}
self_training:
  rounds: 2
  steps: 3
  portion: {start: 0.5, step: 0.1, max: 0.9}
  source_share: {start: 0.5, max: 1.0}
  batch: {source: 4, selected: 4, unlabelled: 4}
  optim: {lr: 0.05}
adaptation: {steps: 4, evaluate_every: 2, batch: {source: 4, target: 4}, optim: {lr: 0.01}}
runtime: {device: cpu}
report: {loggers: [], page: false, gallery: 2}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "blobs.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Two domains of four classes, the target with two views of each image."""
    views = np.stack([blobs(shift=0.3, seed=seed)["features"] for seed in (2, 3)], 1)
    folder = tmp_path_factory.mktemp("bank")
    return write_npz(folder, drawn=blobs(), photos=blobs(shift=0.3, seed=1) | {"views": views})


@pytest.fixture
def run(config, bank, tmp_path):
    """Run the config on the bank in this test's folder, with some changes: the finished run."""

    def start(*words, features=bank, output=tmp_path / "run"):
        changes = [f"data.features={features}", f"output={output}", *words]
        return uda.adapt(config, overrides=changes, log=None)

    return start


def trained(run):
    """Whether the run's network has the classes of the source, and other weights than its source model."""
    folder = run.folder / "checkpoints"
    assert run.results["final"]["class_mean"] is not None
    return (folder / "final.safetensors").read_bytes() != (folder / "source.safetensors").read_bytes()


@pytest.mark.parametrize("method", sorted(ADAPTATION_METHODS))
def test_every_method_runs_on_a_bank(run, method):
    words = [f"method={method}"]
    words += [] if ADAPTATION_METHODS[method].needs_source else ["adaptation.batch.source=0"]
    found = run(*words)
    predictions = list(csv.DictReader((found.folder / "predictions.csv").open()))
    assert [row["path"] for row in predictions] == blobs()["ids"].tolist()
    if method != "source_only" and (found.folder / "checkpoints/source.safetensors").exists():
        assert trained(found)
    assert found.results["final"]["class_mean"] > 0.5  # blobs that lie far apart: chance is 0.25


@pytest.mark.parametrize("selector", sorted(SELECTORS))
def test_every_selector_runs_on_a_bank(run, selector):
    assert trained(run(f"self_training.selector={selector}"))


@pytest.mark.parametrize("regularizer", sorted(REGULARIZERS))
def test_every_regulariser_runs_on_a_bank(run, regularizer):
    lrent = ["self_training.selector=softmax", "self_training.keep=lrent"] if "lrent" in regularizer else []
    assert trained(run(f"self_training.regularizer={regularizer}", *lrent))


@pytest.mark.parametrize("loss", sorted(UNLABELLED_LOSSES))
def test_every_unlabelled_loss_runs_on_a_bank(run, loss):
    assert trained(run(f"self_training.unlabelled_loss={loss}"))


@pytest.mark.parametrize("head", ["null", "8", "[16,8]"])
def test_a_bank_needs_no_head(run, head):
    assert trained(run(f"model.head={head}", "model.head_batch_norm=true", "self_training.adapt_batch_norm=true"))


def test_the_strong_views_of_fixmatch_are_those_of_the_bank(run, bank, tmp_path):
    """Other views give another model, and other methods do not see them."""
    views = np.stack([blobs(shift=0.3, seed=seed)["features"] for seed in (5, 6)], 1)
    other = write_npz(tmp_path / "bank", drawn=blobs(), photos=blobs(shift=0.3, seed=1) | {"views": views})
    weights = {
        (method, which): (
            run(f"method={method}", "method_options.threshold=0" if method == "fixmatch" else "seed=0",
                features=features, output=tmp_path / method / which).folder / "checkpoints/final.safetensors"
        ).read_bytes()
        for method in ("fixmatch", "mcc") for which, features in (("first", bank), ("other", other))
    }  # fmt: skip
    names = {key: content[8 + int.from_bytes(content[:8], "little") :] for key, content in weights.items()}
    assert names["fixmatch", "first"] != names["fixmatch", "other"]
    assert names["mcc", "first"] == names["mcc", "other"]


# Equal to a run on images


class Pooled(nn.Module):
    """Mean colours of four quarters. Each image's features are the same in any batch, to the last bit."""

    num_features = 12

    def forward(self, images):
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


@pytest.fixture
def pooled(monkeypatch):
    monkeypatch.setitem(BACKBONES._entries, "pooled", lambda in_channels: Pooled())


IMAGES = """\
data: {{dataset: null, source: {root}/drawn, target: {root}/photos, cache: memory}}
transforms:
  size: 24
  resize: 28
  source: {{crop: centre}}
  target: {{crop: centre}}
"""


@pytest.fixture(scope="module")
def on_images(tmp_path_factory):
    """The config for image files, without augmentation."""
    root = tmp_path_factory.mktemp("images")
    for seed, domain in enumerate(("drawn", "photos")):
        make_folders(root / domain, ["ant", "bee", "cat", "dog"], per_class=8, seed=seed)
    path = root / "images.yaml"
    path.write_text(IMAGES.format(root=root) + CONFIG.split("\n", 1)[1].replace("digits_cnn", "pooled"))
    return path


@pytest.mark.parametrize("method", ["self_training", "source_only", "shot", "mmd", "dann", "mcc"])
def test_a_run_on_a_bank_equals_the_run_on_images_with_a_frozen_backbone(on_images, tmp_path, pooled, method):
    """Bit for bit: a backbone without weights, and no augmentation."""
    config = AdaptationConfig.load(on_images)
    make_bank(config, tmp_path / "bank", log=None)
    changes = {"method": method, "adaptation.batch.source": 4 if ADAPTATION_METHODS[method].needs_source else 0}
    images, bank = (
        uda.adapt(config, overrides={**changes, "output": str(tmp_path / name), "data.features": features}, log=None)
        for name, features in (("images", None), ("features", str(tmp_path / "bank")))
    )
    mine, theirs = (run.network.state_dict() for run in (bank, images))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert (bank.folder / "predictions.csv").read_bytes() == (images.folder / "predictions.csv").read_bytes()
    assert bank.results["final"] == images.results["final"]


# Resumed and refused


@pytest.mark.parametrize("method", ["self_training", "fixmatch"])
def test_a_run_that_is_cut_after_every_save_ends_the_same(run, config, bank, tmp_path, monkeypatch, method):
    finished = run(f"method={method}", output=tmp_path / "whole").folder
    folder = tmp_path / "cut"
    starts = cut_after_every_save(monkeypatch, folder, lambda: run(f"method={method}", output=folder))
    assert starts > 3 and same_end(folder, finished)


def test_a_run_is_not_resumed_on_other_features(run, tmp_path, monkeypatch):
    folder = blob_bank(tmp_path / "bank")
    run(features=folder, output=tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    write_npz(folder, photos=blobs(shift=0.3, seed=7))
    with pytest.raises(UserError, match=r"differs in \(there -> here\) bank: .arrays \w+. -> .arrays \w+.;"):
        run(features=folder, output=tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["method=fixmatch"],
            "method 'fixmatch' compares two views of an image, but .* has no augmented views; add "
            r"them to your files of the target as the array `views` \(images, views, width\), or choose another method",
        ),
        (
            ["data.source=drawm"],
            r"overrides: data\.source: .* has no domain 'drawm', did you mean 'drawn'\? \(it has drawn, photos\)",
        ),
        (["source.checkpoint=other.safetensors"], "no such file"),
    ],
)
def test_what_a_bank_cannot_do_is_one_error(run, tmp_path, words, message):
    with pytest.raises(UserError, match=message) as raised:
        run(*words, features=blob_bank(tmp_path / "bank"))
    assert "\n" not in str(raised.value) and not (tmp_path / "run").exists()


def test_targets_with_different_numbers_of_views_are_refused(run, tmp_path):
    a, b = (blobs(seed=count) | {"views": np.stack([blobs(seed=count)["features"]] * count, 1)} for count in (1, 2))
    folder = write_npz(tmp_path / "bank", drawn=blobs(), a=a, b=b)
    with pytest.raises(UserError, match="different numbers of augmented views, 1 and 2; make one bank of all"):
        run("method=fixmatch", "data.target=[a,b]", features=folder)
    assert trained(run("method=mcc", "data.target=[a,b]", features=folder))


def test_a_source_model_of_other_features_is_refused(run, tmp_path):
    first = run(output=tmp_path / "first").folder
    wider = write_npz(tmp_path / "bank", drawn=blobs(width=5), photos=blobs(width=5))
    with pytest.raises(UserError, match="backbone is 'features of width 12', not 'features of width 5'"):
        run(f"source.checkpoint={first}", features=wider, output=tmp_path / "second")
    again = run(f"source.checkpoint={first}", output=tmp_path / "third")
    assert again.results["source_only"]["class_mean"] is not None


def test_a_run_on_features_says_that_it_augments_no_images(config, bank, tmp_path, capsys):
    words = ["--cfg", str(config), f"data.features={bank}", f"output={tmp_path / 'run'}", "--dry-run"]
    augmented = ["transforms.target.flip=true", "transforms.source={flip: true}", "adaptation.strong={jitter: 0.5}"]
    assert adapt([*words, "method=fixmatch", *augmented]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    keys = ("transforms.target.flip", "transforms.source", "adaptation.strong")
    assert notes == [f"note: a run on features does not read {', '.join(keys)}"]
    with pytest.raises(UserError, match=r"source\.flip: no setting for a search: a run on features does not read"):
        read_space({"transforms.source.flip": [True, False]}, AdaptationConfig.load(config, [f"data.features={bank}"]))


def test_a_run_on_ones_own_arrays_says_that_it_has_no_backbone(run, config, bank, capsys):
    """A bank that `uda bank` made is compared with these settings, so there they are read."""
    from uda.adaptation.checks import unread_notes

    keys = ["model.backbone", "transforms.size", "data.load_size", "data.cache", "source.epochs"]
    own = AdaptationConfig.load(config, [f"data.features={bank}"])
    assert unread_notes(own, keys) == [f"note: a run on features does not read {', '.join(keys[:-1])}"]
    made = own.model_copy(update={"bank": "resnet50 0123456789ab"})
    assert unread_notes(made, keys) == ["note: a run on features does not read data.cache"]
    assert unread_notes(AdaptationConfig.load(config), keys) == []


def test_a_search_on_features_keeps_them(config, on_images, bank, tmp_path, pooled):
    own = AdaptationConfig.load(config, [f"data.features={bank}"])
    for key in ("model.backbone", "model.weights", "transforms.size"):
        with pytest.raises(UserError, match=rf"{key}: no setting for a search: the features are given"):
            read_space({key: [1, 2]}, own)
    made = tmp_path / "made"
    make_bank(AdaptationConfig.load(on_images), made, log=None)
    banks = [str(made), str(shutil.copytree(made, tmp_path / "again"))]
    first = AdaptationConfig.load(on_images, [f"data.features={made}"])
    assert read_space({"data.features": banks}, first)[0].settings
    other = AdaptationConfig.load(on_images, [f"data.features={made}", "model.backbone=digits_cnn"])
    with pytest.raises(UserError, match=r"space: data\.features: the bank was made with model\.backbone=pooled, but"):
        read_space({"data.features": banks}, other)
    others = {"data.features": [str(bank), str(blob_bank(tmp_path / "others"))]}
    assert read_space(others, own)[0].settings, "another bank of one's own arrays is another run"


def test_what_a_run_tells_of_its_features(config, bank, tmp_path, capsys):
    """The plan, the environment and the page; no advice on sizes of images."""
    output = tmp_path / "run"
    words = ["--cfg", str(config), f"data.features={bank}", f"output={output}", "report.page=true"]
    assert adapt([*words, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert f"network  features of width 12 of {bank}, features 8, " in plan and not output.exists()
    assert " rows per second" in plan and "images per second" not in plan and "waiting for images" not in plan
    assert adapt(words) == 0
    assert json.loads((output / "environment.json").read_text())["weights"] == {"from": "features of width 12"}
    page = (output / "report.html").read_text()
    assert f"head 8, on features of {bank}" in page and "input 224 px" not in page
    assert read_pictures(output / "pictures.parquet") == {}
    assert yaml.safe_load((output / "config.yaml").read_text())["data"]["features"] == str(bank)


# Its predictions


def test_ids_may_be_any_text(run, tmp_path):
    """They are written to tables, and read again when a run resumes."""
    ids = ["=1+1", 'a"b', "line\nfeed", "tab\tä", "\u202eleft", *map(str, range(27))]
    folder = write_npz(tmp_path / "bank", drawn=blobs(), photos=blobs(shift=0.3) | {"ids": np.array(ids)})
    found = run("report.page=true", features=folder)
    with open(found.folder / "predictions.csv", encoding="utf-8", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ids
    (found.folder / "results.json").unlink()
    assert run("report.page=true", features=folder).results["final"] is not None


def test_rows_of_a_bank_are_predicted_as_in_the_run(run, bank, tmp_path, capsys):
    from uda.cli.main import main

    found = run()
    again = uda.load_run(found.folder).predict(bank / "photos.npz")
    rows = list(csv.DictReader((found.folder / "predictions.csv").open()))
    assert again.ids == [row["path"] for row in rows] and again.class_names == [row["prediction"] for row in rows]
    features = torch.from_numpy(blobs(shift=0.3, seed=1)["features"])
    with torch.no_grad():
        output = found.network(features)  # of arrays of one's own, the network takes their rows
    np.testing.assert_allclose(output.logits.numpy(), again.logits, rtol=1e-5, atol=1e-5)
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(found.folder), str(bank / "photos.npz"), "--out", str(out)]) == 0
    assert out.read_bytes() == (found.folder / "predictions.csv").read_bytes()


def test_a_run_on_arrays_of_your_own_takes_no_images_and_cannot_be_exported(run, bank, tmp_path):
    from PIL import Image

    found = run()
    message = "trained on arrays of your own, and uda does not have the model that made them, so its network takes no"
    with pytest.raises(
        UserError, match=rf"{message} images; give a file of such arrays, as \.npz, \.npy or \.parquet$"
    ):
        found.predict(Image.new("RGB", (30, 30)))
    from uda.exported_run import export_run

    with pytest.raises(UserError, match=f"{message} images$"):
        export_run(found, "torch-export", Path(tmp_path / "model.pt2"))
    wider = write_npz(tmp_path / "bank", photos=blobs(width=5))
    with pytest.raises(UserError, match="was trained on features of width 12, but these are features of width 5"):
        found.predict(wider / "photos.npz")
    with pytest.raises(UserError, match="but these are features of width 5"):
        found.predict(np.ones((2, 5)))
    for place in (str(bank), bank):
        with pytest.raises(UserError, match=rf"{bank} is a feature bank; give one of its files, such as {bank}/drawn"):
            found.predict(place)
    with pytest.raises(UserError, match="is a feature bank; give one of its files"):
        named_images([str(bank)], found.config.data.reading)


def test_an_array_of_features_is_predicted_as_a_file_of_them(run, bank):
    """Of any precision, as an array or a tensor. The caller's array stays as it is."""
    found = run()
    rows = blobs(shift=0.3, seed=1)["features"]
    expected = found.predict(bank / "photos.npz")
    for given in (rows, rows.astype(np.float64), torch.from_numpy(rows).double()):
        again = found.predict(given)
        np.testing.assert_allclose(again.logits, expected.logits, rtol=1e-5, atol=1e-5)
        assert again.ids[-1] == "31" and again.class_names == expected.class_names
    for bad, message in (
        (np.ones(12), r"must be features \(N, D\), or images of four dimensions, got \(12,\)"),
        (np.ones((2, 12), int), "features must be floating numbers, got torch.int64"),
    ):
        with pytest.raises(ValueError, match=message):
            found.predict(bad)
    with pytest.raises(UserError, match="features are not finite"):
        found.predict(np.full((2, 12), np.nan))


def test_features_are_no_images(on_images, bank, tmp_path, pooled):
    found = uda.adapt(on_images, overrides={"output": str(tmp_path / "run"), "method": "source_only"}, log=None)
    with pytest.raises(UserError, match="was trained on images, so it cannot predict features; give images"):
        found.predict(bank / "photos.npz")
