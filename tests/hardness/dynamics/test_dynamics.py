"""Trainings whose every epoch is scored: what they leave, how they resume, and what is made of it."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch

from tests.adaptation.test_run import cut_after_every_save
from tests.forked import forked_job
from tests.hardness.conftest import undrawn
from tests.in_process import hardness
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT
from uda.core.statistics import fisher_interval, fisher_p
from uda.data.transforms import make_predict
from uda.hardness.dynamics.config import SupervisedConfig
from uda.hardness.dynamics.dynamics import (
    Groups,
    History,
    correlation_rows,
    find_human,
    group_rows,
    load_history,
    norm_rows,
    pair_rows,
    plateau_epoch,
    plateau_rows,
)
from uda.hardness.dynamics.dynamics_figures import correlations_figure, groups_figure, models_figure, plateaus_figure
from uda.hardness.dynamics.records import read_epoch_scores
from uda.hardness.dynamics.run import SupervisedRun
from uda.hardness.scoring.classifier import load_classifier
from uda.hardness.scoring.images import engine_for, load_images
from uda.hardness.scoring.score_table import read_scores
from uda.hardness.scoring.scores import compute_scores
from uda.report.figures import look_of
from uda.training import pace
from uda.training.settings import RuntimeSettings


def execute(path, folder, *words):
    return SupervisedRun(SupervisedConfig.load(path, [f"output={folder}", *words])).execute()


@pytest.fixture(scope="module")
def finished(labelled, tmp_path_factory):
    """A whole run."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    execute(labelled, folder)
    return folder


def without_times(folder):
    results = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in results.items() if key != "seconds"}


def test_every_epoch_is_scored_as_the_network_then_is(labelled, finished):
    """Epoch 0 is the untrained network; the last one is the network that was saved, and scores.csv."""
    results = without_times(finished)
    assert [entry["epoch"] for entry in results["epochs"]] == [0, 1, 2, 3] and results["steps"] == 9
    assert results["epochs"][0]["train_loss"] is None and results["epochs"][3]["train_loss"] > 0
    classifier = load_classifier(str(finished))
    data = load_images(str(labelled.parent / "test"))
    engine = engine_for(classifier, RuntimeSettings(device="cpu"), None)
    prediction = engine.predict_images(data.images, make_predict(classifier.transforms))
    table = read_scores(finished / "scores.csv")
    assert table.ids == tuple(data.images.ids)
    for name, values in compute_scores(prediction, data.labels).items():
        assert table.scores[name].tolist() == pytest.approx(values.tolist(), rel=1e-5), name
        of_epochs = read_epoch_scores(finished, name)
        assert of_epochs[3].tolist() == table.scores[name].tolist() and of_epochs.shape == (4, 30)
        assert not np.array_equal(of_epochs[0], of_epochs[3])
        means = [entry["scores"][name] for entry in results["epochs"]]
        assert means == pytest.approx(of_epochs.mean(1).tolist())
    assert read_epoch_scores(finished, "right").mean(1).tolist() == [e["overall"] for e in results["epochs"]]


def test_a_run_that_dies_after_every_save_comes_to_the_same_end(labelled, finished, tmp_path, monkeypatch):
    folder = tmp_path / "cut"
    assert cut_after_every_save(monkeypatch, folder, lambda: execute(labelled, folder)) > 6
    assert without_times(folder) == without_times(finished)
    for name in ("scores.csv", "checkpoints/final.safetensors", "epochs/02.npz"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_a_teacher_is_scored_if_the_config_says_so(labelled, finished, tmp_path):
    """Before the first epoch it is the network."""
    execute(labelled, tmp_path / "taught", "training.ema.decay=0.9")
    taught, plain = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "taught", finished))
    assert taught["epochs"][0] == plain["epochs"][0]
    assert read_epoch_scores(tmp_path / "taught", "avh")[1:].tolist() != read_epoch_scores(finished, "avh")[1:].tolist()


@pytest.mark.parametrize("file", ["epochs/01.json", "epochs/03.json", "results.json"])
def test_what_is_lost_of_a_finished_run_is_made_anew(labelled, finished, tmp_path, capsys, file):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / file).unlink() if file != "results.json" else (folder / file).write_text("{")
    with pytest.raises(UserError, match=f"{file} is .*run `uda hardness dynamics` again to write it"):
        load_history(folder, "run")
    assert execute(labelled, folder)["steps"] == 9
    assert f"warning: {folder / file} is " in capsys.readouterr().out
    for name in ("results.json", "epochs/01.json", "epochs/03.json"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    assert execute(labelled, folder) is None
    out = capsys.readouterr().out
    assert "is finished" in out and "test accuracy" in out and "scores.csv" in out


@pytest.mark.parametrize("content", [None, b"PK"])
def test_scores_of_an_epoch_that_are_lost_are_named(finished, tmp_path, content):
    """Without the second of four, the last would stand in its place."""
    folder = shutil.copytree(finished, tmp_path / "run")
    file = folder / "epochs/01.npz"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError, match=r"epochs/01\.npz is missing or broken; delete .*run to train again"):
        load_history(folder, "run")


def test_two_processes_score_what_one_does_with_the_same_batches(labelled, tmp_path):
    """Up to rounding; with as many threads each, for nine steps of training make rounding larger."""
    words = [CHECKOUT / "tools" / "hardness.py", "dynamics", "--cfg", labelled, "--out", tmp_path / "page"]
    codes, output = forked_job(2, *words, f"output={tmp_path}/two")
    assert codes == [0, 0] and output.count("page: ") == 1, output
    threads = torch.get_num_threads()
    execute(labelled, tmp_path / "one", "runtime.accumulate=2", "runtime.threads=1")
    torch.set_num_threads(threads)
    ours, theirs = (read_scores(tmp_path / name / "scores.csv") for name in ("two", "one"))
    assert ours.ids == theirs.ids and ours.predicted == theirs.predicted
    for name, values in ours.scores.items():
        assert values.tolist() == pytest.approx(theirs.scores[name].tolist(), rel=1e-4, abs=1e-6), name


def test_test_images_are_none_of_those_that_are_trained_on(labelled, tmp_path):
    with pytest.raises(UserError, match="share 24 images"):
        execute(labelled, tmp_path / "run", f"data.test={labelled.parent}/test/../train")
    with pytest.raises(UserError, match=r"^data\.test: no such folder: nowhere; give"):
        execute(labelled, tmp_path / "run", "data.test=nowhere")
    with pytest.raises(UserError, match="train and test are both"):
        execute(labelled, tmp_path / "run", f"data.test={labelled.parent}/train")


def test_it_needs_images_and_no_features(labelled, tmp_path):
    with pytest.raises(UserError, match=r"data\.features: this training needs images, .*; set it to null"):
        execute(labelled, tmp_path / "run", f"data.features={tmp_path}")


def test_what_people_say_is_checked_before_the_training(labelled, tmp_path):
    root = labelled.parent
    lines = (root / "human.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:-2]))
    names = [line.split(",")[0] for line in lines[1:]]
    votes = [f"{name},ant,4,3,2" for name in names]
    (tmp_path / "votes.csv").write_text("\n".join(["image,true_class,human_ant,human_bee,human_cat", *votes]))
    for words, message in (
        (["human.file=none.csv"], "^human.file: no such file: none.csv"),
        ([f"human.file={tmp_path}/few.csv"], "2 of 30 images of the test images are not in the human file"),
        ([f"human.file={tmp_path}/few.csv"], "human.allow_missing=true uses only images that are in both"),
        ([f"human.file={tmp_path}/few.csv", "human.frequency_column=freq"], "no column 'freq', did you mean"),
        (
            [f"human.file={tmp_path}/votes.csv", "human.format=cifar10h", "human.id_column=image"],
            "human.id_column and human.frequency_column are for human.format csv, not for 'cifar10h'",
        ),
        ([f"human.file={tmp_path}/votes.csv", "human.format=cifar10h"], "20 of 30 images have another class"),
        (["human.bins=[0.5,1]"], "frequencies are outside"),
        (["human.bins=[0,0.05,1]"], r"a bin needs at least 10 test images, but \[0, 0.05\] has 0"),
    ):
        with pytest.raises(UserError, match=message):
            execute(labelled, tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


def test_other_groups_need_no_other_training(labelled, finished):
    words = [f"output={finished}", "human.bins=[0,0.3,1]"]
    assert SupervisedRun(SupervisedConfig.load(labelled, words)).finished


@pytest.mark.parametrize("name", ["vgg", "resnet", "densenet", "wide"])
def test_configs_of_cifar10_are_valid_and_of_different_networks(name):
    config = SupervisedConfig.load(f"cifar10_{name}", [])
    assert config.data.dataset == "cifar10" and config.model.backbone.startswith(name)
    assert (CHECKOUT / "configs" / f"cifar10_{name}.yaml").read_text().startswith("# CIFAR-10")
    assert config.human.bins == (0, 0.2, 0.4, 0.6, 0.8, 1)


def test_groups_are_closed_above_and_the_first_one_below():
    groups = Groups.by_frequency(np.array([0, 0.2, 0.21, 0.4, 1.0]), (0, 0.2, 0.4, 1))
    assert groups.names == ("[0, 0.2]", "(0.2, 0.4]", "(0.4, 1]")
    assert groups.members.tolist() == [0, 0, 1, 1, 2] and groups.sizes().tolist() == [2, 2, 1]
    with pytest.raises(UserError, match=r"1 frequencies are outside \[0.1, 1\]"):
        Groups.by_frequency(np.array([0.05, 0.5]), (0.1, 1))


def test_images_that_people_have_not_seen_are_in_no_group_and_no_correlation():
    frequency = np.array([0.1, math.nan, 0.9, 0.8, 0.7])
    groups = Groups.by_frequency(frequency, (0, 0.5, 1))
    assert groups.members.tolist() == [0, -1, 1, 1, 1] and groups.sizes().tolist() == [1, 3]
    values = np.array([[0.1, 5, 0.9, 0.8, 0.7]])
    rows = correlation_rows(history(avh=values, confidence=values, norm=values), frequency)
    assert [row["rho"] for row in rows] == pytest.approx([-1, 1, 1])
    images = {row["group"]: row["images"] for row in group_rows(history(avh=values), groups)}
    assert images == {"[0, 0.5]": 1, "(0.5, 1]": 3, "all": 5}


def test_a_human_file_may_lie_in_the_folder_of_ones_own_images(labelled, tmp_path):
    words = [f"data.root={labelled.parent}", "data.train=train", "data.test=test", "human.file=human.csv"]
    assert find_human(SupervisedConfig.load(labelled, words)) == labelled.parent / "human.csv"


@pytest.mark.parametrize(
    ("curve", "epoch"),
    [
        ([10, 5, 1, 0.4, 0], 2 + 0.5 / 0.6),  # 5 % of 10 is 0.5, between 1 and 0.4
        ([0, 9.4, 9.6, 10], 1 + 0.1 / 0.2),  # rising: 9.5
        ([0, 10, 12, 10, 10], 2 + 1.5 / 2),  # beyond the end, then back: 10.5
        ([0, 0, 0, 10], 2 + 9.5 / 10),
        ([3, 3, 3], 0),  # nothing moves
        ([10, 0.2, 0, 0.8, 0], 3 + 0.3 / 0.8),  # leaves once more
        ([10, 2, -0.2, 0], 1 + 1.5 / 2.2),  # through the end to the other side
        ([5, 10, 5.4, 5, 4], 3 + 0.95 / 1),  # the way is from 5 to 4, not from the farthest
    ],
)
def test_plateau_epoch_by_hand(curve, epoch):
    assert plateau_epoch(np.array(curve, dtype=float), 0.05) == pytest.approx(epoch)
    assert plateau_epoch(np.array([curve, curve], dtype=float), 0.05).tolist() == pytest.approx([epoch, epoch])


def test_a_larger_share_is_reached_earlier():
    curve = np.array([10.0, 5, 1, 0.4, 0])
    assert [float(plateau_epoch(curve, share)) for share in (0.02, 0.05, 0.1)] == pytest.approx([3.5, 2 + 0.5 / 0.6, 2])


def history(name="net", **values):
    first = next(iter(values.values()))
    filled = {key: np.zeros_like(first) for key in ("avh", "loss", "accuracy", "confidence", "norm")} | values
    return History(name, tuple(map(str, range(first.shape[1]))), filled, 4, [{}] * len(first))


def test_group_means_and_their_intervals_by_hand():
    """AVH .1 and .3 in the hard group, K = 4: mean .8; deviation of .4, 1.2 is .5657, over sqrt 2: .4.

    Student's t of 1 degree of freedom is 12.7062. Wilson's interval of 0 of 2 is 0 to 3.8415 / 5.8415.
    """
    found = group_rows(
        history(avh=np.array([[0.1, 0.3, 0.2]])), Groups.by_frequency(np.array([0.1, 0.2, 0.9]), (0, 0.5, 1))
    )
    right = {row["group"]: row for row in found if row["quantity"] == "accuracy"}
    assert (right["[0, 0.5]"]["low"], right["[0, 0.5]"]["high"]) == pytest.approx((0, 65.762), abs=1e-3)
    rows = {row["group"]: row for row in found if row["quantity"] == "avh"}
    assert rows["[0, 0.5]"]["mean"] == pytest.approx(0.8) and rows["[0, 0.5]"]["images"] == 2
    assert rows["[0, 0.5]"]["low"] == pytest.approx(0.8 - 12.7062 * 0.4, abs=1e-4)
    assert rows["[0, 0.5]"]["high"] == pytest.approx(0.8 + 12.7062 * 0.4, abs=1e-4)
    assert rows["(0.5, 1]"]["mean"] == pytest.approx(0.8) and rows["(0.5, 1]"]["low"] is None
    assert rows["all"]["mean"] == pytest.approx(0.8) and rows["all"]["images"] == 3


def test_plateaus_of_alike_images_have_no_spread():
    """Every image alike. 5 % short of the end: AVH after .95 epochs, loss after 1.9, accuracy after 2.9."""
    one = np.ones((1, 5))
    found = plateau_rows(
        history(
            avh=np.array([[4.0], [0], [0], [0]]) * one,
            loss=np.array([[4.0], [2], [0], [0]]) * one,
            accuracy=np.array([[0.0], [0], [0.5], [1]]) * one,
        ),
        draws=20,
    )
    keys = ("plateau epoch", "low", "high", "after AVH by", "after AVH, low", "after AVH, high")
    by_hand = {2: [(0.98, 0), (1.96, 0.98), (2.96, 1.98)], 5: [(0.95, 0), (1.9, 0.95), (2.9, 1.95)]}
    by_hand[10] = [(0.9, 0), (1.8, 0.9), (2.8, 1.9)]
    assert [row["near, %"] for row in found] == [near for near in by_hand for _ in range(3)]
    for row, (epoch, later) in zip(found, [pair for pairs in by_hand.values() for pair in pairs], strict=True):
        assert [row[key] for key in keys] == pytest.approx([epoch] * 3 + [later] * 3)
        assert row["epochs"] == 3


def test_plateaus_are_compared_on_the_same_draws_of_images():
    """AVH and loss of an image are one: the plateau epoch varies with the images drawn, their difference never."""
    curves = np.random.default_rng(0).random((5, 12)).cumsum(0)
    found = plateau_rows(history(avh=curves, loss=2 * curves, accuracy=curves[:, ::-1]), draws=200)
    avh, loss, accuracy = (row for row in found if row["near, %"] == 5)
    assert avh["high"] - avh["low"] > 0.01 and loss["low"] == pytest.approx(avh["low"])
    assert loss["after AVH, low"] == pytest.approx(0) == loss["after AVH, high"]
    assert accuracy["after AVH, high"] - accuracy["after AVH, low"] > 0.01


def test_pairs_are_ordered_by_accuracy_and_paired_by_image():
    """Accuracy 1 1 1 0 and 1 0 0 0: differences 0 1 1 0, mean 50 points; AVH .1 lower on every image: no spread."""
    one = history("one", accuracy=np.array([[1.0, 0, 0, 0]]), avh=np.array([[0.3, 0.4, 0.5, 0.6]]))
    two = history("two", accuracy=np.array([[1.0, 1, 1, 0]]), avh=np.array([[0.2, 0.3, 0.4, 0.5]]))
    (row,) = pair_rows([one, two])
    assert (row["better"], row["run"]) == ("two", "one")
    assert row["accuracy"] == pytest.approx(50) and row["accuracy_error"] == pytest.approx(100 * (1 / 3) ** 0.5 / 2)
    assert row["avh"] == pytest.approx(-0.4) and row["avh_error"] == pytest.approx(0)


def test_the_norms_change_is_that_of_two_halves_of_the_training():
    """Five epochs: from 1 to 3 and from 3 to 5, means 2, 4, 3 of two images; the untrained network is left out."""
    norms = np.array([[9.0, 9], [1, 3], [0, 0], [3, 5], [0, 0], [3, 3]])
    first, second = norm_rows(history(norm=norms))
    assert (first["first"], first["last"], second["last"]) == (1, 3, 5)
    assert (first["from"], first["to"], second["to"]) == (2, 4, 3)
    assert (first["change"], first["error"]) == pytest.approx((2, 0)), "both images grow by 2"
    assert (second["change"], second["error"]) == pytest.approx((-1, 1)), "0 and -2: deviation 1.414, over sqrt 2"


def test_correlations_are_turned_so_that_the_papers_sign_is_positive():
    """People know the images better the smaller AVH is: rho of AVH is -1, said as 1; constant epochs are left out."""
    frequency = np.linspace(0.1, 1, 30)
    values = np.stack([np.full(30, 0.5), -frequency])
    rows = correlation_rows(history(avh=values, confidence=-values, norm=values), frequency)
    found = {(row["score"], row["epoch"]): row["rho"] for row in rows}
    assert found == pytest.approx({("avh", 1): 1.0, ("confidence", 1): 1.0, ("norm", 1): -1.0})


def test_the_p_of_a_correlation_is_that_of_its_interval():
    """Where p is .05 the interval of 95 % ends at 0: rho = tanh(1.96 sqrt((1 + rho^2 / 2) / (n - 3)))."""
    generator = np.random.default_rng(3)
    frequency = generator.random(50)
    values = np.stack([generator.random(50) - share * frequency for share in (0.2, 0.6, 0.9, 2)])
    rows = correlation_rows(history(avh=values), frequency)
    rows = [row for row in rows if row["score"] == "avh"]
    assert [row["p"] < 0.05 for row in rows] == [row["low"] > 0 for row in rows] == [False, True, True, True]
    assert fisher_p(0.275103, 53) == pytest.approx(0.05, abs=1e-4) and fisher_p(1.0, 20) == 0
    assert fisher_interval(0.275103, 53)[0] == pytest.approx(0, abs=1e-4)


def lines_of(axes):
    return {line.get_label(): np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()}


def test_runs_look_different_however_many_they_are():
    looks = [look_of(number) for number in range(49)]
    assert all(looks.count(look) == 1 for look in looks)


def test_what_is_drawn_is_what_the_rows_say(finished):
    found = load_history(finished, "net")
    groups = Groups.by_frequency(np.linspace(0, 1, 30), (0, 0.5, 1))
    rows = [row for row in group_rows(found, groups) if row["quantity"] == "norm"]
    (axes,) = groups_figure(rows, ["net"], "mean |x|").axes
    drawn = lines_of(axes)
    assert list(drawn) == ["HSF [0, 0.5], 15 images", "HSF (0.5, 1], 15 images", "all images"]
    assert drawn["all images"] == pytest.approx(found.values["norm"].mean(1).tolist())
    assert drawn["HSF [0, 0.5], 15 images"] == pytest.approx(found.values["norm"][:, :15].mean(1).tolist())
    correlations = correlation_rows(found, groups.frequency)
    figure = correlations_figure(correlations, ["net"])
    for axes, score in zip(figure.axes, ("avh", "confidence", "norm"), strict=True):
        rho = [row["rho"] for row in correlations if row["score"] == score]
        assert lines_of(axes)["net"] == pytest.approx(rho)
    assert [axes.get_title() for axes in figure.axes] == ["AVH (turned)", "confidence", "norm of x"]
    assert figure.axes[0].get_xlabel() == "epoch" and figure.axes[0].get_ylabel() == "Spearman's rho with HSF"
    overall = [row for row in group_rows(found, groups) if row["group"] == "all"]
    left, right = models_figure(overall, ["net"]).axes
    assert lines_of(left)["net"] == pytest.approx((3 * found.values["avh"].mean(1)).tolist()), "three classes"
    assert lines_of(right)["net"] == pytest.approx((100 * found.values["accuracy"].mean(1)).tolist())
    plateaus = [row for row in plateau_rows(found, draws=5) if row["near, %"] == 5]
    (axes,) = plateaus_figure(plateaus, ["net"]).axes
    marks = [np.asarray(container.lines[0].get_xdata()).tolist() for container in axes.containers]
    assert marks == [[row["plateau epoch"]] for row in plateaus]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["net"] and axes.get_xlabel() == "plateau epoch"


def test_runs_that_cannot_stand_on_one_page_are_named_before_any_training(labelled, in_folder, capsys):
    assert hardness(["dynamics", "--cfg", str(labelled), "--cfg", str(labelled)]) == 2
    assert (
        "two runs have the name 'tiny, seed 0'; give one of them another name or another seed"
        in capsys.readouterr().err
    )
    (in_folder / "else.yaml").write_text(f"_base_: {labelled}\ndata: {{test: elsewhere}}\n")
    assert hardness(["dynamics", "--cfg", str(labelled), "--cfg", "else.yaml"]) == 2
    assert f"'else' uses elsewhere and 'tiny' uses {labelled.parent}/test" in capsys.readouterr().err
    assert hardness(["dynamics", "--cfg", str(labelled), "--seeds", "0,1", "output=runs/same", "--dry-run"]) == 2
    assert "two runs would share runs/same; put {name} and {seed} into output=..." in capsys.readouterr().err
    assert not (in_folder / "runs").exists()


def test_the_command_trains_resumes_and_puts_runs_side_by_side(labelled, in_folder, monkeypatch, capsys):
    monkeypatch.setattr(pace, "MEASURED", 1)
    words = ["dynamics", "--cfg", str(labelled), "--seeds", "0,1", "--out", "page"]
    assert hardness([*words, "--dry-run"]) == 0 and not (in_folder / "runs").exists()
    plans = capsys.readouterr().out
    assert plans.count("3 epochs of 3 steps of 8") == plans.count("cost     9 training steps") == 2
    assert hardness(words) == 0
    assert "page: page/index.html" in capsys.readouterr().out
    page = (in_folder / "page" / "index.html").read_text()
    assert "tiny, seed 1" in page and page.count("<svg") == 8
    for name in ("avh_by_group", "norm_by_group", "models", "plateau_epochs", "correlation_in_training"):
        assert {(in_folder / "page" / f"{name}.{ending}").exists() for ending in ("png", "svg", "csv")} == {True}
    with (in_folder / "page" / "accuracy_by_group.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows} == {"[0, 0.5]", "(0.5, 1]", "all"} and {row["run"] for row in rows} == {
        "tiny, seed 0",
        "tiny, seed 1",
    }
    with undrawn():
        assert hardness(words) == 0 and capsys.readouterr().out.count("is finished") == 2
