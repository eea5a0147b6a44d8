"""The whole circle on real (tiny) data: what a run leaves, how it resumes, what it refuses."""

import contextlib
import csv
import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

import uda.adaptation.batches
import uda.adaptation.run
import uda.training.session
from tests.checkpoints import load_checkpoint
from tests.data.trees import make_visda
from tests.in_process import adapt
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.core.errors import UserError
from uda.selection.selectors import SELECTORS
from uda.training.checkpoint import Checkpoints
from uda.training.session import epoch_steps

ROUND_KEYS = {
    "round",
    "portion",
    "selected",
    "selected_per_class",
    "lambda",
    "tp_rate",
    "avh",
    "avc",
    "confidence",
    "feature_norm",
    "class_mean",
    "overall",
    "seconds",
}


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if key != "seconds"}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def read_results(folder):
    return without_times(json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def run(tiny):
    """Run the tiny config with some overrides."""

    def execute(*overrides):
        return AdaptationRun(AdaptationConfig.load(tiny, overrides)).execute()

    return execute


@pytest.fixture(scope="module")
def finished(tmp_path_factory, run):
    """One undisturbed tiny run, with its page and event files."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    run(f"output={folder}", "report.page=true", "report.loggers=[tensorboard]")
    return folder


def test_a_run_leaves_what_the_contract_says(finished):
    for name in ("config.yaml", "environment.json", "log.txt", "report.html"):
        assert (finished / name).stat().st_size > 0, name
    assert json.loads((finished / "environment.json").read_text())["weights"] == {"from": "none"}
    assert len(list((finished / "checkpoints").glob("state-*.pt"))) == 2
    results = json.loads((finished / "results.json").read_text())
    assert results["config"] == "tiny" and results["selector"] == "avc" and results["seed"] == 0
    assert [r["round"] for r in results["rounds"]] == [0, 1] and results["rounds"][0].keys() >= ROUND_KEYS
    assert results["final"]["class_mean"] == results["rounds"][-1]["class_mean"], "final is the last round"
    assert results["oracle_best"]["class_mean"] == max(r["class_mean"] for r in results["rounds"])
    for index in (0, 1):
        rows = list(csv.DictReader((finished / f"rounds/{index:02d}/pseudo_labels.csv").open()))
        assert len(rows) == len({row["image"] for row in rows}) == 32, "every target image once"
        assert sum(row["selected"] == "1" for row in rows) == results["rounds"][index]["selected"]


def test_config_yaml_makes_the_same_run_again(finished):
    saved = yaml.safe_load((finished / "config.yaml").read_text())
    assert AdaptationConfig.load(finished / "config.yaml").model_dump(mode="json") == saved


def test_a_finished_run_says_so_and_does_nothing(finished, tiny, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    assert adapt(["--cfg", str(tiny), f"output={finished}"]) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_folder_of_another_config_is_refused_with_the_keys(finished, tiny, capsys):
    assert adapt(["--cfg", str(tiny), f"output={finished}", "self_training.selector=softmax", "seed=3"]) == 2
    error = capsys.readouterr().err
    assert "seed: 0 -> 3" in error and "self_training.selector: 'avc' -> 'softmax'" in error
    assert "Traceback" not in error


def test_a_folder_of_something_else_is_refused(run, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="neither empty nor a run folder"):
        run(f"output={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


class PowerCut(BaseException):
    """What a test throws in place of a kill."""


def cut(monkeypatch, start, saves):
    """Call `start`, with a power cut after so many checkpoints."""
    save, count = Checkpoints.save, 0

    def save_and_die(*args):
        nonlocal count
        save(*args)
        count += 1
        if count == saves:
            raise PowerCut

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(PowerCut):
            start()


def cut_after_every_save(monkeypatch, folder, start):
    """Call `start` until the run in `folder` has its results, with a power cut after each save; how many starts."""
    save, starts = Checkpoints.save, 0

    def save_and_die(*args):
        save(*args)
        raise PowerCut

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    monkeypatch.setattr(Checkpoints, "due", True)
    while not (folder / "results.json").exists():
        starts += 1
        assert starts < 50
        with contextlib.suppress(PowerCut):
            start()
    return starts


def same_end(folder, finished):
    """Results without times, pseudo-labels, the last weights and predictions are those of the undisturbed run."""
    assert read_results(folder) == read_results(finished)
    for theirs in finished.glob("rounds/*/pseudo_labels.csv"):
        assert (folder / theirs.relative_to(finished)).read_bytes() == theirs.read_bytes()
    for name in ("checkpoints/final.safetensors", "predictions.csv"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes(), name
    assert (folder / "checkpoints/label_free.safetensors").is_file()
    return True


@pytest.mark.parametrize("saves", [1, 2, 3, 4, 5, 6])
def test_a_run_cut_after_any_checkpoint_resumes_to_the_same_end(run, finished, tmp_path, monkeypatch, saves):
    """Checkpoints: source epoch, source evaluated, then epoch and end of each of the two rounds."""
    folder = tmp_path / "cut"
    cut(monkeypatch, lambda: run(f"output={folder}"), saves)
    assert not (folder / "results.json").exists()
    run(f"output={folder}")
    assert same_end(folder, finished)
    assert "resuming" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dropout=0.5", "self_training.batch.mixed=8", "self_training.steps=null", "self_training.epochs=2"],
        ["source.optim.name=adamw", "source.optim.schedule=one_cycle", "self_training.regularizer=mrkld_lrent"],
        ["runtime.workers=1", "runtime.accumulate=2", "self_training.adapt_batch_norm=true"],
    ],
)
def test_a_run_that_dies_after_every_step_comes_to_the_same_end(run, tmp_path, monkeypatch, overrides):
    """A checkpoint at every step, and the power cut after each of them: dropout, both batch plans, both optimisers."""
    run(f"output={tmp_path / 'whole'}", *overrides)
    folder = tmp_path / "cut"
    starts = cut_after_every_save(monkeypatch, folder, lambda: run(f"output={folder}", *overrides))
    assert starts > 12, "four source steps and three in each of two rounds at the least"
    assert same_end(folder, tmp_path / "whole")


def test_interrupt_says_how_to_go_on(tiny, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(uda.training.session.Engine, "fit", interrupt)
    assert adapt(["--cfg", str(tiny), f"output={tmp_path / 'run'}"]) == 130
    assert "interrupted by SIGINT: nothing was saved yet" in capsys.readouterr().err


def test_two_runs_with_one_seed_are_equal_and_another_seed_differs(run, finished, tmp_path):
    run(f"output={tmp_path / 'same'}")
    run(f"output={tmp_path / 'other'}", "seed=1")
    assert read_results(tmp_path / "same") == read_results(finished)
    assert read_results(tmp_path / "other")["final"] != read_results(finished)["final"]


def test_source_checkpoint_takes_the_place_of_source_training(run, finished, tmp_path):
    checkpoint = finished / "checkpoints" / "source.safetensors"
    run(f"output={tmp_path / 'given'}", f"source.checkpoint={checkpoint}")
    assert read_results(tmp_path / "given")["rounds"] == read_results(finished)["rounds"]
    assert "steps of 8" not in (tmp_path / "given" / "log.txt").read_text()


def test_checkpoint_of_another_architecture_is_refused_before_anything_is_written(run, finished, tmp_path):
    checkpoint = finished / "checkpoints" / "source.safetensors"
    with pytest.raises(UserError, match="another network: head is 16, not 64"):
        run(f"output={tmp_path / 'other'}", f"source.checkpoint={checkpoint}", "model.head=64")
    assert not (tmp_path / "other").exists()


def test_source_only_has_no_rounds(run, tmp_path):
    results = run(f"output={tmp_path / 'source'}", "method=source_only")
    assert results["rounds"] == [] and results["final"] == results["source_only"]
    assert results["selector"] is None


def test_the_label_free_weights_are_those_of_the_chosen_round(tiny, run, tmp_path, monkeypatch):
    """Information maximisation is made to prefer round 0 of 2."""
    values = iter([0.0, 3.0, 2.0])
    monkeypatch.setitem(uda.adaptation.run.VALIDATORS._entries, "im", lambda *_: next(values))
    weights = []
    predict = AdaptationRun._adapted_predict

    def remember(self):
        weights.append({name: value.clone() for name, value in self.engine.network.state_dict().items()})
        return predict(self)

    monkeypatch.setattr(AdaptationRun, "_adapted_predict", remember)
    results = run(f"output={tmp_path / 'run'}")
    assert results["label_free_choice"]["round"] == 0
    saved = load_file(tmp_path / "run" / "checkpoints" / "label_free.safetensors")
    assert all(torch.equal(saved[name], weights[-2][name]) for name in saved)
    assert not all(torch.equal(saved[name], weights[-1][name]) for name in saved)


@pytest.mark.parametrize(
    "overrides",
    [
        ["self_training.regularizer=mrkld_lrent", "self_training.adapt_batch_norm=true"],
        ["self_training.selector=softmax", "self_training.regularizer=lrent", "self_training.keep=lrent"],
        ["self_training.forward=separate", "self_training.batch_norm=eval", "self_training.source_share.start=0.5"],
        ["self_training.batch.mixed=8", "self_training.steps=null", "self_training.epochs=2", "source.steps=5"],
        ["runtime.channels_last=true", "runtime.workers=1", "model.dropout=0.5", "source.optim.name=adamw"],
    ],
)
def test_settings_run(run, tmp_path, overrides):
    results = run(f"output={tmp_path / 'run'}", "self_training.rounds=1", *overrides)
    assert len(results["rounds"]) == 1 and 0 <= results["final"]["class_mean"] <= 1


@pytest.mark.parametrize("selector", ["margin", "entropy", "energy", "cosine"])
def test_every_selector_runs_a_round(run, tmp_path, selector):
    results = run(f"output={tmp_path / 'run'}", "self_training.rounds=1", f"self_training.selector={selector}")
    assert results["rounds"][0]["selected"] > 0 and results["selector"] == selector


def test_a_portion_that_selects_nothing_stops_or_continues(run, tmp_path):
    nothing = ["self_training.portion.start=0.01", "self_training.portion.max=0.01"]
    with pytest.raises(UserError, match=r"round 0: portion 0\.01 selects no target image of any class"):
        run(f"output={tmp_path / 'stop'}", *nothing)
    results = run(f"output={tmp_path / 'on'}", *nothing, "self_training.on_empty=continue")
    assert [r["selected"] for r in results["rounds"]] == [0, 0]
    assert "selects no target image" in (tmp_path / "on" / "log.txt").read_text()


def test_nan_loss_stops_with_the_last_checkpoint_kept(tiny, tmp_path, capsys):
    arguments = ["--cfg", str(tiny), f"output={tmp_path / 'run'}", "self_training.optim.lr=1e30"]
    assert adapt(arguments) == 2
    error = capsys.readouterr().err
    assert "round 0: the loss is" in error and ".jpg" in error and "last good checkpoint is kept" in error
    progress, state = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert progress.stage == "round" and all(torch.isfinite(v).all() for v in state["network"].values())


@pytest.mark.parametrize("stage", ["source", "self_training"])
def test_a_blow_up_in_the_last_step_of_an_epoch_is_found_before_it_is_saved(tiny, tmp_path, capsys, stage):
    arguments = ["--cfg", str(tiny), f"output={tmp_path / 'run'}", f"{stage}.steps=1", f"{stage}.optim.lr=1e30"]
    assert adapt(arguments) == 2
    assert "the network is not finite after the last update" in capsys.readouterr().err
    assert "error: " in (tmp_path / "run" / "log.txt").read_text()
    saved = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert saved is None or all(torch.isfinite(v).all() for v in saved[1]["network"].values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["transforms.target.scale=[2,1]"], "transforms"),
        (["transforms.size=48", "transforms.resize=36"], "transforms.resize"),
        (["model.backbone=vit_tiny_patch16_224", "transforms.size=24"], "cannot take images of transforms.size=24"),
        (["self_training.selector=test_rounds_flat"], "selector 'test_rounds_flat' returned scores of shape"),
    ],
)
def test_what_does_not_fit_is_found_before_training(tiny, tmp_path, capsys, monkeypatch, overrides, message):
    monkeypatch.setitem(SELECTORS._entries, "test_rounds_flat", lambda features, logits, weight: logits.amax(1))
    assert adapt(["--cfg", str(tiny), f"output={tmp_path / 'run'}", *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_scores_that_are_not_positive_name_the_selector(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(SELECTORS._entries, "test_rounds_negative", lambda features, logits, weight: logits - 1e6)
    assert adapt(["--cfg", str(tiny), f"output={tmp_path / 'run'}", "self_training.selector=test_rounds_negative"]) == 2
    assert "selector 'test_rounds_negative'" in capsys.readouterr().err


def test_adapted_batch_norm_does_not_know_the_images_order(tiny, tmp_path):
    """Folders are sorted by class; the statistics must not be taken one class at a time."""
    job = AdaptationRun(
        AdaptationConfig.load(tiny, [f"output={tmp_path / 'run'}", "self_training.adapt_batch_norm=true"])
    )
    seen = []
    job.engine.adapt_batch_norm = lambda batches: seen.extend(batches)
    job.adapt_batch_norm()
    in_order = torch.cat(list(job.batches.predict(job.domains.target.images, 32)))
    order = [next(i for i, image in enumerate(in_order) if torch.equal(image, other)) for other in torch.cat(seen)]
    assert sorted(order) == list(range(32)) and order != list(range(32))


def test_adapted_batch_norm_takes_whole_batches(tiny, tmp_path, monkeypatch):
    """31 is two batches of 15 and one image, which BatchNorm cannot take."""
    monkeypatch.setattr(uda.adaptation.batches, "ADAPT_BATCH", 15)
    job = AdaptationRun(AdaptationConfig.load(tiny, [f"output={tmp_path / 'run'}", "self_training.adapt_images=31"]))
    seen = []
    job.engine.adapt_batch_norm = lambda batches: seen.extend(len(batch) for batch in batches)
    job.adapt_batch_norm()
    assert seen == [15, 15]


def test_dry_run_checks_all_and_writes_nothing(tiny, in_folder, capsys):
    assert adapt(["--cfg", str(tiny), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "10 training steps, 96 images predicted" in out and "parameters" in out and "nothing was written" in out
    assert [line.split()[1] for line in out.split("\n") if line.startswith("pace")] == ["source", "rounds", "predict"]
    assert list(in_folder.iterdir()) == []


def test_visda_in_its_exact_layout(tmp_path, monkeypatch, capsys):
    """The main job's own config on a tiny tree; only network, sizes and page are cut to what a test can afford."""
    make_visda(tmp_path / "data", per_class=3)
    monkeypatch.setenv("UDA_DATA", str(tmp_path / "data"))
    arguments = [
        "--cfg",
        "visda_avh.yaml",
        "model.backbone=test_resnet",
        "model.weights=none",
        "transforms.size=32",
        "transforms.resize=36",
        "source.epochs=1",
        "source.batch_size=8",
        "self_training.rounds=2",
        "self_training.portion.start=0.5",
        "self_training.batch.mixed=8",
        "runtime.workers=0",
        "report.page=false",
        f"output={tmp_path / 'run'}",
    ]
    assert adapt(arguments) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert list(results["final"]["per_class"])[:2] == ["aeroplane", "bicycle"]
    assert len(results["final"]["per_class"]) == 12 and len(results["rounds"]) == 2
    assert any((tmp_path / "run" / "tb").iterdir())
    assert "class mean" in capsys.readouterr().out


def test_epochs_and_steps():
    assert epoch_steps(10, 3, None) == [10, 10, 10]
    assert epoch_steps(10, 3, 25) == [10, 10, 5]
    assert epoch_steps(10, 3, 4) == [4]


def test_source_share_is_drawn_anew_each_round(tiny, tmp_path):
    job = AdaptationRun(AdaptationConfig.load(tiny, [f"output={tmp_path}"]))
    draws = [set(job.batches.source_share(index).tolist()) for index in (0, 1, 0)]
    assert len(draws[0]) == 16 and draws[0] != draws[1] and draws[0] == draws[2]


def test_a_run_resumes_with_its_own_images_only(tiny, tmp_path, monkeypatch):
    """Stopped in round 0; then an image of the target has another name, and so all pseudo-labels another place."""
    folder, save = tmp_path / "cut", Checkpoints.save

    def save_and_die(self, progress, state):
        save(self, progress, state)
        if progress.stage == "round" and progress.begun:
            raise PowerCut

    monkeypatch.setattr(Checkpoints, "save", save_and_die)
    with pytest.raises(PowerCut):
        AdaptationRun(AdaptationConfig.load(tiny, [f"output={folder}"])).execute()
    monkeypatch.undo()
    target = sorted((tiny.parent / "photos").rglob("*.jpg"))[0]
    moved = target.with_name("zzz.jpg")
    target.rename(moved)
    try:
        with pytest.raises(
            UserError, match=r"other images: of 32 target images 1 is gone \(ant/ant_0.jpg\), 1 is new \(ant/zzz"
        ):
            AdaptationRun(AdaptationConfig.load(tiny, [f"output={folder}"]))
    finally:
        moved.rename(target)
    assert AdaptationRun(AdaptationConfig.load(tiny, [f"output={folder}"])).execute()["rounds"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["source.batch_size=4", "runtime.accumulate=3"], "source.batch_size"),
        (["self_training.batch.selected=3", "runtime.accumulate=4"], "self_training.batch"),
        (["self_training.on_empty=continue", "runtime.accumulate=3"], "self_training.batch"),
    ],
)
def test_batches_too_small_to_be_divided_are_found_at_the_start(tiny, tmp_path, overrides, key):
    """4 and 4 + 3 images; and the 4 source images only, if a round may train without selected ones."""
    with pytest.raises(UserError, match=rf"{key}: a batch of \d images is too small for \d parts"):
        AdaptationRun(AdaptationConfig.load(tiny, [f"output={tmp_path / 'run'}", *overrides]))
    assert not (tmp_path / "run").exists()


def test_a_map_without_its_package_is_refused_before_the_training(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("uda.report.feature_map.find_spec", lambda name: None)
    with pytest.raises(UserError, match="umap-learn; pip install umap-learn"):
        AdaptationRun(AdaptationConfig.load(tiny, [f"output={tmp_path / 'run'}", "report.map=umap"]))
    assert not (tmp_path / "run").exists()


def test_the_page_of_a_run_that_stops_does_not_say_that_it_goes_on(tiny, tmp_path, monkeypatch):
    """The second round selects nothing, which is an error."""
    words = [f"output={tmp_path / 'run'}", "report.page=true", "runtime.threads=1"]
    config = AdaptationConfig.load(tiny, words)
    round_of = AdaptationRun._round

    def second_fails(self, predicted):
        if self.progress.round == 1:
            raise UserError("no more")
        return round_of(self, predicted)

    monkeypatch.setattr(AdaptationRun, "_round", second_fails)
    with pytest.raises(UserError, match="no more"):
        AdaptationRun(config).execute()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "This run is not finished: round 1 of 2 done." in page
    assert '"running":null' in page
    assert page.count('<svg viewBox="0 0 360') <= 1, "the end of the process does not wait for figures"


def test_a_page_that_cannot_be_made_costs_no_training(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("uda.adaptation.page.adaptation_page", lambda record, config: 1 / 0)
    results = AdaptationRun(AdaptationConfig.load(tiny, [f"output={tmp_path / 'run'}", "report.page=true"])).execute()
    assert len(results["rounds"]) == 2
    told = [line for line in capsys.readouterr().out.split("\n") if "report.html cannot be made" in line]
    assert len(told) == 1 and "ZeroDivisionError: division by zero" in told[0]
