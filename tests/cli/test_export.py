"""`uda export`: the files of runs, used as another program would use them, their check, and bad input."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import uda
from tests.data.trees import make_folders, write_image
from tests.generalization.conftest import CLASSES
from tests.generalization.conftest import TINY as THREE
from uda.cli.commands.export import FILES
from uda.cli.main import main
from uda.data.settings import ReadingSettings, TransformSettings
from uda.exported_run import Check, preprocessing
from uda.models.exporting import FORMATS, OUTPUTS


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A finished run of the tiny config with the AVH loss, whose logits are angles."""
    folder = tmp_path_factory.mktemp("export") / "run"
    overrides = {"output": folder, "model.loss": "avh", "self_training.rounds": 1}
    return uda.adapt(tiny, overrides=overrides, log=None)


@pytest.fixture
def folder(run, in_folder):
    """The current folder with a copy of the run in `run`."""
    shutil.copytree(run.folder, in_folder / "run")
    return in_folder


def as_told(path, described):
    """An image file as a model's input, made by Pillow and NumPy alone."""
    told = described["preprocessing"]
    assert told["colour_order"] == "RGB" and told["range"] == [0, 1] and not told["squash"]
    image = Image.open(path).convert("RGB")
    scale = told["resize"] / min(image.size)
    image = image.resize([int(side * scale) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - told["size"]) / 2 for side in image.size)
    image = image.crop([round(left), round(top), round(left) + told["size"], round(top) + told["size"]])
    return np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255


@pytest.mark.slow
def test_an_onnx_file_is_all_that_another_program_needs(folder, run, capsys):
    """No normalisation outside; the class names are in the .json. Pillow's pixels differ by a level or two."""
    assert main(["export", "run", "--format", "onnx"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"tiny \(weights final\): model\.onnx \(\d\.\d MB\) and its \.json", lines[0])
    assert re.fullmatch(
        r"checked on 32 images of \S+/photos: largest differences features \S+, logits \S+, probabilities \S+", lines[1]
    )
    described = json.loads((folder / "model.json").read_text())
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    expected = run.predict(run.config.data.target)
    for name, probabilities in zip(expected.ids[::3], expected.probabilities[::3], strict=True):
        image = as_told(f"{run.config.data.target}/{name}", described)
        (found,) = session.run(["probabilities"], {"images": image})
        np.testing.assert_allclose(found[0], probabilities, atol=0.02)
        assert described["classes"][found[0].argmax()] == run.classes[probabilities.argmax()]


@pytest.mark.parametrize("kind", FILES)
def test_the_description_has_shapes_versions_and_the_check(kind, folder, capsys):
    out = f"new/own{FORMATS[kind].ending}"
    assert main(["export", "run", "--format", kind, "--weights", "source", "--out", out]) == 0
    described = json.loads((folder / "new" / "own.json").read_text())
    assert {path.name for path in (folder / "new").iterdir()} == {out.removeprefix("new/"), "own.json"}
    assert described["file"] == out.removeprefix("new/") and described["format"] == kind
    assert described["run"] == {
        "name": "tiny", "method": "self_training", "seed": 0, "weights": "source", "folder": str(folder / "run"),
    }  # fmt: skip
    assert described["classes"] == ["ant", "bee", "cat", "dog"]
    shapes = {one["name"]: one["shape"] for one in described["inputs"] + described["outputs"]}
    assert shapes == {
        "images": ["batch", 3, 24, 24], "features": ["batch", 16], "logits": ["batch", 4], "probabilities": ["batch", 4]
    }  # fmt: skip
    assert described["versions"]["torch"] == torch.__version__ and described["versions"]["uda"] == uda.__version__
    assert ("onnxruntime" in described["versions"]) == (kind == "onnx")
    check = described["check"]
    assert check["images"] == 32 and check["tolerance"] == 1e-3 and check["other_predictions"] == 0
    assert check["differences"].keys() == check["relative"].keys() == {*OUTPUTS}
    assert 0 <= max(check["relative"].values()) < 1e-4
    model = FORMATS[kind].open((folder / out).read_bytes())
    own = uda.load_run("run", weights="source")
    image = torch.rand(1, 3, 24, 24)
    found = model(image)
    expected = own.network((image - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]).view(3, 1, 1))  # fmt: skip
    np.testing.assert_allclose(found["logits"], expected.logits.detach(), rtol=1e-4, atol=1e-5)


def test_a_torch_program_loads_without_uda(folder, run):
    """It returns the outputs by name."""
    assert main(["export", "run", "--format", "torch-export"]) == 0
    program = torch.export.load("model.pt2")
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("uda" in target for target in targets)
    found = program.module()(torch.rand(5, 3, 24, 24))
    assert list(found) == list(OUTPUTS) and found["probabilities"].shape == (5, 4)


def test_a_run_of_domain_generalisation_is_checked_on_its_unseen_domain(in_folder, capsys):
    """The classifier has weight_norm."""
    for seed, domain in enumerate(("drawn", "photos", "clay")):
        make_folders(in_folder / domain, CLASSES, per_class=8, seed=seed)
    (in_folder / "three.yaml").write_text(THREE.format(root=in_folder))
    overrides = {"output": "run", "model.weight_norm": True, "training.steps": 3}
    ((_, run),) = uda.generalize("three.yaml", overrides=overrides, log=None).items()
    capsys.readouterr()
    assert main(["export", "run", "--format", "onnx", "--weights", "validation"]) == 0
    assert f"checked on 32 images of {in_folder}/clay: " in capsys.readouterr().out
    described = json.loads((in_folder / "model.json").read_text())
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    run = uda.load_run("run", weights="validation")
    expected = run.predict("clay/ant/ant_0.jpg").probabilities
    (found,) = session.run(["probabilities"], {"images": as_told("clay/ant/ant_0.jpg", described)})
    np.testing.assert_allclose(found, expected, atol=0.02)


def test_a_supervised_run_is_checked_on_its_test_images(in_folder, capsys):
    from tests.hardness.conftest import TINY
    from uda.hardness.dynamics.config import SupervisedConfig
    from uda.hardness.dynamics.run import SupervisedRun

    for seed, part in enumerate(("train", "test")):
        make_folders(in_folder / part, ["ant", "bee"], per_class=4, seed=seed)
    (in_folder / "tiny.yaml").write_text(TINY.format(root=in_folder))
    words = ["human.file=null", "training.epochs=1", "output=run", "report.page=false"]
    SupervisedRun(SupervisedConfig.load(in_folder / "tiny.yaml", words)).execute()
    capsys.readouterr()
    assert main(["export", "run", "--format", "torch-export"]) == 0
    assert f"checked on 8 images of {in_folder}/test: " in capsys.readouterr().out


def test_other_images_serve_for_the_check(folder, capsys):
    """Where the run's data is not there any more. Unreadable ones are passed over with a warning."""
    random = np.random.default_rng(0)
    for number in range(40):
        write_image(folder / "own" / f"{number}, ä.png", number % 4, random)
    (folder / "own" / "0, ä.png").write_bytes(b"no image")
    config = (folder / "run" / "config.yaml").read_text()
    (folder / "run" / "config.yaml").write_text(re.sub(r"target: \S+/photos", "target: gone", config))
    assert main(["export", "run", "--format", "torch-export"]) == 2
    assert re.match(
        r"error: data\.target: no such folder: gone; .*; or name other images for the check in --images\n",
        capsys.readouterr().err,
    )
    assert main(["export", "run", "--format", "torch-export", "--images", "own"]) == 0
    warning, _, check = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: 1 image of own cannot be read for the check; the first one: own/0, ä.png: ")
    assert check.startswith("checked on 31 images of own: ")
    (folder / "one.txt").write_text("own/1, ä.png\n")
    assert main(["export", "run", "--format", "torch-export", "--images", "one.txt"]) == 0
    assert "checked on 1 image of one.txt: " in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["probabilities", "nan", "alone"])
def test_a_model_that_differs_is_an_error_and_leaves_no_file(fault, folder, monkeypatch, capsys):
    own = FORMATS["torch-export"]

    def disturbed(content):
        model = own.open(content)

        def run(images):
            found = model(images)
            if fault == "probabilities":
                found["probabilities"] = found["probabilities"] + np.float32(0.002)
            elif fault == "nan":
                found["features"] = found["features"] * np.nan
            elif len(images) == 1:
                found["logits"] = found["logits"] + 1
            return found

        return run

    monkeypatch.setitem(FORMATS._entries, "torch-export", replace(own, open=disturbed))
    assert main(["export", "run", "--format", "torch-export"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the exported model differs from the run's network on 32 images of ")
    assert "at most 0.001 is allowed; try another --format" in said
    assert [path.name for path in folder.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--format", "onnx"], r"nowhere is not a run folder: there is no config\.yaml"),
        (["run", "--format", "onnx", "--weights", "validation"], r"--weights: .* no weights 'validation' \(it has"),
        (["run", "--format", "onnx", "--out", "m.pt2"], r"--out: m\.pt2: a file of the format onnx ends in \.onnx"),
        (["run", "--format", "torch-export", "--out", "m"], r"--out: m: a file of the format torch-export ends "),
        (["run", "--format", "onnx", "--images", "empty"], r"empty holds no images; images end in "),
        (["run", "--format", "onnx", "--images", "none"], r"images: no such file or folder: none"),
        (["run", "--format", "torch-export", "--images", "broken"], r"none of the images of broken can be read for the "
         r"check; the first one: broken/a\.png: cannot be read as an image"),
        (["run", "--format", "torch-export", "--out", "broken/a.png/m.pt2"], r"broken/a\.png/m\.pt2 cannot be written"),
        (["newer", "--format", "onnx"], r"newer/config\.yaml is not the config of a run, or is from another version"),
    ],
)  # fmt: skip
def test_a_mistake_is_told(words, message, folder, capsys):
    for name in ("empty", "broken", "newer"):
        (folder / name).mkdir()
    (folder / "broken" / "a.png").write_bytes(b"no image")
    (folder / "newer" / "config.yaml").write_text("future: 1\n" + (folder / "run" / "config.yaml").read_text())
    before = sorted(folder.rglob("*"))
    assert main(["export", *words]) == 2
    assert re.match(f"error: .*{message}", capsys.readouterr().err)
    assert sorted(folder.rglob("*")) == before


def test_a_format_is_needed_and_known(capsys):
    for words, message in (
        ([], "--format is needed: onnx or torch-export"),
        (["--format", "onxx"], "invalid choice: 'onxx'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["export", "run", *words])
        assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_the_command_knows_every_format():
    assert {kind: FORMATS[kind].ending for kind in FORMATS} == {kind: name[5:] for kind, name in FILES.items()}


def test_steps_in_words_follow_the_settings():
    grey = TransformSettings(kind="affine", size=28, mean=(0.5,), std=(0.5,))
    told = preprocessing(grey, ReadingSettings(exif_orientation="apply", background="black", white_level=4095))
    text = " ".join(told["steps"])
    for part in ("grey: 0.2989 R", "28 x 28 pixels. It is not resized", "as its EXIF", "colour black", "4095 is white"):
        assert part in text
    assert (
        told["resize"] is None and told["colour_order"] == "grey" and told["normalised_by_the_model"]["mean"] == [0.5]
    )
    told = preprocessing(TransformSettings(size=224, resize=256, squash=True), ReadingSettings(load_size=300))
    text = " ".join(told["steps"])
    assert "Resize it to 256 x 256 pixels, bilinear" in text and "longer than 300 pixels" in text
    assert "Ignore the EXIF" in text and "the centre, 224 x 224" in text


def test_a_check_is_one_line():
    check = Check(1, "mnist", {"features": 1.5e-6, "logits": 0.0}, {}, 0)
    assert check.describe() == "1 image of mnist: largest differences features 1.5e-06, logits 0"
