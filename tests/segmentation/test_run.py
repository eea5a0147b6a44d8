"""A run of segmentation: what it leaves, its pseudo-labels, and that it resumes exactly."""

import json

import numpy as np
import pytest
import torch

from tests.adaptation.test_run import cut_after_every_save, without_times
from tests.segmentation.conftest import CLASSES
from uda.core.errors import UserError
from uda.data.label_coding import VOID, LabelCoding
from uda.data.label_maps import read_label_map
from uda.models.weights import load_network
from uda.segmentation.config import SegmentationConfig
from uda.segmentation.run import SegmentationRun
from uda.selection.selectors import target_scores
from uda.selection.thresholds import class_balanced_thresholds, select


def run(path, folder, *overrides):
    found = SegmentationRun(SegmentationConfig.load(path, [f"output={folder}", *overrides]))
    found.execute()
    return found


def results(folder):
    return without_times(json.loads((folder / "results.json").read_text()))


@pytest.fixture(scope="module")
def finished(tiny_scenes, tmp_path_factory):
    """One undisturbed run."""
    folder = tmp_path_factory.mktemp("segmentation") / "run"
    return run(tiny_scenes, folder)


def test_what_a_run_leaves(finished):
    folder = finished.folder.path
    told = results(folder)
    assert [record["round"] for record in told["rounds"]] == [0, 1]
    assert told["steps"] == 4 + 2 * 2 and told["method"] == "self_training" and told["selector"] == "softmax"
    for model in ("source_only", "final"):
        assert set(told[model]["iou"]) == set(CLASSES)
        assert 0 <= told[model]["mean_iou"] <= 1 and 0 <= told[model]["held_out"]["mean_iou"] <= 1
    assert told["final"]["mean_iou"] == told["rounds"][-1]["mean_iou"]
    assert told["oracle_best"]["mean_iou"] == max(record["mean_iou"] for record in told["rounds"])
    assert len(list((folder / "rounds" / "01" / "pseudo_labels").glob("*.png"))) == 5
    weights = {path.name for path in (folder / "checkpoints").glob("*.safetensors")}
    assert weights == {"source.safetensors", "final.safetensors", "label_free.safetensors"}


def test_the_figures_are_those_of_the_saved_network(finished):
    """IoU by hand from the final weights, on the whole target."""
    load_network(finished.engine.network, str(finished.folder.path), finished.description)
    finished.engine.network.eval()
    right, union = np.zeros(3), np.zeros(3)
    maps = finished.domains.target_maps.reveal()
    for number, batch in enumerate(finished.batches.predict(finished.domains.target.images.take(np.arange(5)))):
        assert batch.shape[0] == (2 if number < 2 else 1)
        with torch.no_grad():
            logits = finished.engine.network(batch).logits
        for row, one in enumerate(torch.nn.functional.interpolate(logits, size=(24, 32), mode="bilinear")):
            truth, predicted = maps.read(2 * number + row).numpy(), one.argmax(0).numpy()
            known = truth != VOID
            for k in range(3):
                right[k] += ((predicted == k) & (truth == k)).sum()
                union[k] += (((predicted == k) | (truth == k)) & known).sum()
    told = results(finished.folder.path)["final"]
    assert [told["iou"][name] for name in CLASSES] == pytest.approx((right / union).tolist(), abs=1e-9)
    assert told["mean_iou"] == pytest.approx((right / union).mean(), abs=1e-9)


@pytest.mark.parametrize("rule", ["ratio", "own"])
@pytest.mark.parametrize("selector", ["softmax", "avc"])
def test_pseudo_labels_are_the_choice_among_all_grid_pixels(tiny_scenes, tmp_path, selector, rule):
    """Those of round 0 are chosen by the source model."""
    words = [f"self_training.selector={selector}", f"self_training.labels={rule}", "self_training.rounds=1"]
    found = run(tiny_scenes, tmp_path / "run", *words)
    network = found.engine.network
    load_network(network, str(tmp_path / "run" / "checkpoints" / "source.safetensors"), found.description)
    outputs = list(found.predictions(found.domains.target.images))
    rows = [(image.features.flatten(1).T, image.logits.flatten(1).T) for image in outputs]
    features, logits = (torch.cat(part) for part in zip(*rows, strict=True))
    scores = target_scores(selector, features, logits, network.weight.detach())
    whole = select(scores, class_balanced_thresholds(scores, 0.5), rule)
    expected = np.where(whole.selected, whole.labels, VOID)
    files = sorted((tmp_path / "run" / "rounds" / "00" / "pseudo_labels").glob("*.png"))
    written = [read_label_map(path, LabelCoding.plain(3)).numpy().ravel() for path in files]
    assert np.array_equal(np.concatenate(written), expected)
    record = json.loads((tmp_path / "run" / "rounds" / "00" / "report.json").read_text())
    assert record["selected"] == whole.count and record["selected_share"] == whole.count / len(expected)
    known = [value if np.isfinite(value) else None for value in whole.thresholds.tolist()]
    assert list(record["lambda"].values()) == known


@pytest.mark.parametrize("extra", [[], ["training.ema.decay=0.9"]], ids=" ".join)
def test_a_run_that_dies_after_every_save_comes_to_the_same_end(tiny_scenes, tmp_path, monkeypatch, extra):
    run(tiny_scenes, tmp_path / "whole", *extra)
    folder = tmp_path / "cut"
    assert cut_after_every_save(monkeypatch, folder, lambda: run(tiny_scenes, folder, *extra)) > 4
    assert results(folder) == results(tmp_path / "whole")
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").glob("rounds/*/pseudo_labels/*.png")]
    assert len(names) == 10
    for name in (*names, "checkpoints/final.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_target_label_maps_change_no_weight(tiny_scenes, tmp_path, finished):
    """Without them there is no IoU, and the network is the same, bit for bit."""
    found = run(tiny_scenes, tmp_path / "run", "data.target_labels=none")
    told = results(tmp_path / "run")
    assert told["final"]["mean_iou"] is None and told["rounds"][0]["tp_rate"] is None
    assert told["label_free_choice"]["round"] is not None
    theirs = finished.folder.path / "checkpoints" / "final.safetensors"
    assert (found.folder.path / "checkpoints" / "final.safetensors").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["self_training.regularizer=mrkld"],
        ["model.loss=avh", "self_training.selector=avc", "self_training.labels=own"],
        ["self_training.mirror=true"],
        ["self_training.adapt_batch_norm=true", "self_training.adapt_images=4"],
        ["self_training.rare_classes={chance: 1.0, share: 0.9}"],
        ["self_training.forward=separate", "self_training.target_weight=0.5"],
        ["method=source_only"],
    ],
    ids=" ".join,
)
def test_settings_that_runs_have(tiny_scenes, tmp_path, words):
    found = run(tiny_scenes, tmp_path / "run", *words)
    told = results(tmp_path / "run")
    assert len(told["rounds"]) == found.rounds and told["final"]["mean_iou"] is not None


def test_what_cannot_be(tiny_scenes, tmp_path):
    with pytest.raises(UserError, match=r"portion 0\.001 selects no pixel"):
        run(tiny_scenes, tmp_path / "none", "self_training.portion.start=0.001")
    with pytest.raises(UserError, match=r"regularizer: 'lrent' needs soft labels"):
        SegmentationConfig.load(tiny_scenes, ["self_training.regularizer=lrent"])
    with pytest.raises(UserError, match=r"batch.target: 9 in a batch, but the target domain has only 5"):
        run(tiny_scenes, tmp_path / "many", "self_training.batch.target=9")
