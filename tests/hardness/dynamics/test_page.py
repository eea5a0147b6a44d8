"""The page of a supervised run: epochs in place of rounds, and figures that need no label of a target."""

import json
import re
import shutil

import pytest

from tests.adaptation.test_page import data_of, text_of
from tests.generalization.test_page import assert_whole, table_of
from uda.hardness.dynamics.config import SupervisedConfig
from uda.hardness.dynamics.page import supervised_page
from uda.hardness.dynamics.run import SupervisedRun
from uda.report.run_record import RunRecord
from uda.run_pages import rebuild


@pytest.fixture(scope="module")
def finished(labelled, tmp_path_factory):
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    SupervisedRun(SupervisedConfig.load(labelled, [f"output={folder}"])).execute()
    return folder


def epoch_record(epoch, shares):
    """The record of an epoch by the accuracies of its classes."""
    overall = sum(shares.values()) / len(shares)
    scores = {"avh": 0.25 - epoch / 100, "confidence": 0.5, "norm": 3.0}
    loss = 1.0 / epoch if epoch else None
    return {
        "epoch": epoch, "steps": 10 * epoch, "train_loss": loss, "overall": overall, "per_class": shares, "ece": 0.1,
        "scores": scores,
    }  # fmt: skip


@pytest.fixture
def record(tmp_path):
    """A run whose second epoch is the best: 90 %, then 70 %. One class has no test images."""
    shares = [{"ape": 0.5, "b<e": 0.1}, {"ape": 0.9, "b<e": 0.9}, {"ape": 1.0, "b<e": 0.4}]
    records = [epoch_record(number, of_class) for number, of_class in enumerate(shares)]
    for one in records:
        one["per_class"] = {**one["per_class"], "cat": None}
    return RunRecord(tmp_path, {"name": "mine", "seed": 3}, reports=records, finished=True)


def test_a_page_made_again_is_the_same(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in ("report.html", "results.json")}
    assert rebuild(tmp_path / "run").problems == []
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
    assert json.loads(before["results.json"])["problems"] == []


def test_the_page_shows_the_records(finished):
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert_whole(page)
    results = json.loads((finished / "results.json").read_text())
    assert f"is {100 * results['final']['overall']:.2f} % after 3 epochs." in text_of(page)
    rows = table_of(page, "Table of the epochs")
    assert [row[0] for row in rows] == ["0", "1", "2", "3"] and rows[0][2] == "-", "epoch 0 has no training loss"
    assert [row[3] for row in rows] == [f"{100 * epoch['overall']:.2f}" for epoch in results["epochs"]]
    curves = {curve["id"]: curve for curve in data_of(page)["curves"]}
    assert curves["accuracy"]["x"] == [0, 1, 2, 3] and curves["loss"]["series"][0]["values"][0] is None
    assert "oracle" not in text_of(page) and "rounds" not in text_of(page).lower()


def test_what_fell_since_the_best_epoch_stands_at_the_top(record):
    page = supervised_page(record, None).render()
    assert_whole(page)
    text = text_of(page)
    assert "After epoch 1, accuracy on the test images fell by 20.0 points." in text
    assert "Class b<e fell from 90.0 % at epoch 1, the best one, to 40.0 %." in text
    assert table_of(page, "Table of the classes") == [
        ["ape", "100.00", "90.00", "+10.00"],
        ["b<e", "40.00", "90.00", "-50.00"],
        ["cat", "-", "-", "-"],
    ]
    assert re.search(r'<div class="value">70.00 %</div>\n<div class="note">after the last epoch', page)


def test_an_unfinished_run_tells_its_epochs_without_the_untrained_network(labelled, record):
    record.finished, record.running = False, True
    text = text_of(supervised_page(record, SupervisedConfig.load(labelled)).render())
    assert "This run goes on: epoch 2 of 3 done" in text and "after the newest epoch" in text


def test_a_run_without_records_has_a_page(tmp_path):
    page = supervised_page(RunRecord(tmp_path, {}), None).render()
    assert_whole(page)
    assert "There are no figures yet." in text_of(page) and "no epoch done yet" in text_of(page)
