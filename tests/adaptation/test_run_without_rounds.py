"""Runs of the methods without rounds: what they leave, how they resume, what they refuse."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch

import uda.adaptation.run as run_module
from tests.adaptation.test_run import cut_after_every_save, read_results
from tests.in_process import adapt
from uda.adaptation.batches import AdaptationBatches
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.methods import ADAPTATION_METHODS
from uda.adaptation.run import AdaptationRun
from uda.core.errors import UserError
from uda.core.yaml_files import ConfigError
from uda.data.domains import TargetLabels

SMALL = (
    "source.epochs=0",
    "adaptation.steps=7",
    "adaptation.evaluate_every=3",
    "adaptation.batch={source: 4, target: 5}",
    "adaptation.optim.lr=0.05",
)
NEEDED = {
    "adr": ["model.dropout=0.5"],
    "mcd": ["model.dropout=0.5", "model.head_batch_norm=true", "model.head=[8, 8]"],
    "fixmatch": ["adaptation.strong={scale: [0.5, 1.0], rand_augment: 9}"],
    "shot": [
        *("source.epochs=1", "adaptation.batch.source=0", "method_options.labels_from=2"),
        *("model.head_batch_norm=true", "model.head_activation=none", "model.weight_norm=true"),
    ],
}
SEPARATE = "adaptation.forward=separate"
ADAPTING = sorted(name for name, method in ADAPTATION_METHODS.items() if method.adapts)


@pytest.fixture(scope="module")
def execute(tiny):
    """Run a method on the tiny config."""

    def run(folder, name, *overrides):
        config = AdaptationConfig.load(
            tiny, [f"output={folder}", f"method={name}", *SMALL, *NEEDED.get(name, []), *overrides]
        )
        return AdaptationRun(config).execute()

    return run


@pytest.mark.parametrize("name", ADAPTING)
def test_every_method_that_dies_after_every_step_comes_to_the_same_end(execute, tmp_path, monkeypatch, name):
    """Reports after 3, 6 and 7 steps; modules and preparations of the method's own are in the checkpoint."""
    whole = execute(tmp_path / "whole", name)
    assert [(entry["round"], entry["steps"]) for entry in whole["rounds"]] == [(0, 3), (1, 6), (2, 7)]
    assert whole["final"]["class_mean"] == whole["rounds"][-1]["class_mean"]
    assert (whole["source_only"]["class_mean"] is None) == (name != "shot"), "without a source stage there is no model"
    folder = tmp_path / "cut"
    assert cut_after_every_save(monkeypatch, folder, lambda: execute(folder, name)) > 7
    assert read_results(folder) == read_results(tmp_path / "whole")
    weights = [(tmp_path / end / "checkpoints/final.safetensors").read_bytes() for end in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_a_run_leaves_a_page_and_events_without_a_word_of_choices(execute, tmp_path):
    execute(tmp_path / "run", "dann", "report.page=true", "report.loggers=[tensorboard]", "method_options.weight=0.5")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "· dann · weight 0.5 ·" in page and "Accuracy after each report" in page
    assert "Reports" in page and "Source only" not in page and "gain on" not in page, "there is no source model"
    assert "TP rate</th>" not in page and "Selected by" not in page and "hidden 1024" in page
    assert list((tmp_path / "run" / "tb").iterdir())
    assert not list((tmp_path / "run").glob("rounds/*/pseudo_labels.csv"))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "  report    steps    loss  classes  class mean" in log and "the last report" in log


def test_target_labels_cannot_reach_a_method(execute, tmp_path, monkeypatch):
    """Target images come without labels, unless the method has made some."""
    seen = []
    for name in ("mcc", "shot"):
        loss = ADAPTATION_METHODS[name].loss
        watched = lambda self, batch, loss=loss: seen.append(batch) or loss(self, batch)  # noqa: E731
        monkeypatch.setattr(ADAPTATION_METHODS[name], "loss", watched)
        execute(tmp_path / name, name)
    first, source_free = seen[0], seen[-1]
    assert first.labels[:4].sum(1).tolist() == [1] * 4 and first.labels[4:].sum() == 0
    assert first.is_target.tolist() == [False] * 4 + [True] * 5
    assert source_free.is_target.all() and source_free.labels.sum(1).tolist() == [1] * 5


@pytest.mark.parametrize("name", sorted(ADAPTATION_METHODS))
def test_no_target_label_has_a_part_in_what_is_learnt(execute, tiny, tmp_path, monkeypatch, name):
    """With shuffled target labels the networks are the same bit for bit, and the same ones are chosen."""
    stage = [] if ADAPTATION_METHODS[name].adapts else ["source.epochs=1"]
    execute(tmp_path / "true", name, *stage)
    load = run_module.load_domains

    def shuffled(*arguments):
        domains = load(*arguments)
        true = domains.target_labels.reveal()
        labels = np.random.default_rng(0).permutation(true)
        assert (labels != true).mean() > 0.5
        return dataclasses.replace(domains, target_labels=TargetLabels(labels))

    monkeypatch.setattr(run_module, "load_domains", shuffled)
    execute(tmp_path / "shuffled", name, *stage)
    for file in ("final", "label_free"):
        paths = [tmp_path / end / "checkpoints" / f"{file}.safetensors" for end in ("true", "shuffled")]
        if file == "final" or name != "source_only":  # whose one model is no choice
            assert paths[0].read_bytes() == paths[1].read_bytes()


def test_fixmatch_sees_two_views(execute, tmp_path, monkeypatch):
    seen = []
    fixmatch = ADAPTATION_METHODS["fixmatch"]
    loss = fixmatch.loss
    monkeypatch.setattr(fixmatch, "loss", lambda self, batch: seen.append(batch) or loss(self, batch))
    execute(tmp_path / "run", "fixmatch")
    assert len(seen) == 7
    for batch in seen:
        assert batch.view.tolist() == [0] * 9 + [1] * 5 and batch.is_target.tolist() == [False] * 4 + [True] * 10
        assert not torch.equal(batch.images[4:9], batch.images[9:])


def test_shot_has_labels_from_the_interval_on_that_is_named(execute, tmp_path, monkeypatch):
    """Reports after 3, 6 and 7 steps: from the second interval on is from the fourth step on."""
    seen, loss = [], ADAPTATION_METHODS["shot"].loss

    def watched(self, batch):
        value, scalars = loss(self, batch)
        seen.append((bool(batch.labelled.any()), bool(batch.labelled.all()), float(scalars["loss/labels"])))
        return value, scalars

    monkeypatch.setattr(ADAPTATION_METHODS["shot"], "loss", watched)
    execute(tmp_path / "run", "shot")
    assert seen[:3] == [(False, False, 0.0)] * 3
    assert len(seen) == 7 and all(every and value > 0 for _, every, value in seen[3:])


def test_the_stage_goes_through_the_target_evenly_over_its_reports(execute, tmp_path, monkeypatch, tiny):
    """The stream of images continues over the reports: 32 target images, 4 batches of 8, each image once."""
    drawn = []
    batches = AdaptationBatches.adaptation

    def watch(self, *arguments):
        made = batches(self, *arguments)
        drawn.append(made)
        return made

    monkeypatch.setattr(AdaptationBatches, "adaptation", watch)
    execute(tmp_path / "run", "mcc", "adaptation.steps=4", "adaptation.batch={source: 2, target: 8}")
    names = [name for step in range(4) for name in drawn[0].ids(step)[2:]]
    assert sorted(names) == sorted(set(names)) and len(names) == 32


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("dann", ["adaptation.batch.source=0"], "'dann' needs both domains in every batch"),
        ("dann", ["adaptation.batch.source=1"], "at least two source images"),
        ("mcc", ["adaptation.batch.target=40"], "40 images in a batch, but the target domain has only 32"),
        ("mcc", ["adaptation.batch.source=33"], "33 images in a batch, but the source domain has only 32"),
        (
            "mcc",
            ["adaptation.batch={source: 6, target: 4}", "runtime.accumulate=3"],
            "target: 4 images cannot",
        ),
        (
            "mcc",
            ["adaptation.batch={source: 2, target: 4}", "runtime.accumulate=2", SEPARATE],
            "parts .* of at least two images",
        ),
        ("shot", ["adaptation.batch.source=4"], "'shot' is source-free; set it to 0, not 4"),
        ("source_only", [], "0 leaves method 'source_only' without a source model"),
        ("shot", ["source.epochs=0"], "0 leaves method 'shot' without a source model"),
        (
            "self_training",
            ["source={epochs: 1, batch_size: 33}"],
            "source.batch_size: 33 images in a batch, but the source domain has only 32",
        ),
        (
            "self_training",
            ["source.epochs=1", "self_training.batch.source=33"],
            "33 images in a batch, but the source domain has only 32",
        ),
        (
            "self_training",
            ["source.epochs=1", "self_training.batch.unlabelled=33"],
            "33 images in a batch, but the target domain has",
        ),
        (
            "self_training",
            ["source.epochs=1", "self_training={batch: {mixed: 8}, forward: separate}"],
            "mixed: with .*separate BatchNorm needs two images of a domain, but a batch drawn at random may hold only",
        ),
        ("self_training", ["self_training.unlabelled_loss=mcc"], "unlabelled_loss: 'mcc' needs images"),
        ("mcd", ["runtime.accumulate=2"], "method 'mcd' updates several times per batch"),
        ("adr", ["model.dropout=0"], "'adr' compares two dropout passes"),
        ("fixmatch", ["adaptation.strong=null"], "'fixmatch' compares two views"),
        ("fixmatch", ["method_options={threshold: 0.9, portion: 0.5}"], "a threshold or a portion, not both"),
        ("fixmatch", ["method_options={threshold: null}"], "neither a threshold nor a portion"),
        ("mmd", ["method_options={exponents: []}"], "exponents: needs at least 1"),
        ("mcc", ["transforms.source={rand_augment: 9}", "transforms.kind=affine"], "rand_augment: only"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(execute, tmp_path, name, overrides, message):
    with pytest.raises(UserError, match=message):
        execute(tmp_path / "run", name, *overrides)
    assert not (tmp_path / "run").exists()


def test_options_of_another_method_are_refused_with_the_nearest(tiny):
    with pytest.raises(
        ConfigError, match=r"method_options\.generator_step: unknown key, did you mean 'generator_steps'"
    ):
        AdaptationConfig.load(tiny, ["method=mcd", "method_options={generator_step: 2}"])
    with pytest.raises(ConfigError, match=r"method_options\.selector: unknown key \(known: .*generator_steps"):
        AdaptationConfig.load(tiny, ["method=mcd", "method_options.selector=avc"])
    with pytest.raises(ConfigError, match=r"method_options\.weight: .*greater than or equal to 0"):
        AdaptationConfig.load(tiny, ["method=mcc", "method_options.weight=-1"])
    with pytest.raises(ConfigError, match=r"unknown selector 'softmx', did you mean 'softmax'"):
        AdaptationConfig.load(tiny, ["method=fixmatch", "method_options={selector: softmx}"])


def test_self_training_with_a_loss_on_unlabelled_images(tiny, tmp_path):
    config = AdaptationConfig.load(
        tiny,
        [
            f"output={tmp_path / 'run'}",
            "self_training.batch={source: 4, selected: 4, unlabelled: 6}",
            "self_training.unlabelled_loss=mcc",
        ],
    )
    assert AdaptationRun(config).execute()["rounds"]


@pytest.mark.parametrize(
    ("name", "steps", "source", "images"),
    [("mcd", 7, "4 source + ", 9), ("fixmatch", 7, "4 source + ", 14), ("shot", 11, "", 5)],
)
def test_dry_run_tells_the_plan_and_tries_out_each_stage(tiny, in_folder, capsys, name, steps, source, images):
    """SHOT has a source stage of 4 steps, and labels to prepare; FixMatch's target images come in two views."""
    assert adapt(["--cfg", str(tiny), "--dry-run", f"method={name}", *SMALL, *NEEDED[name]]) == 0
    out = capsys.readouterr().out
    assert f"adapts   7 steps of {source}5 target images, a report every 3" in out
    assert f"cost     {steps} training steps" in out
    assert re.search(
        rf"^pace     adapting [\d.]+ s per step of {images} images, \d+ % of it waiting", out, re.MULTILINE
    )
    assert ("pace     source" in out) == (name == "shot")
    assert list(in_folder.iterdir()) == []


def test_the_log_says_where_cdan_leaves_the_outer_product(tiny, capsys, monkeypatch):
    monkeypatch.setattr("uda.adaptation.methods.cdan.MOST_PRODUCTS", 1)
    for joint in ("auto", "outer"):
        assert adapt(["--cfg", str(tiny), "--dry-run", "method=cdan", *SMALL, f"method_options.joint={joint}"]) == 0
        assert ("a random map of width 1024 replaces the outer" in capsys.readouterr().out) == (joint == "auto")


def test_results_name_no_selector(execute, tmp_path):
    results = execute(tmp_path / "run", "entmin")
    assert results["selector"] is None and json.loads((tmp_path / "run/results.json").read_text())["method"] == "entmin"
