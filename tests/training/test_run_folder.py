"""What a run writes down about the code that made it."""

import json
import subprocess
import sys

import pytest
import yaml

from uda.adaptation.config import AdaptationConfig
from uda.core.errors import UserError
from uda.training.run_folder import ANOTHER_REPOSITORY, RunFolder, RunLog, code_commit


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Call git in a new repository in `tmp_path`."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")

    def call(*arguments):
        words = ["git", *identity, *arguments]
        return subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    for name in ANOTHER_REPOSITORY:
        monkeypatch.delenv(name, raising=False)
    call("init", "--quiet")
    return call


def write_project(folder, name="uda-toolkit"):
    """The files by which a checkout is known; the package's folder."""
    for part in ("uda", "results"):
        (folder / part).mkdir(parents=True)
    (folder / "setup.cfg").write_text(f"[metadata]\nname = {name}\nversion = attr: uda.__version__\n")
    (folder / "uda" / "__init__.py").write_text("as committed")
    (folder / "results" / "file").write_text("as committed")
    return folder / "uda"


def commit_all(git):
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    return git("rev-parse", "--short=12", "HEAD")


def test_commit_is_dirty_by_code_alone(tmp_path, git):
    """A table writes its CSV beside the code while it runs: that must not mark the runs after it."""
    package = write_project(tmp_path)
    head = commit_all(git)
    assert code_commit(package) == head
    (tmp_path / "results" / "file").write_text("a row more")
    (tmp_path / "runs").mkdir()
    assert code_commit(package) == head
    (package / "__init__.py").write_text("changed")
    assert code_commit(package) == f"{head}-dirty"
    git("checkout", "--", "uda")
    (package / "new").write_text("a module that nobody committed")
    assert code_commit(package) == f"{head}-dirty"


@pytest.mark.parametrize("ignored", [True, False])
def test_an_installed_package_has_no_commit_within_the_users_repository(tmp_path, git, ignored):
    """A wheel in a virtual environment in a project's folder, which git ignores or not; even one that is committed."""
    installed = tmp_path / "venv" / "site-packages" / "uda"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("from a wheel")
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = mine\n")
    (tmp_path / ".gitignore").write_text("venv/\n" * ignored)
    commit_all(git)
    assert code_commit(installed) is None


def test_a_copy_of_the_project_within_the_users_repository_has_no_commit(tmp_path, git):
    package = write_project(tmp_path / "vendored" / "uda-toolkit-0.1.0")
    commit_all(git)
    assert code_commit(package) is None


def test_the_package_in_the_top_folder_of_another_project_has_no_commit(tmp_path, git):
    """`pip install --target .` in one's own repository, or a copy of the package in it."""
    package = write_project(tmp_path, name="mine")
    commit_all(git)
    assert code_commit(package) is None
    (tmp_path / "setup.cfg").unlink()
    assert code_commit(package) is None
    (tmp_path / "setup.cfg").write_text("no section")
    assert code_commit(package) is None


def test_a_project_that_git_does_not_track_has_no_commit(tmp_path, git):
    """A release unpacked into a repository that holds something else."""
    (tmp_path / "notes").write_text("mine")
    commit_all(git)
    assert code_commit(write_project(tmp_path)) is None


def test_no_commit_without_git(tmp_path, git, tmp_path_factory, monkeypatch):
    unpacked = write_project(tmp_path_factory.mktemp("unpacked"))
    assert code_commit(unpacked) is None, "no repository"
    package = write_project(tmp_path)
    assert code_commit(package) is None, "nothing is committed"
    assert commit_all(git) == code_commit(package)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_commit(package) is None, "no such command"


def test_a_git_hook_does_not_name_its_own_repository(tmp_path, git, monkeypatch):
    """git tells a hook by variables which repository it is for: a run started there looks at its own."""
    package = write_project(tmp_path)
    head = commit_all(git)
    other = tmp_path / "other"
    subprocess.run(["git", "init", "--quiet", other], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert code_commit(package) == head


def test_a_run_of_an_older_version_resumes_where_the_new_settings_are_left_alone(tmp_path):
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
    """Another version of timm may have another default tag by the time the run is resumed."""
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
