"""What a run writes down about the code that made it."""

import json
import subprocess
import sys

import pytest
import yaml

from uda import run_folder
from uda.adaptation.config import AdaptationConfig
from uda.errors import UserError
from uda.run_folder import RunFolder, RunLog, code_commit


def test_commit_is_dirty_by_code_alone(tmp_path, monkeypatch):
    """A table writes its CSV beside the code while it runs: that must not mark the runs after it."""

    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init", "--quiet")
    for name in ("uda", "results"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("as committed")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    head = git("rev-parse", "--short=12", "HEAD").stdout.strip()
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    assert code_commit() == head
    (tmp_path / "results" / "file").write_text("a row more")
    (tmp_path / "runs").mkdir()
    assert code_commit() == head
    (tmp_path / "uda" / "file").write_text("changed")
    assert code_commit() == f"{head}-dirty"
    git("checkout", "--", "uda")
    (tmp_path / "uda" / "new").write_text("a module that nobody committed")
    assert code_commit() == f"{head}-dirty"


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert code_commit() is None


def test_a_run_of_an_older_version_goes_on_where_the_new_settings_are_left_alone(tmp_path):
    """A setting that is not in its config.yaml has today's default; the run is refused where the config changes it."""
    config = AdaptationConfig.load("digits_avh", [f"output={tmp_path}"])
    saved = config.model_dump(mode="json")
    del saved["transforms"]["source"]["whole_pixels"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    assert RunFolder(config).path == tmp_path
    changed = AdaptationConfig.load("digits_avh", [f"output={tmp_path}", "transforms.source.whole_pixels=true"])
    with pytest.raises(UserError, match=r"transforms.source.whole_pixels: False -> True"):
        RunFolder(changed)
    saved["transforms"]["source"]["whole_pixel"] = True
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(
        UserError, match=r"transforms.source.whole_pixel: True -> None; transforms.source.whole_pixels: None"
    ):
        RunFolder(config)


def test_the_first_weights_are_those_that_the_run_began_with(tmp_path):
    """Another version of timm may have another default tag by the time the run goes on."""
    config = AdaptationConfig.load("digits_avh.yaml", [f"output={tmp_path / 'run'}"])
    for tag in ("a1_in1k", "b2_in1k"):
        RunFolder(config).create(["command"], {}, {"from": "hub", "tag": tag})
        kept = json.loads((tmp_path / "run" / "environment.json").read_text())
        assert kept["weights"]["tag"] == "a1_in1k"
    (tmp_path / "run" / "environment.json").write_text("cut of")
    RunFolder(config).create(["command"], {}, {"from": "none"})
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["weights"] == {"from": "none"}


def test_a_home_folder_in_a_saved_config_is_the_same_run(tmp_path, monkeypatch):
    """As an older version saved it, which took `~` for a folder's name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["data.dataset=null", f"output={tmp_path / 'run'}"]
    config = AdaptationConfig.load("visda_source", [*words, "data.source=~/a", "data.target=~/b"])
    saved = config.model_dump(mode="json")
    assert saved["data"]["source"] == str(tmp_path / "a")
    saved["data"]["source"] = "~/a"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(saved))
    assert RunFolder(config).path == tmp_path / "run"


@pytest.mark.parametrize("show", ["print", "list", "nothing"])
def test_a_log_shows_lines_where_it_is_told_to_and_keeps_them_all(tmp_path, capsys, show):
    shown = []
    log = RunLog() if show == "print" else RunLog(show=shown.append if show == "list" else None)
    log("before the folder")
    log.open(tmp_path / "log.txt")
    log("two\nlines")
    assert capsys.readouterr().out == ("before the folder\ntwo\nlines\n" if show == "print" else "")
    assert shown == (["before the folder", "two\nlines"] if show == "list" else [])
    kept = [line.partition("  ")[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert kept == ["before the folder", "two", "lines"]


def test_a_folder_is_locked_until_it_is_released(tmp_path):
    """A notebook's process lives on after its runs."""
    pytest.importorskip("fcntl")
    script = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def another_process_may_begin():
        command = [sys.executable, "-S", "-c", script, tmp_path / "run" / ".lock"]
        return subprocess.run(command, capture_output=True).returncode == 0

    folder = RunFolder(AdaptationConfig.load("digits_avh.yaml", [f"output={tmp_path / 'run'}"]))
    folder.create(["command"])
    assert not another_process_may_begin()
    folder.release()
    assert another_process_may_begin()
