"""Leaving one domain out: what is trained on, what is found, how a run resumes, what it refuses."""

import copy
import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

from tests.adaptation.test_resume import cut
from tests.adaptation.test_run import cut_after_every_save
from tests.data.trees import make_folders
from tests.generalization.conftest import CLASSES
from tests.in_process import generalize
from tests.report.test_loggers import series
from uda.cli.main import main
from uda.core.errors import UserError
from uda.data.banks import find_domain
from uda.data.digits import ANGLES, rotated
from uda.data.domains import TargetLabels
from uda.data.images import ImageFiles
from uda.data.transforms import make_predict
from uda.evaluation.accuracy import HARDNESS_BINS
from uda.generalization import run as run_module
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import hold_out, load, names_of
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.generalization.run import GeneralizationRun
from uda.models.backbones import create_backbone
from uda.trained_run import load_run
from uda.training import engine
from uda.training.engine import seed_everything
from uda.training.stages import INITIAL_WEIGHTS


def config_of(path, *words):
    return GeneralizationConfig.load(path, words)


def execute(path, folder, *words):
    return GeneralizationRun(config_of(path, f"output={folder}", *words)).execute()


def read(folder):
    """results.json without times."""
    results = json.loads((folder / "results.json").read_text())
    rounds = [{key: value for key, value in entry.items() if key != "seconds"} for entry in results["rounds"]]
    return {**results, "seconds": 0, "rounds": rounds}


def test_a_fifth_of_every_class_is_held_out_the_same_for_the_same_seed():
    labels = np.repeat([0, 1, 2, 3], [10, 5, 2, 1])
    training, validation = hold_out(labels, 0.2, 3)
    assert sorted([*training, *validation]) == list(range(18))
    assert np.bincount(labels[validation], minlength=4).tolist() == [2, 1, 1, 0], "a class of one is trained on"
    again, other = hold_out(labels, 0.2, 3), hold_out(labels, 0.2, 4)
    assert (again[1] == validation).all() and not np.array_equal(other[1], validation)


def test_what_is_held_out_of_a_domain_does_not_hang_on_which_one_is_unseen(tiny):
    held_out = []
    for unseen in (0, 2):
        domains = load(config_of(tiny, f"target={names_of(config_of(tiny))[unseen]}"), lambda line: None)
        held_out += [seen.validation for seen in domains.seen if seen.name.endswith("photos")]
    assert len(held_out) == 2 and np.array_equal(*held_out)


def test_the_unseen_domain_and_what_is_held_out_are_never_trained_on(tiny, tmp_path, monkeypatch):
    """Every batch has its images of each seen domain, in order; their names tell where they come from."""
    run = GeneralizationRun(config_of(tiny, f"output={tmp_path / 'run'}", "training.steps=40"))
    batches = run.batches.training(0, 40)
    for number, seen in enumerate(run.domains.seen):
        allowed = {seen.domain.images.ids[i] for i in seen.training}
        drawn = {name for step in range(40) for name in batches.ids(step)[4 * number : 4 * number + 4]}
        assert drawn == allowed and len(allowed) == 24
        _, images, labels = run.batches.evaluation_images(number)
        assert not allowed & set(images.ids) and len(images) == len(labels.reveal()) == 8
    for batch in batches.window(0, 3):
        assert batch.domain.tolist() == [0] * 4 + [1] * 4 and batch.labels.sum(1).tolist() == [1.0] * 8
        assert not batch.is_target.any()


def test_what_stands_before_the_last_stage_is_no_choice(tiny, tmp_path, monkeypatch):
    """The first stage's model is better by all figures, but it is not the method's; the second stage's best is."""
    held, unseen, index = [0.9, 0.8, 0.7, 0.6], [0.9, 0.9, 0.2, 0.3], []
    evaluate = GeneralizationRun.evaluate

    def found(run):
        number = len(index)
        index.append(number)
        return [
            replace(found, accuracy=replace(found.accuracy, overall=values[number]))
            for found, values in zip(evaluate(run), (held, held, unseen), strict=True)
        ]

    monkeypatch.setattr(GeneralizationRun, "evaluate", found)
    words = ("method=metareg", "training={steps: 8, evaluate_every: 2, batch_size: 4}")
    run = GeneralizationRun(config_of(tiny, f"output={tmp_path / 'run'}", *words))
    saved, save = [], run.save_weights
    monkeypatch.setattr(run, "save_weights", lambda name: saved.append((name, len(index) - 1)) or save(name))
    results = run.execute()
    assert [entry["stage"] for entry in results["rounds"]] == [0, 0, 1, 1]
    assert results["validation_choice"]["round"] == 2 and results["oracle_best"]["round"] == 3
    assert saved == [("validation", 2), ("final", 3)]


def test_last_validation_and_oracle_stand_under_their_own_names(tiny, tmp_path):
    results = execute(tiny, tmp_path / "run")
    rounds = results["rounds"]
    assert [(entry["round"], entry["steps"]) for entry in rounds] == [(0, 3), (1, 6), (2, 7)]
    assert results["final"]["overall"] == rounds[-1]["overall"] and results["steps"] == 7
    held = [entry["validation"] for entry in rounds]
    assert results["validation_choice"]["round"] == held.index(max(held))
    unseen = [entry["overall"] for entry in rounds]
    assert results["oracle_best"]["overall"] == max(unseen)
    record = json.loads((tmp_path / "run/rounds/00/report.json").read_text())
    seen = [found["accuracy"]["overall"] for found in record["seen"].values()]
    assert record["validation"] == pytest.approx(sum(seen) / 2) and len(record["seen"]) == 2
    assert sum(record["hardness"]["histogram"]) == 32 and len(record["hardness"]["histogram"]) == HARDNESS_BINS
    assert all(sum(found["hardness"]["histogram"]) == 8 for found in record["seen"].values())
    weights = {path.name for path in (tmp_path / "run/checkpoints").glob("*.safetensors")}
    assert weights == {"final.safetensors", "validation.safetensors"}


@pytest.mark.parametrize(
    "extra", [[], ["data.features={bank}"], ["model.loss=avh"], ["training.ema.decay=0.9"]], ids=" ".join
)
def test_a_run_that_dies_after_every_step_comes_to_the_same_end(tiny, bank, tmp_path, monkeypatch, extra):
    extra = [word.format(bank=bank) for word in extra]
    execute(tiny, tmp_path / "whole", *extra)
    folder = tmp_path / "cut"
    assert cut_after_every_save(monkeypatch, folder, lambda: execute(tiny, folder, *extra)) > 7
    assert read(folder) == read(tmp_path / "whole")
    for name in ("checkpoints/final.safetensors", "predictions.csv"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("extra", [[], ["data.features={bank}"], ["model.loss=avh"]], ids=" ".join)
def test_a_finished_run_has_its_predictions_of_the_unseen_domain(tiny, bank, tmp_path, monkeypatch, extra):
    """Their accuracy is that of the last report. A run that was cut after the last one predicts once more."""
    extra = [word.format(bank=bank) for word in extra]
    results = execute(tiny, tmp_path / "run", *extra)
    with (tmp_path / "run" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 32 and rows[0]["path"] == "ant/ant_0.jpg"
    right = [row["prediction"] == row["path"].split("/")[0] for row in rows]
    assert sum(right) / 32 == results["final"]["overall"]
    found = load_run(tmp_path / "run").predict(f"{tiny.parent}/clay")
    assert [row["path"] for row in rows] == found.ids
    assert [row["prediction"] for row in rows] == found.class_names
    with monkeypatch.context() as patch:
        patch.setattr(GeneralizationRun, "save_weights", lambda self, name: 1 / (name != "final"))
        with pytest.raises(ZeroDivisionError):
            execute(tiny, tmp_path / "cut", *extra)
    execute(tiny, tmp_path / "cut", *extra)
    assert (tmp_path / "cut/predictions.csv").read_bytes() == (tmp_path / "run/predictions.csv").read_bytes()


@pytest.mark.parametrize("method", ["mldg", "metareg"])
def test_event_files_of_a_run_that_dies_after_every_step_are_whole(tiny, tmp_path, monkeypatch, method, starts_apart):
    """One stage and two; points of training stand on the axis of the whole run."""
    monkeypatch.setattr(engine, "CHECK_EVERY", 2)
    words = [f"method={method}", "report.loggers=[tensorboard]"]
    execute(tiny, tmp_path / "whole", *words)
    cut_after_every_save(monkeypatch, tmp_path / "cut", lambda: execute(tiny, tmp_path / "cut", *words))
    whole, cut = (
        {
            axis: {tag: found for tag, found in series(tmp_path / end / axis).items() if not tag.startswith("time/")}
            for axis in ("tb", "tb/training")
        }
        for end in ("whole", "cut")
    )
    assert cut == whole
    steps = [step for step, _ in whole["tb/training"]["training/loss"]]
    assert steps == {"mldg": [2, 3, 5, 6, 7], "metareg": [2, 3, 4, 6, 7]}[method]
    assert {"validation/mean", "final/validation", "z_oracle/final", "z_oracle/overall"} <= whole["tb"].keys()


@pytest.mark.parametrize("file", ["rounds/01/report.json", "rounds/02/report.json", "results.json"])
def test_what_is_lost_of_a_finished_run_is_made_anew(tiny, tmp_path, capsys, file):
    """Three reports, whose held-out choice is among them all; a gap used to end the list."""
    folder = tmp_path / "run"
    execute(tiny, folder)
    before = {name: (folder / name).read_bytes() for name in ("results.json", "rounds/01/report.json", file)}
    (folder / file).write_text("{")
    capsys.readouterr()
    assert execute(tiny, folder)["steps"] == 7
    assert f"warning: {folder / file} is broken" in capsys.readouterr().out
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert execute(tiny, folder) is None
    out = capsys.readouterr().out
    assert "is finished" in out and "validation choice" in out and "report.html" not in out


def test_labels_that_changed_are_refused(tiny, tmp_path, monkeypatch):
    """Of a seen domain how many is said; of the unseen one, that they did."""
    folder = tmp_path / "run"
    cut(monkeypatch, lambda: execute(tiny, folder), saves=1)
    loaded = load(config_of(tiny), lambda line: None)
    first = loaded.seen[0]
    labels = first.domain.labels.copy()
    labels[[0, 5]] = (labels[[0, 5]] + 1) % 4
    other = replace(first, domain=replace(first.domain, labels=labels))
    changed = [
        (replace(loaded, seen=(other, *loaded.seen[1:])), f"labels: 2 of 32 {first.name} labels changed"),
        (replace(loaded, unseen_labels=TargetLabels(labels)), f"labels: the {loaded.name} labels are not the ones"),
    ]
    for domains, message in changed:
        monkeypatch.setattr(run_module, "load", lambda *_, domains=domains: domains)
        with pytest.raises(UserError, match=message):
            GeneralizationRun(config_of(tiny, f"output={folder}"))


def test_a_run_on_a_bank_is_one_on_the_features_of_its_backbone(tiny, bank, tmp_path, monkeypatch):
    """No image is read. One step of plain SGD on the head by hand, from features of a backbone of the bank's seed."""
    plain = "training.optim={lr: 0.1, momentum: 0, nesterov: false, weight_decay: 0, schedule: constant}"
    config = config_of(tiny, f"output={tmp_path / 'run'}", f"data.features={bank}", "training.steps=1", plain)
    seed_everything(INITIAL_WEIGHTS, config.seed)
    backbone, transform = create_backbone("digits_cnn", "none", 3)[0].eval(), make_predict(config.transforms)
    expected = {}
    for number, seen in enumerate(load(config_of(tiny), lambda line: None).seen):
        for place, name in enumerate(seen.domain.images.ids):
            with torch.inference_mode():
                expected[number, name] = backbone(transform([seen.domain.images.read(place)], [0]))[0]
    monkeypatch.setattr(ImageFiles, "read", lambda *_: pytest.fail("an image is read"))
    run = GeneralizationRun(config)
    network, batches = copy.deepcopy(run.engine.network), run.batches.training(0, 1)
    (batch,) = batches.window(0, 1)
    assert batch.images.shape == (8, 128, 1, 1)
    for place, name in enumerate(batches.ids(0)):
        assert torch.allclose(batch.images[place, :, 0, 0], expected[place // 4, name], atol=1e-5)
    network.train()
    F.cross_entropy(network(batch.images).logits, batch.labels).backward()
    run.execute()
    trained = dict(run.engine.network.named_parameters())
    assert trained and not any(name.startswith("backbone") for name in trained)
    for name, parameter in network.named_parameters():
        assert torch.allclose(trained[name], parameter - 0.1 * parameter.grad, atol=1e-6), name


def test_a_bank_has_the_same_images_held_out_as_its_images(tiny, bank):
    images, features = (load(config_of(tiny, *words), lambda line: None) for words in ([], [f"data.features={bank}"]))
    assert images.classes == features.classes and len(features.unseen.images) == 32
    for one, other in zip(images.seen, features.seen, strict=True):
        assert np.array_equal(one.validation, other.validation) and one.domain.images.ids == other.domain.images.ids


def test_every_domain_of_a_bank_is_left_out_in_turn_and_summarised(tiny, bank, in_folder):
    """A dry run writes nothing. The summary has each domain's result, and names the features."""
    words = ["--cfg", str(tiny), f"data.features={bank}", "target=null", "output=runs/{target}", "report.page=true"]
    words += ["training.steps=60", "training.evaluate_every=60", "model.head_batch_norm=true", "report.map=none"]
    assert main(["generalize", *words, "--dry-run"]) == 0 and not (in_folder / "runs").exists()
    assert main(["generalize", *words]) == 0
    (summary,) = in_folder.glob("runs/summary_seed0.json")
    (row,) = json.loads(summary.read_text())["rows"]
    results = [json.loads(file.read_text()) for file in sorted(in_folder.glob("runs/*/results.json"))]
    assert len(results) == 3 and max(found["final"]["overall"] for found in results) > 0.25
    assert row["final"]["average"] == pytest.approx(np.mean([found["final"]["overall"] for found in results]))
    assert "features of digits_cnn (bank), head 16" in summary.with_suffix(".html").read_text()


def test_the_plan_of_a_run_on_a_bank_names_its_features(tiny, bank, tmp_path):
    run = GeneralizationRun(config_of(tiny, f"output={tmp_path / 'a'}", f"data.features={bank}"))
    (line,) = (line for line in run.plan().splitlines() if line.startswith("network"))
    assert line.startswith("network  features of digits_cnn (") and ", features 16, 2,132 parameters trained, " in line
    assert "steps" in run.cost() and not (tmp_path / "a").exists()


def test_a_run_does_not_resume_on_features_that_changed(tiny, bank, tmp_path, monkeypatch):
    """Made of the same images by the same network, but with another number in one place."""
    copied = tmp_path / "bank"
    shutil.copytree(bank, copied)
    words = [f"data.features={copied}"]
    cut(monkeypatch, lambda: execute(tiny, tmp_path / "run", *words), saves=2)
    file = copied / "photos.safetensors"
    content = file.read_bytes()
    file.write_bytes(content.replace(find_domain(bank, "photos").checksum.encode(), b"0" * 64))
    with pytest.raises(UserError, match=r"features: those of the .*photos images have changed"):
        execute(tiny, tmp_path / "run", *words)
    file.write_bytes(content)
    assert execute(tiny, tmp_path / "run", *words)["steps"] == 7


def test_a_bank_of_another_backbone_or_transform_is_refused(tiny, bank, tmp_path):
    for words, message in (
        (["model.backbone=cnn9"], r"model\.backbone=digits_cnn, but the config has cnn9"),
        (["transforms.size=16"], r"transforms\.size=24, but the config has 16"),
        ([f"data.domains=[{tiny.parent}/drawn, {tiny.parent}/photo]", f"target={tiny.parent}/drawn"], "'photos'"),
        (["method=feature_critic", "model.head=null"], r"set model\.head, or train on images \(data\.features=null\)"),
    ):
        with pytest.raises(UserError, match=message):
            GeneralizationRun(config_of(tiny, f"output={tmp_path / 'run'}", f"data.features={bank}", *words))


def test_a_saved_run_of_an_older_version_that_trained_on_features_is_named(tiny, tmp_path):
    """One that trained on images had the same key, at its default, and stays readable."""
    config = config_of(tiny, f"output={tmp_path / 'run'}")
    saved = yaml.safe_load(config.to_yaml())
    for value in (False, True):
        saved["training"]["frozen_backbone"] = value
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
        if not value:
            assert GeneralizationConfig.load(tmp_path / "config.yaml", saved=True) == config
    (tmp_path / "run").mkdir()
    (tmp_path / "config.yaml").rename(tmp_path / "run/config.yaml")
    with pytest.raises(UserError, match=r"training\.frozen_backbone: the run is of an older version of uda; make a"):
        load_run(tmp_path / "run")
    with pytest.raises(UserError, match="of an older version of uda"):
        GeneralizationRun(config)


def test_rotated_digits_are_divided_and_turned():
    """Six domains without a digit in common; 0 degrees are the digits themselves, 30 a quarter of 120."""
    domains = {angle: rotated(angle) for angle in ANGLES}
    names = [name.partition("/")[2] for images, _ in domains.values() for name in images.ids]
    assert len(names) == len(set(names)) == 5000
    for images, labels in domains.values():
        assert np.bincount(labels).min() >= 83 and len(images) == len(labels)
    # a digit's mass keeps its distance from the centre, and its direction turns anticlockwise
    from uda.data.digits import mnist

    plain = mnist()[0]
    for angle in (30, 75):
        images, _ = domains[angle]
        ys, xs = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
        turned = []
        for i in range(40):
            before = plain.read(int(images.ids[i].rpartition("/")[2]))[0].float()
            after = images.read(i)[0].float()
            moment = [
                torch.complex((image * xs * xs - image * ys * ys).sum(), -(2 * image * xs * ys).sum())
                for image in (before, after)
            ]
            turned.append(torch.angle(moment[1] / moment[0]) / 2)
        mean = torch.angle(torch.exp(2j * torch.stack(turned)).mean()) / 2
        assert mean == pytest.approx(np.radians(angle if angle < 90 else angle - 180), abs=0.1)


def test_a_domain_with_an_image_a_class_cannot_be_held_out_of(tiny, tmp_path):
    make_folders(tmp_path / "single", list(CLASSES), per_class=1)
    config = config_of(tiny)
    domains = f"data.domains=[{','.join([*config.data.domains[:2], str(tmp_path / 'single')])}]"
    with pytest.raises(UserError, match=r"no class of .*single has two images, so none can be held out"):
        execute(tiny, tmp_path / "run", domains, f"target={config.data.domains[0]}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["target=cley"], r"target: 'cley' is not a domain"),
        (["target=clay"], r"is not a domain, did you mean '.*/clay'"),
        (
            ["data.domains=[drawn, photos, drawn]", "target=drawn"],
            "drawn is named twice; the unseen domain must not be trained on",
        ),
        (["data.domains=[drawn]", "target=drawn"], "because one is left out; got 1"),
        (["data.domains=[]"], "because one is left out; got 0"),
        (["training.batch_size=30"], r"training\.batch_size: a batch has 30 images of each domain, but .* has only 24"),
        (["method=ermm"], "unknown method 'ermm', did you mean 'erm'"),
        (["transforms.source.flip=true"], r"transforms\.source: unknown key \(known: kind, mean"),  # augment.flip
        (["training.batchsize=3"], r"training\.batchsize: unknown key, did you mean 'batch_size'"),
    ],
)
def test_mistakes_are_named(tiny, tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        GeneralizationRun(config_of(tiny, f"output={tmp_path / 'run'}", *words))
    assert not (tmp_path / "run").exists()


def test_a_class_that_a_domain_lacks_is_named(tmp_path, tiny):
    make_folders(tmp_path / "drawn", CLASSES, per_class=3)
    make_folders(tmp_path / "clay", CLASSES[:3], per_class=3)
    pair = f"data.domains=[{tmp_path / 'drawn'}, {tmp_path / 'clay'}]"
    for unseen in ("drawn", "clay"):
        with pytest.raises(UserError, match=r"classes of .*/drawn that are not in .*/clay: dog"):
            load(config_of(tiny, pair, f"target={tmp_path / unseen}"))


def test_two_domains_that_share_images_are_refused(tmp_path, tiny):
    make_folders(tmp_path / "drawn", CLASSES, per_class=3)
    (tmp_path / "again").symlink_to(tmp_path / "drawn")
    with pytest.raises(UserError, match="share 12 images"):
        load(
            config_of(
                tiny, f"data.domains=[{tmp_path / 'drawn'}, {tmp_path / 'again'}]", f"target={tmp_path / 'drawn'}"
            )
        )


def test_the_command_leaves_each_domain_out_in_turn(tiny, tmp_path, capsys):
    words = ["--cfg", str(tiny), "target=null", f"output={tmp_path}/{{target}}", "training.steps=2"]
    assert generalize(words) == 0
    assert len(list(tmp_path.glob("*/results.json"))) == 3
    capsys.readouterr()
    assert generalize(words) == 0 and capsys.readouterr().out.count("is finished") == 3
    assert generalize([*words, "target=nowhere"]) == 2 and "is not a domain" in capsys.readouterr().err


def test_every_method_is_listed_with_a_line():
    assert all(text for _, text in GENERALIZATION_METHODS.describe()) and "erm" in GENERALIZATION_METHODS
