"""`uda search` at the command line."""

import re

import pytest

from uda.cli.main import main

WORDS = ["self_training.steps=1", "self_training.rounds=1"]


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("source.optim.lr: {low: 0.01, high: 0.2, log: true}\nself_training.rounds: [1, 2]\n")
    return str(path)


def test_a_search_is_told_in_80_columns_and_goes_on(tiny, space, in_folder, capsys):
    words = ["search", "--cfg", str(tiny), "--space", space, "--trials", "2", "--out", "found", *WORDS]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:])) <= 80
    assert "search   tiny, seed 0: 2 trials -> found" in lines
    assert "given    self_training.rounds: not searched, because it is given" in lines
    assert [line.split()[0] for line in lines if re.match(r" +\d+ +\d\.", line)] == ["0", "1"]
    assert lines[-2:] == ["config   found/best.yaml (for uda adapt --cfg)", "page     found/search.html"]
    assert main(words) == 0
    assert "found is finished: 2 trials, 2 finished" in capsys.readouterr().out
    assert main(["adapt", "--cfg", "found/best.yaml", "--dry-run"]) == 0


def test_a_dry_run_writes_nothing(tiny, space, in_folder, capsys):
    before = sorted(in_folder.iterdir())
    assert main(["search", "--cfg", str(tiny), "--space", space, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "space    source.optim.lr" in said and "cost  " in said and "nothing was written" in said
    assert re.search(r"all      20 trials: about \d+ (s|min), if each is as long as this run", said)
    assert sorted(in_folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trials", "0"], "error: --trials: must be at least 1; got 0"),
        (["--out", "file"], "error: --out: file is a file, not a folder"),
        (["output=there"], "error: output: a search has a folder of its own; choose it by --out"),
        (["source.optim.lrr=1"], "error: command line: source.optim.lrr: unknown key, did you mean 'lr'?"),
    ],
)
def test_mistakes_name_the_flags(words, said, tiny, space, in_folder, capsys):
    (in_folder / "file").write_text("")
    assert main(["search", "--cfg", str(tiny), "--space", space, *words]) == 2
    assert capsys.readouterr().err.splitlines()[0] == said


def test_several_processes_are_refused(tiny, space, in_folder, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["search", "--cfg", str(tiny), "--space", space]) == 2
    assert "start it without torchrun" in capsys.readouterr().err


def test_an_unknown_space_names_the_nearest(tiny, in_folder, capsys):
    assert main(["search", "--cfg", str(tiny), "--space", "digit"]) == 2
    assert "digit: no such space" in capsys.readouterr().err
