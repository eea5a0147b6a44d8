"""What a run resumes with: lost records, more rounds, changed data; and what a finished one says."""

import html
import json
import shutil

import pytest
import yaml

from tests.adaptation.test_run import cut, read_results, without_times
from tests.checkpoints import load_checkpoint
from tests.data.trees import make_folders
from tests.in_process import adapt
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.run import AdaptationRun
from uda.training.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def start(tiny):
    """Run the tiny config by the command line: its exit code."""
    return lambda folder, *words: adapt(["--cfg", str(tiny), f"output={folder}", *words])


@pytest.fixture(scope="module")
def long(tmp_path_factory, start):
    """A finished run of four rounds with page and events."""
    folder = tmp_path_factory.mktemp("long") / "run"
    assert start(folder, "self_training.rounds=4", "report.page=true", "report.loggers=[tensorboard]") == 0
    return folder


@pytest.fixture
def finished(long, tmp_path):
    """A copy of that run, to be damaged."""
    return shutil.copytree(long, tmp_path / "run")


def records_of(folder):
    return {str(path.relative_to(folder)): json.loads(path.read_text()) for path in folder.glob("rounds/**/*.json")}


def same_files(folder, other):
    """Records, results, weights and predictions are equal except for times. Pseudo-labels are equal too."""
    assert read_results(folder) == read_results(other)
    assert without_times(records_of(folder)) == without_times(records_of(other))
    weights = (f"checkpoints/{name}.safetensors" for name in ("final", "label_free", "source"))
    for name in (*weights, "predictions.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    for path in other.glob("rounds/*/pseudo_labels.csv"):
        assert (folder / path.relative_to(other)).read_bytes() == path.read_bytes()
    return True


# Lost and broken records


@pytest.mark.parametrize("content", [None, '{"round": 0}', "{"])
@pytest.mark.parametrize("name", ["rounds/00/report.json", "rounds/source.json"])
def test_a_record_lost_between_two_starts_is_written_anew(start, long, tmp_path, monkeypatch, capsys, name, content):
    """Cut in round 1; the headline, the choice and every figure are those of the undisturbed run."""
    folder, words = tmp_path / "run", ["self_training.rounds=4"]
    cut(monkeypatch, lambda: start(folder, *words), saves=5)
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    capsys.readouterr()
    assert start(folder, *words) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "written again" in line]
    told = [f"warning: {folder / name} {problem}; it was" for problem in ("is missing", "is broken", "was changed")]
    assert len(warnings) == 1 and warnings[0].startswith(tuple(told))
    assert same_files(folder, long)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rounds/01/report.json", None),
        ("rounds/03/report.json", "[]"),
        ("rounds/source.json", None),
        ("results.json", "{"),
        ("results.json", ""),
        ("results.json", "{}"),
    ],
)
def test_what_is_broken_in_a_finished_run_is_made_anew(start, long, finished, capsys, name, content):
    whole = (long / "results.json").read_bytes()
    (finished / name).unlink() if content is None else (finished / name).write_text(content)
    assert start(finished, "self_training.rounds=4") == 0
    out = capsys.readouterr().out
    assert f"warning: {finished / name} " in out and "the results are written again from the checkpoint" in out
    assert (finished / "results.json").read_bytes() == whole, "the times too"
    assert records_of(finished) == records_of(long)
    assert same_files(finished, long)


def test_results_of_another_run_are_not_taken(start, long, finished, tmp_path, capsys):
    assert start(tmp_path / "other", "self_training.rounds=4", "seed=1") == 0
    shutil.copy(tmp_path / "other" / "results.json", finished)
    (finished / "report.html").write_text("another page")
    assert start(finished, "self_training.rounds=4", "report.page=true") == 0
    assert "belong to different runs" in capsys.readouterr().out
    assert ">Rounds</h2>" in (finished / "report.html").read_text(), "the page is made anew too"
    assert same_files(finished, long)


@pytest.mark.parametrize("words", [["self_training.rounds=4"], ["self_training.rounds=5"]])
def test_without_a_checkpoint_results_are_not_thrown_away(start, finished, capsys, words):
    """Broken results cannot be written again, and more rounds have nothing to resume from."""
    if words == ["self_training.rounds=4"]:
        (finished / "rounds/02/report.json").unlink()
    shutil.rmtree(finished / "checkpoints")
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert start(finished, *words) == 2
    error = capsys.readouterr().err
    assert "there is no checkpoint to resume from" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_lost_list_of_pseudo_labels_is_said(start, finished, capsys):
    (finished / "rounds/01/pseudo_labels.csv").unlink()
    (finished / "results.json").unlink()
    assert start(finished, "self_training.rounds=4") == 0
    assert "01/pseudo_labels.csv is missing and cannot be restored; no figure" in capsys.readouterr().out


# A finished run


def test_a_finished_run_says_its_result_and_where_its_page_is(start, long, capsys):
    before = {path: path.read_bytes() for path in long.rglob("*") if path.is_file()}
    assert start(long, "self_training.rounds=4") == 0
    out = capsys.readouterr().out
    results = json.loads((long / "results.json").read_text())
    assert f"{long} is finished" in out and f"report: {long / 'report.html'}" in out
    assert f"final              {100 * results['final']['class_mean']:6.2f}  the last round" in out
    assert {path: path.read_bytes() for path in long.rglob("*") if path.is_file()} == before
    log = (long / "log.txt").read_text()
    for line in out.splitlines()[2:]:
        assert line in log, "the same lines as at its end"


# More rounds


@pytest.mark.parametrize("saves", [None, 3, 5], ids=["finished", "between rounds", "within a round"])
def test_more_rounds_go_on_to_the_end_of_the_longer_run(start, long, tmp_path, monkeypatch, capsys, saves):
    """Two rounds, done or cut in their middle, and then four: all is that of four from the start."""
    folder = tmp_path / "run"
    cut(monkeypatch, lambda: start(folder), saves) if saves else start(folder)
    assert start(folder, "self_training.rounds=4") == 0
    assert same_files(folder, long)
    assert yaml.safe_load((folder / "config.yaml").read_text())["self_training"]["rounds"] == 4
    capsys.readouterr()
    assert start(folder, "self_training.rounds=4") == 0
    assert "is finished" in capsys.readouterr().out


def test_a_rounds_duration_counts_all_starts(start, tmp_path, monkeypatch, capsys):
    """A first start of 1,000 seconds (made up) that is cut within round 0."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(AdaptationRun, "part_seconds", 1000.0)
        patch.setattr(Checkpoints, "due", True)
        cut(patch, lambda: start(folder), saves=6)
    progress, _ = load_checkpoint(folder / "checkpoints")
    assert (progress.stage, progress.round) == ("round", 0) and progress.begun
    capsys.readouterr()
    assert start(folder) == 0
    first, second = json.loads((folder / "results.json").read_text())["rounds"]
    assert 1000 <= first["seconds"] < 1100 and second["seconds"] < 100


def test_event_files_of_a_longer_run_have_every_round_once(start, tmp_path, starts_apart):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for rounds in (2, 4):
        assert start(tmp_path / "run", f"self_training.rounds={rounds}", "report.loggers=[tensorboard]") == 0
    events = EventAccumulator(str(tmp_path / "run" / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("z_oracle/class_mean")] == [-1, 0, 1, 2, 3]
    assert [event.step for event in events.Scalars("selection/avc")] == [0, 1, 2, 3]


def test_a_longer_run_that_is_cut_has_no_results_meanwhile(start, long, tmp_path, monkeypatch):
    """Results of two rounds must not pass for those of four."""
    folder = tmp_path / "run"
    start(folder)
    cut(monkeypatch, lambda: start(folder, "self_training.rounds=4"), saves=1)
    assert not (folder / "results.json").exists()
    assert start(folder, "self_training.rounds=4") == 0
    assert same_files(folder, long)


def test_fewer_rounds_than_are_done_are_refused(start, finished, capsys):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert start(finished, "self_training.rounds=3") == 2
    error = capsys.readouterr().err
    assert "self_training.rounds: 3, but 4 rounds are done or begun in" in error and "set 4 or more" in error
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("saves", "code"), [(4, 0), (5, 2)], ids=["round 0 is done", "round 1 is under way"])
def test_a_run_may_be_cut_short_where_it_stands(start, tmp_path, monkeypatch, saves, code):
    """Checkpoints: source epoch, source, epoch and end of round 0, epoch of round 1."""
    folder = tmp_path / "run"
    cut(monkeypatch, lambda: start(folder, "self_training.rounds=4"), saves)
    assert start(folder, "self_training.rounds=1") == code
    if code == 0:
        assert start(tmp_path / "one", "self_training.rounds=1") == 0
        assert same_files(folder, tmp_path / "one")


def test_a_method_without_rounds_cannot_be_made_longer(start, tmp_path, capsys):
    words = ["method=entmin", "source.epochs=0", "adaptation.batch={source: 4, target: 4}"]
    assert start(tmp_path / "run", *words, "adaptation.steps=4") == 0
    assert start(tmp_path / "run", *words, "adaptation.steps=8") == 2
    error = capsys.readouterr().err
    assert "adaptation.steps: 4 -> 8" in error and "its length cannot change, because schedules depend on it" in error


# Changed data


@pytest.fixture
def own(tmp_path, tiny):
    """A list of labelled source images and a folder of target images of the test's own, and how to run on them."""
    for seed, domain in enumerate(("drawn", "photos")):
        make_folders(tmp_path / domain, ["ant", "bee", "cat"], per_class=8, seed=seed)
    images = sorted(path.relative_to(tmp_path) for path in (tmp_path / "drawn").rglob("*.jpg"))
    (tmp_path / "source.txt").write_text("".join(f"{tmp_path / path} {path.parent.name}\n" for path in images))
    words = [f"data.source={tmp_path / 'source.txt'}", f"data.target={tmp_path / 'photos'}", f"output={tmp_path / 'o'}"]
    return lambda *more: adapt(["--cfg", str(tiny), *words, *more])


def test_labels_mended_between_two_starts_are_refused(own, tmp_path, monkeypatch, capsys):
    cut(monkeypatch, own, saves=3)
    text = (tmp_path / "source.txt").read_text()
    lines = text.splitlines()
    lines[0], lines[9], lines[10] = (line.rsplit(" ", 1)[0] + " cat" for line in (lines[0], lines[9], lines[10]))
    (tmp_path / "source.txt").write_text("\n".join(lines))
    assert own() == 2
    error = capsys.readouterr().err
    assert "was begun with other labels: 3 of 24 source labels changed (" in error and ": ant, now cat)" in error
    (tmp_path / "source.txt").write_text(text)
    assert own() == 0


def test_target_labels_that_changed_are_refused(own, tmp_path, monkeypatch, capsys):
    """One report would hold figures by two measures."""
    listed = sorted((tmp_path / "photos").rglob("*.jpg"))
    names = [path.parent.name for path in listed]
    target = tmp_path / "target.txt"
    target.write_text("".join(f"{path} {name}\n" for path, name in zip(listed, names, strict=True)))
    cut(monkeypatch, lambda: own(f"data.target={target}"), saves=3)
    names[0], names[-1] = names[-1], names[0]
    target.write_text("".join(f"{path} {name}\n" for path, name in zip(listed, names, strict=True)))
    assert own(f"data.target={target}") == 2
    assert "labels: the target labels are not the ones that" in capsys.readouterr().err


def test_a_file_that_was_reported_as_unreadable_may_be_removed(own, tmp_path, monkeypatch, capsys):
    """The run has never had it: what it is made of are the readable images."""
    broken = tmp_path / "photos/bee/zz.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    own("data.max_unreadable=0.1", f"output={tmp_path / 'whole'}")
    cut(monkeypatch, lambda: own("data.max_unreadable=0.1"), saves=5)
    assert "zz.png" in capsys.readouterr().out
    broken.unlink()
    assert own("data.max_unreadable=0.1") == 0
    assert "resuming" in capsys.readouterr().out
    assert read_results(tmp_path / "o") == read_results(tmp_path / "whole")


def test_checkpoints_of_an_older_format_are_refused_in_words(start, tmp_path, monkeypatch, capsys):
    cut(monkeypatch, lambda: start(tmp_path), saves=3)
    progress, state = load_checkpoint(tmp_path / "checkpoints")
    Checkpoints(tmp_path / "checkpoints").save(progress, {**state, "version": 3})
    assert start(tmp_path) == 2
    assert "was written by an older version of uda (format 3); resume with that version" in capsys.readouterr().err


# Collapse


@pytest.fixture
def alike(tmp_path):
    """An unlabelled target of one image 24 times, which any network predicts as one class."""
    flat = tmp_path / "flat"
    make_folders(flat, ["one"], per_class=1)
    (image,) = flat.rglob("*.jpg")
    for number in range(24):
        shutil.copy(image, flat / f"{number}.jpg")
    shutil.rmtree(image.parent)
    return f"data.target={flat}"


def test_a_collapse_is_named_in_log_results_events_and_page(own, alike, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert own(alike, "report.page=true", "report.loggers=[tensorboard]") == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "o/results.json").read_text())
    last = results["rounds"][-1]
    assert sorted(last["predicted_per_class"].values()) == [0, 0, 24] and last["class_mean"] is None
    assert (last["effective_classes"], last["largest_share"]) == (1, 1)
    few, without, unlabelled = last["warnings"]
    assert few.startswith("the predictions fall onto few classes: 100 % of the target images are predicted as ")
    assert without.startswith("2 of 3 classes are never predicted on the target: ")
    assert unlabelled.startswith("2 of 3 classes have no pseudo-label: ")
    assert {f"round 1: {few}", f"source model: {few}"} <= set(results["warnings"])
    unwrapped = " ".join(out.split())
    row, end = unwrapped.index(" 1 0.6 24 "), unwrapped.index("The target has no labels")
    assert f"warning: {few}" in unwrapped[:row] and f"warning: {unlabelled}" in unwrapped[:row]
    assert "warning: the same as before (3)" in unwrapped[row:end], "round 0 had the same ones"
    assert f"warning: {few}" in unwrapped[end:] and unwrapped.count("a lower self_training.optim.lr") == 1
    assert few[:40] in (tmp_path / "o/log.txt").read_text()
    page = (tmp_path / "o/report.html").read_text()
    assert f"After the last round: {few}." in html.unescape(page)
    assert page.index("fall onto few classes") < page.index(">Rounds</h2>"), "near the top"
    events = EventAccumulator(str(tmp_path / "o/tb"))
    events.Reload()
    assert [event.value for event in events.Scalars("predicted/effective_classes")] == [1, 1, 1]
    assert "warnings/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize("method", ["entmin", "source_only"])
def test_a_collapse_is_named_in_methods_without_rounds(own, alike, tmp_path, capsys, method):
    words = ["adaptation={steps: 4, evaluate_every: 2, batch: {source: 4, target: 4}}", "report.page=true"]
    assert own(f"method={method}", alike, *words) == 0
    results = json.loads((tmp_path / "o/results.json").read_text())
    name, cure = ("report 1", "adaptation") if method == "entmin" else ("source model", "source")
    assert any(warning.startswith(f"{name}: the predictions fall onto few") for warning in results["warnings"])
    assert "fall onto few classes: 100 %" in (tmp_path / "o/report.html").read_text()
    out = capsys.readouterr().out
    assert f"a lower {cure}.optim.lr" in " ".join(out.split())
    assert ("warning: the same as before (" in out) == (method == "entmin"), "a warning is written out once"


@pytest.mark.parametrize(("named", "missing"), [([], 0), (["data.target_classes=[ant,bee,cat]"], 2)])
def test_a_partial_target_is_not_warned_of_classes_that_it_need_not_have(own, alike, tmp_path, named, missing):
    """What is named is missed; what is estimated is not."""
    assert own(alike, "data.label_sets=partial", *named) == 0
    warnings = json.loads((tmp_path / "o/results.json").read_text())["rounds"][-1]["warnings"]
    assert any(warning.startswith(f"{missing} of 3 classes are never predicted") for warning in warnings) == bool(
        missing
    )
    assert bool(warnings) == bool(missing)


def test_the_run_object_says_what_it_is_made_of(tiny, tmp_path):
    run = AdaptationRun(AdaptationConfig.load(tiny, [f"output={tmp_path / 'run'}"]))
    assert run.inputs.describe().startswith("32 source images (")
    assert run.inputs.change_since(run.inputs.state) is None
