"""What a run tells its loggers: exact after interruptions, and without an effect on the run."""

import json

import numpy as np
import pytest

from tests.adaptation.test_run import cut_after_every_save, read_results
from tests.adaptation.test_run_without_rounds import NEEDED, SMALL
from tests.data.trees import make_folders
from tests.in_process import adapt
from tests.report.test_loggers import read, series
from uda.adaptation.events import main_components, spread_over
from uda.training import engine

LOGGED = ["report.loggers=[tensorboard]", "self_training.steps=5", "runtime.checkpoint_minutes=0"]
METHODS = {
    "rounds": [],
    "two epochs a round": ["self_training.steps=null", "self_training.epochs=2"],
    "intervals": ["method=fixmatch", *SMALL, *NEEDED["fixmatch"]],
    "source only": ["method=source_only"],
}


@pytest.fixture(autouse=True)
def points_are_near(monkeypatch, starts_apart):
    """A point every two steps, so that interruptions fall between points."""
    monkeypatch.setattr(engine, "CHECK_EVERY", 2)


def without_times(folder):
    return {tag: points for tag, points in series(folder).items() if not tag.startswith("time/")}


def others(folder):
    """Steps of distributions, pictures and texts, and values of the first."""
    events = read(folder)
    tags = events.Tags()
    histograms = {
        tag: [(e.step, e.histogram_value.num, e.histogram_value.sum) for e in events.Histograms(tag)]
        for tag in tags["histograms"]
    }
    images = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    names = [tag for tag in tags["tensors"] if not tag.startswith(("_hparams_", "config"))]
    texts = {tag: [(e.step, e.tensor_proto.SerializeToString()) for e in events.Tensors(tag)] for tag in names}
    return histograms, images, texts


@pytest.mark.parametrize("method", METHODS)
def test_event_files_of_a_run_that_is_cut_everywhere_are_those_of_an_undisturbed_one(
    tiny, tmp_path, monkeypatch, method
):
    """Cut after every step; no point is missing, twice or other in a bit."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    words = ["--cfg", str(tiny), *LOGGED, *METHODS[method]]
    assert adapt([*words, f"output={whole}"]) == 0
    with monkeypatch.context() as patch:
        starts = cut_after_every_save(patch, cut, lambda: adapt([*words, f"output={cut}"]))
    assert starts > 5
    assert read_results(cut) == read_results(whole)
    for axis in ("tb", "tb/training"):
        assert without_times(cut / axis) == without_times(whole / axis)
    assert others(cut / "tb") == others(whole / "tb")
    for name in ("tensors.tsv", "metadata.tsv", "sprite.png"):
        path = f"tb/embedding/{name}"
        assert (cut / path).read_bytes() == (whole / path).read_bytes()


def test_the_axes_are_those_of_the_page_and_of_the_whole_run(tiny, tmp_path):
    """Source: 4 steps; two rounds of 5. A point every two steps of an epoch and at its end."""
    assert adapt(["--cfg", str(tiny), *LOGGED, f"output={tmp_path / 'run'}"]) == 0
    curves = series(tmp_path / "run" / "tb" / "training")
    steps = [2, 4, 6, 8, 9, 11, 13, 14]
    assert [step for step, _ in curves["training/loss"]] == steps
    assert {tag.split("/")[0] for tag in curves} == {"training", "learning_rate", "time"}
    assert {f"learning_rate/{role}" for role in ("backbone", "new")} <= curves.keys()
    assert [step for step, _ in curves["time/seconds_per_step"]] == steps
    assert all(seconds > 0 for _, seconds in curves["time/seconds_per_step"])
    rounds = json.loads((tmp_path / "run" / "results.json").read_text())["rounds"]
    # Two windows of two steps and one of the last step make the round's mean loss.
    (_, a), (_, b), (_, c) = curves["training/loss"][-3:]
    assert (2 * a + 2 * b + c) / 5 == pytest.approx(rounds[-1]["loss"], rel=1e-5)
    reports = series(tmp_path / "run" / "tb")
    assert [step for step, _ in reports["validator/im"]] == [-1, 0, 1]
    assert [step for step, _ in reports["selection/avc"]] == [0, 1]
    assert [step for step, _ in reports["final/im"]] == [2] and "z_oracle/final" in reports
    events = read(tmp_path / "run" / "tb")
    assert [event.step for event in events.Histograms("target/avh")] == [-1, 0, 1]
    assert [event.step for event in events.Histograms("selection/scores")] == [0, 1]
    assert [event.step for event in events.Tensors("config/text_summary")] == [-1]


def test_loggers_change_nothing_in_a_run(tiny, tmp_path):
    """Records, results and weights with and without them, bit for bit."""
    for name, loggers in (("with", "[tensorboard]"), ("without", "[]")):
        assert adapt(["--cfg", str(tiny), *LOGGED, f"report.loggers={loggers}", f"output={tmp_path / name}"]) == 0
    assert read_results(tmp_path / "with") == read_results(tmp_path / "without")
    for file in ("final", "label_free", "source"):
        file = f"checkpoints/{file}.safetensors"
        assert (tmp_path / "with" / file).read_bytes() == (tmp_path / "without" / file).read_bytes()
    assert not (tmp_path / "without" / "tb").exists()


def test_a_longer_run_has_one_set_of_final_figures(tiny, tmp_path):
    for rounds in (1, 2):
        words = [*LOGGED, f"self_training.rounds={rounds}", f"output={tmp_path / 'run'}"]
        assert adapt(["--cfg", str(tiny), *words]) == 0
    found = series(tmp_path / "run" / "tb")
    assert [step for step, _ in found["final/im"]] == [2]
    assert [step for step, _ in found["validator/im"]] == [-1, 0, 1]


def test_an_unlabelled_target_has_no_oracle_figures(tiny, tmp_path):
    make_folders(tmp_path / "source", ["ant", "bee"], per_class=8)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((tmp_path / "source").rglob("*.jpg"))):
        (flat / f"{number}.jpg").write_bytes(path.read_bytes())
    words = [*LOGGED, f"data.source={tmp_path / 'source'}", f"data.target={flat}", f"output={tmp_path / 'run'}"]
    assert adapt(["--cfg", str(tiny), *words]) == 0
    tags = read(tmp_path / "run" / "tb").Tags()
    assert not [tag for kind in ("scalars", "images", "histograms") for tag in tags[kind] if "oracle" in tag]
    header = (tmp_path / "run/tb/embedding/metadata.tsv").read_text().split("\n")[0]
    assert header == "predicted\timage"


def test_rows_are_spread_evenly_and_components_keep_distances():
    assert spread_over(3, 10).tolist() == [0, 1, 2]
    assert spread_over(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert len(spread_over(50_000, 400)) == 400
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(30, 4)) @ rng.normal(size=(4, 60))
    found = main_components(flat.astype(np.float32), 50)
    assert found.shape == (30, 30)

    def distances(points):
        return np.linalg.norm(points[:, None] - points[None], axis=2)

    np.testing.assert_allclose(distances(found), distances(flat), atol=1e-4)
