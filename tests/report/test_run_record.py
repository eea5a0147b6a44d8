"""Damaged run folders: `uda report` tells what is missing, and no headline contradicts the checkpoint."""

import errno
import html
import json
import os
import re
import shutil
import subprocess
import sys

import pyarrow.parquet
import pytest
import yaml

from tests.adaptation.test_page import Document, text_of
from tests.adaptation.test_run import cut, read_results
from tests.checkpoints import load_checkpoint
from tests.in_process import adapt
from uda.cli.main import main
from uda.report import figures
from uda.report.run_record import read_run_record
from uda.training.checkpoint import Checkpoints
from uda.training.records import read_results as checked_results
from uda.training.run_folder import is_locked

NO_HEADLINE = "There is no headline"
WORDS = ["report.page=true", "self_training.rounds=3"]


@pytest.fixture(scope="module")
def start(tiny):
    """Run the tiny config by the command line: its exit code."""
    return lambda folder, *words: adapt(["--cfg", str(tiny), f"output={folder}", *WORDS, *words])


@pytest.fixture(scope="module")
def undrawn():
    """Pages without figures, which take most of the time and are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "to_svg", lambda figure, name, description: "<svg></svg>")
        patch.setattr(figures, "to_png", lambda figure: b"")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, start, undrawn):
    """A finished run of three rounds."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(folder) == 0
    return folder


@pytest.fixture(scope="module")
def halted(tmp_path_factory, start, undrawn):
    """A run that was cut in its second round, 1."""
    folder = tmp_path_factory.mktemp("halted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        cut(patch, lambda: start(folder), saves=5)
    return folder


@pytest.fixture
def finished(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def unfinished(halted, tmp_path):
    return shutil.copytree(halted, tmp_path / "run")


def report(folder, capsys):
    """Exit code, problems, text of the page after `uda report`."""
    capsys.readouterr()
    code = main(["report", str(folder)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert out == f"report: {folder / 'report.html'}\n"
    problems = [line.removeprefix(f"{folder}: ") for line in err.splitlines()]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert Document(page).open == []
    text = text_of(page)
    told = html.unescape(page)
    assert [problem for problem in problems if problem not in told] == []
    assert code == bool(problems)
    return code, problems, text


def headline(results):
    return f"to {100 * results['final']['class_mean']:.2f} % after {len(results['rounds'])} rounds"


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


# Ways to damage a folder


def write(name, content):
    """Replace a file."""

    def damage(folder):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def remove(*patterns):
    """Remove files and folders."""

    def damage(folder):
        found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        assert found, patterns
        for path in found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def both(*damages):
    def damage(folder):
        for one in damages:
            one(folder)

    return damage


def change(name, edit):
    """Change the content of a JSON file."""

    def damage(folder):
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        edit(content)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")

    return damage


def settings(**values):
    """Change settings in config.yaml."""

    def damage(folder):
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        (folder / "config.yaml").write_text(yaml.safe_dump({**content, **values}), encoding="utf-8")

    return damage


def half(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def table(name, edit, facts=None):
    """Change a table of images, or its metadata."""

    def damage(folder):
        content = edit(pyarrow.parquet.read_table(folder / name))
        if facts is not None:
            about = json.loads(content.schema.metadata[b"uda"])
            content = content.replace_schema_metadata({b"uda": json.dumps({**about, **facts}).encode()})
        pyarrow.parquet.write_table(content, folder / name)

    return damage


def old_checkpoint(folder):
    progress, state = load_checkpoint(folder / "checkpoints")
    Checkpoints(folder / "checkpoints").save(progress, {**state, "version": 3})


def damage_checkpoints(newest_only):
    def damage(folder):
        files = sorted(folder.glob("checkpoints/state-*.pt"))
        for path in files[-1:] if newest_only else files:
            path.write_bytes(path.read_bytes()[:-9])

    return damage


NO_CHECKPOINT = remove("checkpoints")
GARBAGE = bytes(range(128, 256)) * 9
ROUND, IMAGES = "rounds/01/report.json", "rounds/01/images.parquet"


def other_class_mean(content):
    content["class_mean"] = 0.123


# A readable checkpoint: its figures are shown, and results.json is right again


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(write("results.json", "{"), "results.json is broken", id="results: a brace"),
        pytest.param(write("results.json", ""), "results.json is broken", id="results: empty"),
        pytest.param(write("results.json", "[1]"), "results.json is broken", id="results: a list"),
        pytest.param(write("results.json", "{}"), "results.json contradicts the checkpoint", id="results: no entries"),
        pytest.param(write("results.json", GARBAGE), "results.json is broken", id="results: garbage"),
        pytest.param(remove("results.json"), "results.json is missing", id="results: missing"),
        pytest.param(
            change("results.json", lambda content: other_class_mean(content["rounds"][1])),
            "results.json contradicts the checkpoint (rounds/01/report.json: class_mean is 0.123 there",
            id="results: another figure",
        ),
        pytest.param(
            change("results.json", lambda content: other_class_mean(content["final"])),
            "results.json contradicts the checkpoint (rounds/02/report.json: class_mean is 0.123 there",
            id="results: another end",
        ),
        pytest.param(
            change("results.json", lambda content: content["rounds"].pop()),
            "results.json contradicts the checkpoint (rounds/03/report.json: 2 rounds there, 3 here)",
            id="results: of a shorter run",
        ),
        pytest.param(remove(ROUND), f"{ROUND} is missing. Its figures come from", id="round: missing"),
        pytest.param(write(ROUND, "{"), f"{ROUND} is broken. Its figures come from", id="round: broken"),
        pytest.param(write(ROUND, GARBAGE), f"{ROUND} is broken. Its figures come from", id="round: garbage"),
        pytest.param(change(ROUND, other_class_mean), f"{ROUND} was changed.", id="round: another figure"),
        pytest.param(write(ROUND, '{"round": 7}'), f"{ROUND} was changed.", id="round: of another one"),
        pytest.param(
            lambda folder: shutil.copytree(folder / "rounds/02", folder / "rounds/03"),
            "Report 3 in rounds/ came after the last checkpoint. They are not shown.",
            id="round: one too many",
        ),
        pytest.param(remove("rounds/source.json"), "rounds/source.json is missing.", id="source: missing"),
        pytest.param(remove("rounds"), "There is no images.parquet (older versions of uda wrote none)", id="no rounds"),
        pytest.param(remove(IMAGES), f"{IMAGES} is missing. The page leaves out what", id="images: missing"),
        pytest.param(half(IMAGES), f"{IMAGES} is broken. The page leaves out what", id="images: cut off"),
        pytest.param(write(IMAGES, GARBAGE), f"{IMAGES} is broken. The page", id="images: garbage"),
        pytest.param(
            table(IMAGES, lambda found: found.slice(1)), f"{IMAGES} does not fit the record", id="images: other rows"
        ),
        pytest.param(
            table(IMAGES, lambda found: found.drop_columns(["softmax_label", "avh"])),
            f"{IMAGES} has no column avh and no softmax_label",
            id="images: columns missing",
        ),
        pytest.param(
            table(IMAGES, lambda found: found, {"version": 99}),
            f"{IMAGES} was written by a newer version of uda",
            id="images: from the future",
        ),
        pytest.param(
            table(IMAGES, lambda found: found, {"classes": ["ant", "bee", "cat", "eel"]}),
            f"{IMAGES} has other classes than the reports",
            id="images: other classes",
        ),
        pytest.param(
            remove("rounds/*/images.parquet"), "There is no images.parquet (older versions", id="images: none"
        ),
        pytest.param(remove("map.parquet"), "map.parquet is missing. The page", id="map: missing"),
        pytest.param(half("map.parquet"), "map.parquet is broken.", id="map: cut off"),
        pytest.param(
            lambda folder: shutil.copy(folder / IMAGES, folder / "map.parquet"),
            "map.parquet is not a map of this run",
            id="map: something else",
        ),
        pytest.param(remove("pictures.parquet"), "pictures.parquet is missing. The page", id="pictures: missing"),
        pytest.param(half("pictures.parquet"), "pictures.parquet is broken.", id="pictures: cut off"),
        pytest.param(
            table("pictures.parquet", lambda found: found.set_column(0, "row", pyarrow.array([10**6] * len(found)))),
            "pictures.parquet is of other images.",
            id="pictures: other rows",
        ),
        pytest.param(remove("environment.json"), "environment.json is missing.", id="environment: missing"),
        pytest.param(write("environment.json", GARBAGE), "environment.json is broken.", id="environment: garbage"),
        pytest.param(
            damage_checkpoints(newest_only=True),
            "is damaged (its content does not match the checksum in its name); the run resumes from the one before it",
            id="newest checkpoint: damaged",
        ),
    ],
)
def test_the_page_is_that_of_the_checkpoint(whole, finished, start, capsys, damage, problem):
    before = results_of(whole)
    damage(finished)
    code, problems, text = report(finished, capsys)
    assert code == 1 and any(problem in found for found in problems), problems
    assert headline(before) in text and NO_HEADLINE not in text
    assert {**results_of(finished), "problems": []} == {**before, "problems": []}
    assert results_of(finished)["problems"] == problems
    assert start(finished) == 0
    out = capsys.readouterr().out
    assert re.search("is finished|the results are written again from the checkpoint", out)
    assert f"{100 * before['final']['class_mean']:.2f}" in out


def test_a_whole_folder_has_no_problems_and_keeps_its_results(whole, finished, start, capsys):
    (finished / "report.html").unlink()
    code, problems, text = report(finished, capsys)
    assert (code, problems) == (0, []) and headline(results_of(whole)) in text
    assert (finished / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert start(finished) == 0 and "is finished" in capsys.readouterr().out


def test_the_page_does_not_need_the_images(finished, capsys):
    content = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    settings(data={**content["data"], "source": "/gone/drawn", "target": "/gone/photos"})(finished)
    code, problems, text = report(finished, capsys)
    assert (code, problems) == (0, []) and "/gone/drawn to /gone/photos" in text
    assert "2 of 32 images shown" in text


# Config of another version


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(remove("config.yaml"), "config.yaml is missing, so the settings", id="missing"),
        pytest.param(write("config.yaml", "a: [b"), "config.yaml is broken, so the settings", id="broken"),
        pytest.param(write("config.yaml", GARBAGE), "config.yaml is broken, so the settings", id="garbage"),
        pytest.param(write("config.yaml", "- a\n"), "config.yaml is broken, so the settings", id="a list"),
        pytest.param(settings(shiny_new=3), "config.yaml is not of a kind of run that this", id="a new section"),
        pytest.param(settings(report={"shiny": True}), "This version of uda cannot read the config", id="a new key"),
        pytest.param(settings(method=["x"], seed={}, name=7), "This version of uda cannot read", id="other types"),
        pytest.param(
            settings(plugins=["/gone/my_selectors.py"]),
            "This version of uda cannot read the config (config.yaml: plugins: no such file: /gone/my",
            id="a plugin that is gone",
        ),
    ],
)
def test_without_a_config_the_figures_are_shown_all_the_same(whole, finished, capsys, damage, problem):
    damage(finished)
    results = (finished / "results.json").read_bytes()
    code, problems, text = report(finished, capsys)
    assert code == 1 and any(problem in found for found in problems), problems
    assert headline(results_of(whole)) in text
    assert (finished / "results.json").read_bytes() == results, "results cannot be made without a config"


# No readable checkpoint: files that agree are believed


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(damage_checkpoints(newest_only=False), "all checkpoints are damaged", id="damaged"),
        pytest.param(old_checkpoint, "was written by an older version of uda (format 3).", id="of an older format"),
        pytest.param(NO_CHECKPOINT, None, id="removed"),
        pytest.param(both(NO_CHECKPOINT, write("checkpoints", "")), None, id="a file in its place"),
    ],
)
def test_without_a_checkpoint_files_that_agree_are_shown(whole, finished, capsys, damage, problem):
    before = results_of(whole)
    damage(finished)
    _, problems, text = report(finished, capsys)
    assert len(problems) == (problem is not None) and (not problem or problem in problems[0])
    assert ("Checkpoint none; the figures come from the files of the reports" in text) == (problem is None)
    assert headline(before) in text
    assert {**results_of(finished), "problems": []} == before
    assert checked_results(finished / "results.json")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(write("results.json", "{"), "results.json is broken.", id="results: a brace"),
        pytest.param(write("results.json", "[]"), "results.json is broken.", id="results: a list"),
        pytest.param(write("results.json", "{}"), "results.json contradicts the records", id="results: no entries"),
        pytest.param(
            change("results.json", lambda content: other_class_mean(content["rounds"][1])),
            "results.json contradicts the records of the reports (rounds/01/report.json, class_mean is 0.123 there",
            id="results: another figure",
        ),
        pytest.param(remove(ROUND), "Report 1 in rounds/ is missing.", id="round: missing"),
        pytest.param(remove("rounds/0*/report.json"), "Reports 0, 1, 2 in rounds/ are missing.", id="rounds: missing"),
        pytest.param(write(ROUND, "{"), f"{ROUND} is broken, so this report is left out.", id="round: broken"),
        pytest.param(write(ROUND, GARBAGE), f"{ROUND} is broken, so this report is left out.", id="round: garbage"),
        pytest.param(write(ROUND, "{}"), f"{ROUND} is not a record of a report", id="round: no entries"),
        pytest.param(write(ROUND, '{"round": 7}'), f"{ROUND} is of report 7", id="round: of another one"),
        pytest.param(
            change(ROUND, lambda content: content.update(accuracy=[1])),
            f"{ROUND} is not a record of a report (see its entry 'accuracy')",
            id="round: other types",
        ),
        pytest.param(
            change(ROUND, lambda content: content.update({"lambda": {"ant": "x"}})),
            f"{ROUND} is not a record of a report (see its entry 'lambda.ant')",
            id="round: a text for a number",
        ),
        pytest.param(
            change(ROUND, lambda content: [content.pop(name) for name in ("portion", "overlap")]),
            f"{ROUND} does not tell what its round selected",
            id="round: without its choice",
        ),
        pytest.param(
            change(ROUND, lambda content: content["avh_per_class"].pop("ant")),
            f"{ROUND} has figures of 3 and of 4 classes",
            id="round: hardness of some classes",
        ),
        pytest.param(
            change(ROUND, lambda content: content.update(selected_per_class={})),
            f"{ROUND} is not a record of a report (see its entry 'selected_per_class')",
            id="round: no class",
        ),
        pytest.param(
            change("rounds/source.json", lambda content: content["source_per_class"].update(ant=None)),
            "rounds/source.json is not a record of a report (see its entry 'source_per_class.ant')",
            id="source: no number",
        ),
        pytest.param(
            change(ROUND, lambda content: content["accuracy"]["confusion"].pop()),
            f"{ROUND} has figures of 3 and of 4 classes",
            id="round: part of a matrix",
        ),
        pytest.param(
            lambda folder: [
                (folder / ROUND).write_text((folder / ROUND).read_text().replace('"ant"', '"eel"')),
            ],
            f"{ROUND} has other classes than the other reports",
            id="round: other classes",
        ),
        pytest.param(change(ROUND, other_class_mean), "results.json contradicts the rec", id="round: another figure"),
        pytest.param(remove("rounds/source.json"), "rounds/source.json is missing.", id="source: missing"),
        pytest.param(write("rounds/source.json", "[]"), "rounds/source.json is broken.", id="source: a list"),
        pytest.param(
            change("rounds/source.json", other_class_mean),
            "results.json contradicts the rec",
            id="source: another figure",
        ),
    ],
)
def test_without_a_checkpoint_contradictions_leave_no_headline(finished, capsys, damage, problem):
    both(NO_CHECKPOINT, damage)(finished)
    results = (finished / "results.json").read_bytes()
    code, problems, text = report(finished, capsys)
    assert code == 1 and any(problem in found for found in problems), problems
    assert NO_HEADLINE in text and "The class mean on the target" not in text
    assert "Oracle best" not in text and "Adaptation made the class mean lower" not in text
    assert (finished / "results.json").read_bytes() == results


# A run that is not finished


def half_a_round(folder):
    """What a run leaves that is killed while it writes report.json."""
    (folder / "rounds/01").mkdir(exist_ok=True)
    shutil.copy(folder / "rounds/00/images.parquet", folder / "rounds/01")
    (folder / "rounds/01/.report.json.7.tmp").write_text('{"round": 1')


def same_end(folder, whole):
    return read_results(folder) == read_results(whole)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda folder: None, id="whole"),
        pytest.param(remove("rounds/00/report.json"), id="a record is missing"),
        pytest.param(write("results.json", "{"), id="results: a brace"),
        pytest.param(
            both(
                lambda folder: (folder / "rounds/01").mkdir(exist_ok=True), write("rounds/01/.report.json.7.tmp", "{")
            ),
            id="half a round",
        ),
        pytest.param(
            lambda folder: shutil.copytree(folder / "rounds/00", folder / "rounds/01", dirs_exist_ok=True),
            id="a round that is not in the checkpoint",
        ),
    ],
)
def test_a_halted_run_says_how_far_it_is_and_goes_on(whole, unfinished, start, capsys, damage):
    damage(unfinished)
    results = unfinished / "results.json"
    before = results.read_bytes() if results.exists() else None
    _, _, text = report(unfinished, capsys)
    assert "This run is not finished: round 1 of 3 done. The command that started it resumes it" in text
    assert "% after 1 round (" in text and "Final oracle" not in text
    assert (results.read_bytes() if results.exists() else None) == before, "results would end the run"
    assert start(unfinished) == 0
    assert same_end(unfinished, whole)
    assert report(unfinished, capsys)[:2] == (0, [])


def test_results_of_another_run_do_not_finish_a_halted_one(whole, unfinished, start, capsys):
    shutil.copy(whole / "results.json", unfinished)
    _, problems, text = report(unfinished, capsys)
    assert any("results.json contradicts the checkpoint" in problem for problem in problems)
    assert "This run is not finished: round 1 of 3 done" in text
    assert start(unfinished) == 0 and same_end(unfinished, whole)


def test_without_a_checkpoint_a_halted_run_shows_its_files(unfinished, capsys):
    NO_CHECKPOINT(unfinished)
    _, problems, text = report(unfinished, capsys)
    assert "There is no results.json, so the run was not finished here." in problems
    assert "This run is not finished: round 1 of 3 done" in text and "% after 1 round (" in text
    assert not (unfinished / "results.json").exists()


def test_a_folder_without_a_report_has_a_page(unfinished, capsys):
    remove("rounds", "checkpoints", "pictures.parquet", "report.html")(unfinished)
    _, _, text = report(unfinished, capsys)
    assert "There are no figures yet." in text and "no round done yet" in text


# Older versions


def older(folder):
    """What a version left that wrote neither tables of images, nor warnings, nor scores of validators."""
    remove("rounds/*/images.parquet", "map.parquet", "pictures.parquet")(folder)
    new = ["avc_per_class", "avh_per_class", "confidence_per_class", "feature_norm_per_class"]
    new += ["warnings", "validators", "predicted_per_class", "effective_classes", "largest_share"]
    for path in folder.glob("rounds/**/*.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({key: value for key, value in content.items() if key not in new}))
    change("results.json", lambda content: content.pop("problems"))(folder)


@pytest.mark.parametrize("checkpoint", [old_checkpoint, NO_CHECKPOINT], ids=["older checkpoint", "no checkpoint"])
def test_a_folder_of_an_older_version_has_a_page(whole, finished, capsys, checkpoint):
    both(older, checkpoint)(finished)
    _, problems, text = report(finished, capsys)
    assert problems[-1].startswith("There is no images.parquet (older versions of uda wrote none)")
    assert len(problems) == (2 if checkpoint is old_checkpoint else 1)
    assert headline(results_of(whole)) in text
    assert "Label-free score" not in text and "Images" not in re.findall(r"<h2.*?</h2>", text)
    assert results_of(finished)["problems"] == problems


# Not a run folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "is not a run folder: there is no config.yaml"),
        (lambda path: path.write_text("x"), "is not a folder"),
        (lambda path: None, "is not a folder"),
    ],
    ids=["empty", "a file", "nothing"],
)
def test_what_is_no_run_folder_is_refused(tmp_path, capsys, make, words):
    make(tmp_path / "run")
    assert main(["report", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "run/report.html").exists()


def test_a_folder_that_cannot_be_written_is_said(finished, capsys, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    assert main(["report", str(finished)]) == 2
    error = capsys.readouterr().err
    assert f"{finished / 'report.html'} cannot be written: Read-only file system" in error and error.count("\n") == 1


def test_reading_changes_nothing(finished):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.rglob("*") if path.is_file()}
    record = read_run_record(finished)
    assert record.finished and record.trusted and len(record.tables) == 3 and record.problems == []
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished.rglob("*") if path.is_file()}
    assert before == after


LOCKS = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print('locked')"


def test_a_folder_in_which_a_process_works_is_told_from_one_that_was_left(unfinished, capsys):
    assert not is_locked(unfinished)
    command = [sys.executable, "-c", f"{LOCKS}; sys.stdout.flush(); sys.stdin.read()", str(unfinished / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        assert is_locked(unfinished)
        assert "This run goes on: round 1 of 3 done" in report(unfinished, capsys)[2]
        process.stdin.close()
    assert not is_locked(unfinished)


def test_a_lock_that_cannot_be_opened_is_no_process(tmp_path, monkeypatch):
    (tmp_path / ".lock").write_text("")

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert not is_locked(tmp_path)
