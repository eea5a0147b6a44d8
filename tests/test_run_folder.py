"""What a run writes down about the code that made it."""

import subprocess

from uda import run_folder


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
    assert run_folder.code_commit() == head
    (tmp_path / "results" / "file").write_text("a row more")
    (tmp_path / "runs").mkdir()
    assert run_folder.code_commit() == head
    (tmp_path / "uda" / "file").write_text("changed")
    assert run_folder.code_commit() == f"{head}-dirty"
    git("checkout", "--", "uda")
    (tmp_path / "uda" / "new").write_text("a module that nobody committed")
    assert run_folder.code_commit() == f"{head}-dirty"


def test_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert run_folder.code_commit() is None
