"""Making feature banks: equal however they are made, resumed, refused, and the network made again from them."""

import csv
import errno
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import uda
from tests.data.trees import make_folders, write_image
from tests.forked import forked_job
from uda import feature_bank
from uda.adaptation.config import AdaptationConfig
from uda.cli.main import main
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT
from uda.data.banks import find_domain, read_description
from uda.data.domains import UNKNOWN_NAME
from uda.feature_bank import kind_of_bank, make_bank
from uda.generalization.config import GeneralizationConfig
from uda.hardness.scoring.classifier import load_classifier

SMALL = ("runtime.predict_batch_size=3", "runtime.workers=0")


def config_of(tiny, *words):
    return AdaptationConfig.load(tiny, [*SMALL, *words])


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A bank of the tiny images with two views, made without a pause."""
    folder = tmp_path_factory.mktemp("whole")
    make_bank(config_of(tiny), folder, views=2, log=None)
    return folder


def same_files(folder, other):
    names = sorted(path.name for path in other.iterdir())
    assert (
        sorted(path.name for path in folder.iterdir()) == names == [".lock", "drawn.safetensors", "photos.safetensors"]
    )
    assert all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)
    return True


def test_a_bank_holds_the_backbone_s_features_of_every_image(whole, tiny):
    """Those of a pass written out: the network that a run begins with, and its predict transform."""
    from uda.data.domains import load_domains
    from uda.data.transforms import make_predict
    from uda.models.backbones import create_backbone
    from uda.training.engine import seed_everything
    from uda.training.stages import INITIAL_WEIGHTS

    config = config_of(tiny)
    domains = load_domains(config.data, 0, lambda line: None)
    seed_everything(INITIAL_WEIGHTS, config.seed)
    backbone = create_backbone("digits_cnn", "none", 3)[0].eval()
    transform = make_predict(config.transforms)
    for name, images in (("drawn", domains.source.images), ("photos", domains.target.images)):
        found = find_domain(whole, name)
        pixels = transform.pixels([images.read(i) for i in range(32)], [0] * 32)
        with torch.no_grad():
            expected = backbone(transform.normalise(pixels))
        np.testing.assert_allclose(found.features.numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)
        assert found.ids == images.ids and found.classes == domains.classes
        assert found.labels.tolist() == np.repeat(np.arange(4), 8).tolist()


def test_views_are_random_and_those_of_the_plan(whole):
    views = find_domain(whole, "photos").views
    plain = find_domain(whole, "photos").features
    assert views.shape == (32, 2, 128)
    differences = [(views[:, 0] - views[:, 1]).abs().amax(1), (views[:, 0] - plain).abs().amax(1)]
    assert all((one > 1e-6).sum() > 24 for one in differences)
    told = find_domain(whole, "photos").made_by
    assert told["views"] == 2 and told["augment"]["scale"] == [0.8, 1.0] and len(told["digest"]) == 64


def test_the_strong_augmentation_of_the_config_makes_the_views(tiny, whole, tmp_path):
    make_bank(config_of(tiny, "adaptation.strong={jitter: 0.5}"), tmp_path, views=1, log=None)
    found = find_domain(tmp_path, "photos")
    assert found.made_by["augment"]["jitter"] == 0.5
    assert torch.equal(found.features, find_domain(whole, "photos").features)


@pytest.mark.parametrize("workers", [1, 2])
def test_views_do_not_depend_on_the_number_of_workers(tiny, whole, tmp_path, workers):
    config = config_of(tiny, f"runtime.workers={workers}", "data.cache=none")
    make_bank(config, tmp_path, views=2, log=None)
    assert same_files(tmp_path, whole)


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_what_one_writes(tiny, whole, tmp_path, world):
    """Byte for byte: 32 images in batches of 3, so the last block has empty shares."""
    words = ["bank", "--cfg", tiny, "--views", 2, "--output", tmp_path / "bank", *SMALL]
    codes, output = forked_job(world, CHECKOUT / "uda" / "__main__.py", *words)
    assert codes == [0] * world, output
    assert same_files(tmp_path / "bank", whole)
    assert output.count("2 domains in ") == 1


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize("block", range(0, 70, 7))
def test_an_interrupted_call_goes_on_to_the_same_files(tiny, whole, tmp_path, monkeypatch, block):
    """Cut after so many of its 66 blocks, within the plain features or a view, two blocks after the last note."""
    write, note, done = feature_bank._Writer.write, feature_bank._Writer.note, []

    def write_and_die(self, *args):
        if len(done) == block:
            raise PowerCut
        done.append(1)
        write(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(feature_bank, "SECONDS_BETWEEN_NOTES", 0.0)
        patch.setattr(feature_bank._Writer, "note", lambda *args: len(done) % 3 or note(*args))
        patch.setattr(feature_bank._Writer, "write", write_and_die)
        try:
            make_bank(config_of(tiny), tmp_path, views=2, log=None)
        except PowerCut:
            assert not {path.name for path in tmp_path.iterdir()} >= {"drawn.safetensors", "photos.safetensors"}
    rest, computed = len(done), []
    monkeypatch.setattr(feature_bank._Writer, "write", lambda *args: (computed.append(1), write(*args)))
    make_bank(config_of(tiny), tmp_path, views=2, log=None)
    assert same_files(tmp_path, whole)
    assert rest + len(computed) <= 66 + 3


def test_what_is_there_is_not_computed_again(tiny, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "bank")
    monkeypatch.setattr(feature_bank, "_make_domain", None)
    lines = []
    files = make_bank(config_of(tiny), tmp_path / "bank", views=2, log=lines.append)
    assert lines == [f"{file} is there already" for file in files] and len(files) == 2


def changed_images(folder):
    """One image with the same name and size in bytes."""
    path = folder / "photos/ant/ant_0.jpg"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def further_image(folder):
    write_image(folder / "photos/ant/new.jpg", 0, np.random.default_rng(0))


@pytest.fixture
def own(tiny, tmp_path):
    """A copy of the tiny images, and its bank without views."""
    root = tmp_path / "images"
    for domain in ("drawn", "photos"):
        shutil.copytree(tiny.parent / domain, root / domain)
    words = (f"data.source={root}/drawn", f"data.target={root}/photos")
    make_bank(config_of(tiny, *words), tmp_path / "bank", log=None)
    return root, words


@pytest.mark.parametrize(
    ("change", "words", "views", "differing"),
    [
        (changed_images, [], 0, "other images"),
        (further_image, [], 0, "other images, other labels"),
        (
            lambda root: None,
            ["model.backbone=digits_cnn_wide"],
            0,
            r"backbone digits_cnn \(now digits_cnn_wide\), other weights",
        ),
        (lambda root: None, ["seed=1"], 0, "other weights"),
        (lambda root: None, ["transforms.resize=30"], 0, "other transform"),
        (lambda root: None, ["data.classes=[dog,cat,bee,ant]"], 0, "other images, other classes"),
        (lambda root: None, ["data.load_size=16"], 0, "other images"),
        (lambda root: None, [], 1, r"0 views \(now 1\)"),
    ],
)
def test_a_bank_of_other_images_or_another_network_is_not_mixed_with_this_one(
    tiny, own, tmp_path, change, words, views, differing
):
    root, named = own
    change(root)
    message = rf"\.safetensors was made with {differing}; choose another `folder`, or delete the file"
    with pytest.raises(UserError, match=message):
        make_bank(config_of(tiny, *named, *words), tmp_path / "bank", views=views, log=None)


def test_the_same_images_elsewhere_are_the_same(tiny, own, tmp_path):
    root, _ = own
    shutil.move(root, tmp_path / "moved")
    words = (f"data.source={tmp_path}/moved/drawn", f"data.target={tmp_path}/moved/photos")
    with pytest.raises(UserError, match="made with other domain; choose"):
        make_bank(config_of(tiny, *words), tmp_path / "bank", log=None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.backbone=digits_cnn_wide"], "made with model.backbone=digits_cnn, but the config has digits_cnn_wide"),
        (
            ["transforms.size=20"],
            "made with transforms.size=24, but the config has 20; set transforms.size=24",
        ),
        (["transforms.mean=[0,0,0]"], r"transforms.mean=\[0.485, 0.456, 0.406\], but the config has \[0.0"),
        (["data.classes=[ant,bee]"], "that are not in data.classes: cat, dog"),
        (["data.classes=[dog,cat,bee,ant]", "source.epochs=0"], "source.epochs"),
    ],
)
def test_a_run_of_another_network_or_other_classes_is_refused(tiny, whole, tmp_path, words, message):
    changes = [f"data.features={whole}", f"output={tmp_path}/run", *words]
    with pytest.raises(UserError, match=message):
        uda.adapt(tiny, overrides=changes, log=None)
    assert not (tmp_path / "run").exists()


def test_classes_that_the_source_lacks_stay_unknown(tiny, tmp_path):
    root = tmp_path / "images"
    make_folders(root / "drawn", ["ant", "bee"], per_class=4)
    make_folders(root / "photos", ["ant", "bee", "eel"], per_class=4)
    words = (f"data.source={root}/drawn", f"data.target={root}/photos", "data.label_sets=open")
    make_bank(config_of(tiny, *words), tmp_path / "bank", log=None)
    found = find_domain(tmp_path / "bank", "photos")
    assert found.classes == ("ant", "bee", UNKNOWN_NAME) and found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    words = [*words, f"data.features={tmp_path}/bank", f"output={tmp_path}/run"]
    results = uda.adapt(tiny, overrides=words, log=None).results
    assert results["final"]["unknown"] is not None


def test_a_target_without_labels(tiny, tmp_path):
    root = tmp_path / "images"
    make_folders(root / "drawn", ["ant", "bee"], per_class=4)
    make_folders(root / "photos", ["some", "other"], per_class=4)
    lines = []
    config = config_of(tiny, f"data.source={root}/drawn", f"data.target={root}/photos")
    make_bank(config, tmp_path / "bank", log=lines.append)
    assert set(find_domain(tmp_path / "bank", "photos").labels.tolist()) == {-1}
    assert any("its images are treated as unlabelled" in line for line in lines)


def test_domains_of_generalisation(tiny, tmp_path):
    names = [str(tiny.parent / name) for name in ("drawn", "photos")]
    config = GeneralizationConfig.model_validate(
        {
            "name": "x",
            "data": {"domains": names},
            "transforms": {"size": 24, "resize": 28},
            "model": {"backbone": "digits_cnn", "weights": "none"},
            "runtime": {"device": "cpu"},
        }
    )
    files = make_bank(config, tmp_path, log=None)
    assert [file.name for file in files] == ["drawn.safetensors", "photos.safetensors"]


def test_domains_of_one_name_are_refused(tiny, tmp_path):
    for folder in ("a", "b"):
        make_folders(tmp_path / folder / "photos", ["ant", "bee"])
    words = (f"data.source={tmp_path}/a/photos", f"data.target={tmp_path}/b/photos")
    with pytest.raises(UserError, match="two domains have the same last part of their paths, photos"):
        make_bank(config_of(tiny, *words), tmp_path / "bank", log=None)


def test_two_processes_do_not_write_to_one_bank(tiny, tmp_path, held):
    with held(tmp_path), pytest.raises(UserError, match=r"another process works in .*; wait until it ends"):
        make_bank(config_of(tiny), tmp_path, log=None)
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}
    assert len(make_bank(config_of(tiny), tmp_path, log=None)) == 2


def test_a_full_disk_is_told_before_anything_is_computed(tiny, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"drawn\.safetensors cannot be written: No space left on device"):
        make_bank(config_of(tiny), tmp_path, log=None)


def test_a_network_that_is_not_finite_is_told(tiny, tmp_path, monkeypatch):
    from uda.models.backbones import BACKBONES, SmallCNN

    def broken(in_channels):
        network = SmallCNN(in_channels, (8, 8))
        network.layers[0].weight.data[:] = float("nan")
        return network

    monkeypatch.setitem(BACKBONES._entries, "broken", broken)
    with pytest.raises(UserError, match=r"the network gives features that are not finite; check model.weights"):
        make_bank(config_of(tiny, "model.backbone=broken"), tmp_path, log=None)


# The network, made again


@pytest.fixture(scope="module")
def run(tiny, whole, tmp_path_factory):
    """A run on the bank."""
    words = ["source.epochs=6", f"data.features={whole}", f"output={tmp_path_factory.mktemp('run')}/run"]
    return uda.adapt(tiny, overrides=words, log=None)


def predictions(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def close(rows, others):
    """Tables of the same predictions. Batches differ, and so do the last digits."""
    assert [row["prediction"] for row in rows] == [row["prediction"] for row in others]
    for name in ("probability", "avc", "avh"):
        values, theirs = ([float(row[name]) for row in table] for table in (rows, others))
        np.testing.assert_allclose(values, theirs, rtol=1e-4)
    return True


def test_images_are_predicted_as_their_features_were(run, tiny, tmp_path, capsys):
    out = tmp_path / "predictions.csv"
    assert main(["predict", str(run.folder), str(tiny.parent / "photos"), "--out", str(out)]) == 0
    kept = predictions(run.folder / "predictions.csv")
    assert close(predictions(out), kept)
    assert not uda.load_run(run.folder).network.on_features
    assert uda.load_run(run.folder).predict(tiny.parent / "photos").class_names == [row["prediction"] for row in kept]


def test_a_run_on_a_bank_is_exported_from_the_images_on(run, tmp_path, capsys):
    out = tmp_path / "model.pt2"
    assert main(["export", str(run.folder), "--format", "torch-export", "--out", str(out)]) == 0
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["inputs"][0]["shape"] == ["batch", 3, 24, 24] and told["check"]["images"] == 32


def test_the_study_of_hardness_takes_a_run_on_a_bank(run):
    images = torch.rand(4, 3, 24, 24)
    with torch.no_grad():
        mine = load_classifier(str(run.folder)).network.eval()(images)
        theirs = uda.load_run(run.folder).network(images)
    torch.testing.assert_close(mine.logits, theirs.logits)


def test_other_weights_are_told(run, monkeypatch):
    from uda.models.backbones import BACKBONES

    original = BACKBONES["digits_cnn"]

    def other(in_channels):
        torch.rand(1)  # another place in the stream of random numbers
        return original(in_channels)

    monkeypatch.setitem(BACKBONES._entries, "digits_cnn", other)
    message = r"trained on features of digits_cnn \(model.weights=none\), whose weights are others now"
    with pytest.raises(UserError, match=message):
        _ = uda.load_run(run.folder).network
    with pytest.raises(UserError, match=message):
        load_classifier(str(run.folder))


def test_features_of_a_run_s_network(run, tiny, tmp_path):
    """A bank of a run on a bank. Its features are x of that run, and its network that run's up to there."""
    again = uda.load_run(run.folder)
    make_bank(config_of(tiny), tmp_path / "bank", run=again, log=None)
    found = find_domain(tmp_path / "bank", "photos")
    np.testing.assert_allclose(found.features.numpy(), again.predict(tiny.parent / "photos").features, rtol=1e-4)
    words = [f"data.features={tmp_path}/bank", f"output={tmp_path}/run", "model.head=null"]
    second = uda.adapt(tiny, overrides=words, log=None)
    network = uda.load_run(second.folder).predict(tiny.parent / "photos")
    kept = predictions(second.folder / "predictions.csv")
    assert network.class_names == [row["prediction"] for row in kept]
    with pytest.raises(UserError, match=r"was trained on features of run/run|but these are features of"):
        run.predict(tmp_path / "bank" / "photos.safetensors")


def test_the_network_of_a_run_that_is_gone(tiny, run, tmp_path):
    moved = shutil.copytree(run.folder, tmp_path / "first")
    make_bank(config_of(tiny), tmp_path / "bank", run=uda.load_run(moved), log=None)
    words = [f"data.features={tmp_path}/bank", f"output={tmp_path}/run", "model.head=null"]
    second = uda.adapt(tiny, overrides=words, log=None)
    renamed = shutil.copytree(moved, tmp_path / "other" / "name")
    make_bank(config_of(tiny), tmp_path / "again", run=uda.load_run(renamed), log=None)
    assert len(uda.load_run(second.folder).predict(tmp_path / "again" / "photos.safetensors")) == 32
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=r"was trained on features of another run; .*first is not a run folder"):
        _ = uda.load_run(second.folder).network
    assert len(uda.load_run(second.folder).predict(tmp_path / "bank" / "photos.safetensors")) == 32


def test_the_kind_of_a_config_without_a_target(tmp_path):
    """Keys within a section tell the two kinds apart."""
    for section, kind in (("domains: [a, b]", GeneralizationConfig), ("source: a", AdaptationConfig)):
        (tmp_path / "small.yaml").write_text(f"data: {{dataset: null, {section}}}\nmodel: {{backbone: digits_cnn}}\n")
        assert kind_of_bank(tmp_path / "small.yaml") is kind


def test_a_bank_needs_the_images_in_full(tiny, tmp_path):
    root = tmp_path / "images"
    for domain in ("drawn", "photos"):
        make_folders(root / domain, ["ant", "bee"], per_class=4)
    (root / "photos/ant/ant_1.jpg").write_bytes(b"broken")
    words = (f"data.source={root}/drawn", f"data.target={root}/photos")
    with pytest.raises(UserError, match=r"1 of 8 images .* cannot be read"):
        make_bank(config_of(tiny, *words), tmp_path / "bank", log=None)
    lines = []
    make_bank(config_of(tiny, *words, "data.max_unreadable=0.5"), tmp_path / "bank", log=lines.append)
    assert len(find_domain(tmp_path / "bank", "photos").ids) == 7
    assert any("unreadable image: ant/ant_1.jpg" in line for line in lines)


def test_the_description_tells_what_was_done(whole):
    told = read_description(whole / "photos.safetensors")
    assert told["made_by"]["backbone"] == "digits_cnn" and told["made_by"]["transform"]["size"] == 24
    assert told["classes"] == ["ant", "bee", "cat", "dog"] and len(told["checksum"]) == len(told["images"]) == 64


def test_a_picture_is_predicted_by_a_run_on_a_bank(run):
    assert len(run.predict(Image.new("RGB", (40, 32)))) == 1
