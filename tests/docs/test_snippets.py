"""The snippets of README.md and docs/ run word for word."""

import ast
import json
import re
import runpy
import shutil
import sys
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import uda
from tests.data.banks import blobs, write_npz
from tests.data.scene_trees import make_scenes, write_scene
from tests.data.trees import make_folders, write_image
from tests.docs.documents import TEXTS, fenced, marked
from tests.in_process import adapt
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.cli.main import main
from uda.core.resources import CHECKOUT
from uda.data.scene_settings import SceneDataSettings
from uda.data.scenes import load_scenes
from uda.kinds import register_tables
from uda.selection.selectors import SELECTORS
from uda.tables import jobs_of, load_table

register_tables()

README = TEXTS["README.md"]
PLUGIN, METHOD = "my_selectors.py", "my_method.py"


def snippet(marker, language):
    """The block that follows a marker, the same wherever it stands."""
    found = {block for text in TEXTS.values() for block in marked(text, marker, language)}
    assert len(found) == 1, f"{len(found)} different {language} blocks after <!-- {marker} -->"
    return found.pop()


def test_a_bank_of_ones_own_as_its_page_has_it(in_folder):
    exec(compile(snippet("own bank", "python"), "own bank", "exec"), {})  # noqa: S102
    (in_folder / "bank.yaml").write_text(snippet("bank config", "yaml"), encoding="utf-8")
    words = ["self_training.rounds=3", "report.loggers=[]", "report.page=false"]
    run = uda.adapt("bank.yaml", overrides=words, log=None)
    final, before = (run.results[part]["class_mean"] for part in ("final", "source_only"))
    assert final > before > 0.8 and run.classes == ("cat", "dog", "owl")


@pytest.fixture
def forget_mine():
    """Remove the selector and the method of the snippets from the registries: a plugin registers once per process."""
    yield
    SELECTORS._entries.pop("mine", None)
    ADAPTATION_METHODS._entries.pop("nuclear", None)


@pytest.fixture
def plugin(in_folder, forget_mine):
    """The plugins in the working folder."""
    (in_folder / PLUGIN).write_text(snippet("plugin", "python"), encoding="utf-8")
    (in_folder / METHOD).write_text(snippet("method", "python"), encoding="utf-8")


def test_the_two_set_up_commands_come_first():
    """Before any other command, a line each: install and run the main job, install and test."""
    demo, test = (text.strip() for text in fenced(README, "bash")[:2])
    assert demo == 'pip install -e ".[demo]" && python tools/self_train.py --cfg digits_avh.yaml'
    assert test == 'pip install -e ".[test]" && pytest'
    setup = ConfigParser()
    setup.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    assert {"demo", "test", "docs"} <= set(setup["options.extras_require"])


def test_readme_is_short():
    assert len(README.partition("\n## Results")[0].split()) <= 1000


@pytest.mark.parametrize("name", TEXTS)
def test_python_blocks_are_python(name):
    for block in fenced(TEXTS[name], "python"):
        ast.parse(block)


def test_a_selector_of_ones_own_in_ten_lines_makes_a_whole_run(plugin, tiny, in_folder):
    text = snippet("plugin", "python")
    assert len(text.splitlines()) <= 10
    assert text.startswith(f"# {PLUGIN}\n"), "it says what to call the file"
    arguments = ["--cfg", str(tiny), f"plugins={PLUGIN}", "self_training.selector=mine", "output=run"]
    assert adapt(arguments) == 0
    results = json.loads((in_folder / "run" / "results.json").read_text())
    assert results["selector"] == "mine" and [r["round"] for r in results["rounds"]] == [0, 1]
    assert all(r["selected"] > 0 for r in results["rounds"])


def test_a_method_of_ones_own_is_named_and_run_like_ours(plugin, tiny, in_folder):
    assert snippet("method", "python").startswith(f"# {METHOD}\n")
    small = ["source.epochs=0", "adaptation={steps: 3, batch: {source: 4, target: 4}}", "report.page=true"]
    assert adapt(["--cfg", str(tiny), f"plugins={METHOD}", "method=nuclear", "output=run", *small]) == 0
    results = json.loads((in_folder / "run" / "results.json").read_text())
    assert results["method"] == "nuclear" and results["steps"] == 3
    assert "nuclear" in (in_folder / "run" / "report.html").read_text()


def test_a_comparison_of_ones_own_has_valid_runs(in_folder):
    path = in_folder / "my_table.yaml"
    path.write_text(snippet("comparison", "yaml"), encoding="utf-8")
    table = load_table(path)
    jobs = jobs_of(table, in_folder / "runs")
    assert table.name == "my_table" and table.reference == "CBST" and len(jobs) == 9
    assert {job.config.method for job in jobs} == {"source_only", "self_training", "mcc"}
    assert [job.config.data.source for job in jobs] == ["rendered"] * 9
    (cbst,) = [job for job in jobs if job.row.name == "CBST" and job.seed == 1]
    assert cbst.needs.title == "Source, rendered to mnist, seed 1"


def test_a_comparison_on_a_bank_has_valid_runs(in_folder):
    path = in_folder / "bank_table.yaml"
    path.write_text(snippet("bank comparison", "yaml"), encoding="utf-8")
    write_npz(in_folder / "bank", rendered=blobs(), mnist=blobs(seed=1))
    jobs = jobs_of(load_table(path), in_folder / "runs")
    assert len(jobs) == 9 and {(job.config.bank[:7], job.config.model.head) for job in jobs} == {("arrays ", None)}


@pytest.mark.parametrize("labelled", [True, False])
def test_data_of_ones_own_in_five_lines_makes_a_whole_run(labelled, in_folder):
    """The config beside renderings/<class>/*.png and photos.txt; only network and sizes are cut down."""
    text = snippet("own data", "yaml")
    assert len(text.splitlines()) <= 5
    config = in_folder / "own.yaml"
    config.write_text(text, encoding="utf-8")
    classes = ["ant", "bee", "cat"]
    make_folders(in_folder / "renderings", classes, per_class=6, suffix=".png")
    make_folders(in_folder / "shots", classes, per_class=6, seed=1)
    shots = [(path.relative_to(in_folder), path.parent.name) for path in sorted((in_folder / "shots").rglob("*.jpg"))]
    lines = [f"{path} {name}\n" if labelled else f"{path}\n" for path, name in shots]
    (in_folder / "photos.txt").write_text("".join(lines), encoding="utf-8")
    small = [
        "model.backbone=digits_cnn",
        "model.weights=none",
        "model.head=16",
        "transforms.size=24",
        "transforms.resize=28",
        "source.epochs=1",
        "source.batch_size=6",
        "self_training.rounds=1",
        "self_training.portion.start=0.5",
        "self_training.source_share.start=1.0",
        "self_training.source_share.max=1.0",
        "self_training.batch.mixed=6",
        "runtime.device=cpu",
        "runtime.workers=0",
    ]
    assert adapt(["--cfg", str(config), *small]) == 0
    results = json.loads((in_folder / "runs" / "own" / "seed0" / "results.json").read_text())
    assert results["selector"] == "avc" and results["rounds"][0]["selected"] > 0
    assert list(results["rounds"][0]["selected_per_class"]) == classes
    assert (results["final"]["class_mean"] is not None) == labelled, "oracle figures need labels"


def test_the_python_api_runs_as_readme_has_it(tiny, in_folder, capsys):
    """With a small config in the default task's place."""
    text = snippet("api", "python")
    (in_folder / "mine.py").write_text(text.replace('"digits_avh"', repr(str(tiny))), encoding="utf-8")
    runpy.run_path(str(in_folder / "mine.py"))
    results = json.loads((in_folder / "runs" / "tiny" / "seed1" / "results.json").read_text())
    assert [entry["round"] for entry in results["rounds"]] == [0, 1, 2]
    assert "runs/tiny/seed1" in capsys.readouterr().out


def test_an_exported_model_predicts_as_its_page_has_it(tiny, in_folder, capsys):
    """Both snippets give the class and about the probability of the run itself."""
    assert adapt(["--cfg", str(tiny), "output=run"]) == 0
    for kind in ("onnx", "torch-export"):
        assert main(["export", "run", "--format", kind]) == 0
    write_image(in_folder / "photos" / "a.jpg", 2, np.random.default_rng(0), size=(61, 40))
    capsys.readouterr()
    (in_folder / "snippet.py").write_text("\n".join(snippet(kind, "python") for kind in ("onnx", "torch-export")))
    made = runpy.run_path(str(in_folder / "snippet.py"))
    name, probability = capsys.readouterr().out.split()
    found = uda.load_run("run").predict("photos/a.jpg")
    assert name == found.class_names[0] and made["images"].shape == (1, 3, 24, 24)
    assert float(probability) == pytest.approx(found.probabilities.max(), abs=0.02)
    assert made["probabilities"].max().item() == pytest.approx(float(probability), abs=1e-4)


class Clip:
    """Stands for a CLIP model: an image or a text is as its first class name, with some noise of the image."""

    def __init__(self, names):
        self.vectors = dict(zip(names, torch.eye(len(names), 16) + 0.1, strict=True))

    def create_model_and_transforms(self, name, pretrained):
        assert (name, pretrained) == ("ViT-B-32", "openai")
        return self, None, lambda image: torch.tensor([list(self.vectors).index(Path(image.filename).parent.name)])

    def get_tokenizer(self, name):
        return lambda texts: texts

    def encode_text(self, texts):
        return torch.stack([self.vectors[text.removeprefix("a photo of a ")] for text in texts])

    def encode_image(self, classes):
        return torch.stack(list(self.vectors.values()))[classes[:, 0]] + torch.randn(len(classes), 16) / 2


def test_class_vectors_of_clip_as_the_page_has_them(in_folder, monkeypatch):
    """Zero-shot, each image is nearest to the text of its class in a space of 16 axes. The run reads no image."""
    names = ["ant", "bee", "cat", "dog"]
    for seed, domain in enumerate(("drawn", "photos")):
        make_folders(in_folder / domain, names, per_class=6, seed=seed)
    monkeypatch.setitem(sys.modules, "open_clip", Clip(names))
    (in_folder / "snippet.py").write_text("\n".join(snippet(kind, "python") for kind in ("clip texts", "clip images")))
    runpy.run_path(str(in_folder / "snippet.py"))
    for domain in ("drawn", "photos"):
        shutil.rmtree(in_folder / domain)
    (in_folder / "clip.yaml").write_text(snippet("clip config", "yaml"), encoding="utf-8")
    words = ["source.steps=3", "source.batch_size=8", "self_training.rounds=1", "self_training.steps=3"]
    words += ["self_training.batch={source: 4, selected: 4}", "runtime.device=cpu", "report.page=false"]
    assert adapt(["--cfg", "clip.yaml", *words]) == 0
    results = json.loads((in_folder / "runs/clip/drawn_to_photos/seed0/results.json").read_text())
    bank, texts = np.load("bank/photos.npz"), np.load("clip.npz")
    images, weight = (
        array / np.linalg.norm(array, axis=1, keepdims=True) for array in (bank["features"], texts["weight"])
    )
    right = texts["classes"][(images @ weight.T).argmax(1)] == bank["labels"]
    assert results["zero_shot"]["overall"] == pytest.approx(right.mean()) and 0.5 < right.mean() < 1


def test_the_table_of_rounds_is_what_a_run_prints(tiny, in_folder, capsys):
    """The header of the table in README.md and docs/index.md."""
    assert adapt(["--cfg", str(tiny), "output=run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    for name in ("README.md", "docs/index.md"):
        (text,) = fenced(TEXTS[name], "text")
        header = [line for line in text.splitlines() if re.match(r" +oracle|-----| round ", line)]
        assert len(header) == 3 and [line for line in header if line not in printed] == [], name


def test_every_method_has_a_config_that_its_page_names():
    for page in ("adaptation.md", "self_training.md"):
        rows = re.findall(r"^\| `<dataset>_(\w+)\.yaml` \|", TEXTS[f"docs/{page}"], flags=re.MULTILINE)
        assert rows
        for method in rows:
            for dataset in ("visda", "digits", "pacs"):
                assert (CHECKOUT / "configs" / f"{dataset}_{method}.yaml").is_file()
    named = set(re.findall(r"^\| `<dataset>_(\w+)\.yaml` \|", TEXTS["docs/adaptation.md"], flags=re.MULTILINE))
    assert named == {"source" if name == "source_only" else name for name in ADAPTATION_METHODS} - {"self_training"}


def test_scenes_of_ones_own_and_a_card_of_scenes(in_folder, monkeypatch):
    for name, first in (("renderings", 0), ("photos", 10)):
        make_scenes(in_folder / name, 2, first)
    data = SceneDataSettings(**yaml.safe_load(snippet("own scenes", "yaml"))["data"])
    found = load_scenes(data, 0, lambda line: None)
    assert found.classes == ("road", "building", "sky") and len(found.target_maps) == 2
    (in_folder / "town.yaml").write_text(snippet("card of scenes", "yaml"), encoding="utf-8")
    for number, (part, value) in enumerate((("day", 7), ("day", 8), ("dusk", 7))):
        write_scene(
            in_folder / "Town" / "photos" / part / f"{number}_photo.jpg",
            in_folder / "Town" / "labels" / part / f"{number}_ids.png",
            number,
            {0: value, 1: 11, 2: 23},
        )
    street = in_folder / "Town"
    write_scene(street / "photos" / "late.png", street / "labels" / "late.png", 9, {0: 7, 1: 11, 2: 23})
    (street / "night.txt").write_text("late\n", encoding="utf-8")
    monkeypatch.setenv("UDA_DATA", str(in_folder))
    found = load_scenes(SceneDataSettings(source="town.yaml/day", target="town.yaml/night"), 0, lambda line: None)
    assert found.classes == ("road", "building", "sky") and found.colors[0].tolist() == [128, 64, 128]
    assert found.source.images.ids == ["0_photo.jpg", "1_photo.jpg"] and found.target.images.ids == ["late.png"]
