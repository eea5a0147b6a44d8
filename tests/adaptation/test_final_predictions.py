"""predictions.csv of a finished run: the final model's predictions of all target images."""

import csv
import math
import re
import shutil
from collections import defaultdict

import numpy as np
import pytest

import uda
from tests.adaptation.test_run import cut
from tests.forked import forked_job
from tests.in_process import adapt
from uda.adaptation.run import AdaptationRun
from uda.core.resources import CHECKOUT
from uda.training.session import Session

SOME_STEPS = "adaptation={steps: 3, evaluate_every: 2, batch: {source: 4, target: 4}}"
#: Each kind of end: after a round, after an interval, after the source stage, and with statistics of the target.
ENDS = {
    "rounds": [],
    "interval": ["method=mcc", "source.epochs=0", SOME_STEPS],
    "two heads": ["method=mcd", SOME_STEPS],
    "source": ["method=source_only"],
    "statistics": ["self_training.adapt_batch_norm=true"],
    "source's statistics": ["method=source_only", "source.adapt_batch_norm=true"],
}


def table(folder):
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def class_mean(rows):
    """The mean over classes of the share of right rows, by the names of the images' folders."""
    right = defaultdict(list)
    for row in rows:
        own = row["path"].split("/")[-2]
        right[own].append(row["prediction"] == own)
    return np.mean([np.mean(values) for values in right.values()])


@pytest.fixture
def passes(monkeypatch):
    """The predict passes of runs, as the numbers of their images."""
    counted, predict = [], Session.predict_images

    def count(self, images, transform):
        counted.append(len(images))
        return predict(self, images, transform)

    monkeypatch.setattr(Session, "predict_images", count)
    return counted


@pytest.mark.parametrize("end", ENDS)
def test_it_has_the_final_models_predictions_without_another_pass(end, tiny, tmp_path, passes):
    """They are what the final weights give, and their accuracy is that of results.json."""
    run = uda.adapt(tiny, overrides=[*ENDS[end], f"output={tmp_path / 'run'}"], log=None)
    rows, found = table(run.folder), run.predict(tiny.parent / "photos")
    assert [row["path"] for row in rows] == found.ids and len(rows) == 32
    assert [row["prediction"] for row in rows] == found.class_names
    best = found.probabilities.max(1)
    np.testing.assert_allclose([float(row["probability"]) for row in rows], best, rtol=1e-4)
    assert math.isclose(class_mean(rows), run.results["final"]["class_mean"])
    reports = 1 + len(run.results["rounds"]) - (end == "interval")
    # With statistics of the target, the first round predicts with others than the source model's report.
    assert passes == [32] * (reports + (end == "statistics"))


@pytest.mark.parametrize("end", ["rounds", "interval", "source"])
def test_a_run_that_was_cut_after_its_last_stage_predicts_once_more(end, tiny, tmp_path, monkeypatch, passes):
    words = [*ENDS[end], f"output={tmp_path / 'cut'}"]
    uda.adapt(tiny, overrides=[*ENDS[end], f"output={tmp_path / 'whole'}"], log=None)
    with monkeypatch.context() as patch:
        patch.setattr(AdaptationRun, "save_weights", lambda self, name: 1 / (name != "final"))
        with pytest.raises(ZeroDivisionError):
            uda.adapt(tiny, overrides=words, log=None)
    assert not (tmp_path / "cut" / "predictions.csv").exists()
    passes.clear()
    uda.adapt(tiny, overrides=words, log=None)
    assert passes == [32]
    assert (tmp_path / "cut/predictions.csv").read_bytes() == (tmp_path / "whole/predictions.csv").read_bytes()


def test_more_rounds_replace_it(tiny, tmp_path, monkeypatch):
    """While the run is not finished, there is none."""
    words = ["--cfg", str(tiny), f"output={tmp_path / 'run'}"]
    assert adapt(words) == 0
    first = table(tmp_path / "run")
    cut(monkeypatch, lambda: adapt([*words, "self_training.rounds=3"]), saves=1)
    assert not (tmp_path / "run" / "predictions.csv").exists()
    assert adapt([*words, "self_training.rounds=3"]) == 0
    assert len(table(tmp_path / "run")) == 32 and table(tmp_path / "run") != first


def test_a_finished_run_without_it_stays_finished(tiny, tmp_path, capsys):
    """Runs of earlier versions have none."""
    words = ["--cfg", str(tiny), f"output={tmp_path / 'run'}"]
    assert adapt(words) == 0
    (tmp_path / "run" / "predictions.csv").unlink()
    capsys.readouterr()
    assert adapt(words) == 0
    assert f"{tmp_path / 'run'} is finished" in capsys.readouterr().out
    assert not (tmp_path / "run" / "predictions.csv").exists()
    assert len(uda.load_run(tmp_path / "run").predict(tiny.parent / "photos")) == 32


def test_two_targets_have_the_names_of_their_domains(tiny, tmp_path):
    """Both folders have images of the same names."""
    domains = [str(tiny.parent / "photos"), str(tmp_path / "more")]
    (tmp_path / "more").symlink_to(tiny.parent / "drawn")
    words = ["method=source_only", "data.target_labels=none", f"output={tmp_path / 'run'}"]
    config = tmp_path / "two.yaml"
    config.write_text(re.sub(r"source: \S+/drawn, ", f"source: {tmp_path}/own, ", tiny.read_text()))
    shutil.copytree(tiny.parent / "drawn", tmp_path / "own")
    run = uda.adapt(config, overrides=[*words, f"data.target=[{','.join(domains)}]"], log=None)
    rows = table(run.folder)
    assert len(rows) == 64 and rows[0]["path"] == f"{domains[0]}/ant/ant_0.jpg"
    assert rows[-1]["path"] == f"{domains[1]}/dog/dog_7.jpg"


@pytest.mark.slow
def test_two_processes_write_it_once(tiny, tmp_path):
    words = ["adapt", "--cfg", tiny, f"output={tmp_path / 'run'}", "self_training.rounds=1"]
    codes, output = forked_job(2, CHECKOUT / "uda" / "__main__.py", *words)
    assert codes == [0, 0], output
    rows, run = table(tmp_path / "run"), uda.load_run(tmp_path / "run")
    found = run.predict(tiny.parent / "photos")
    assert [row["path"] for row in rows] == found.ids
    assert [row["prediction"] for row in rows] == found.class_names
