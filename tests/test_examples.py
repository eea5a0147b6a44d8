"""The scripts in examples/ run, and show what they are meant to show."""

import importlib.util
import re
import tempfile

import pytest

from uda.core.resources import CHECKOUT
from uda.selection.selectors import SELECTORS

EXAMPLES = sorted((CHECKOUT / "examples").glob("*.py"))


def load(name):
    """An example as a module; a script without `main` runs here."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", CHECKOUT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_says_what_it_is_and_has_a_test(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60 and text.startswith('"""')
    assert f"def test_{path.stem}(" in (CHECKOUT / "tests" / "test_examples.py").read_text(encoding="utf-8")


def test_avc_in_your_loop(capsys):
    load("avc_in_your_loop")
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 7 and lines[0].startswith("round 0: accuracy ") and lines[-1].startswith("at the end: accuracy ")
    )
    first, last = (float(re.search(r"accuracy ([\d.]+)", line)[1]) for line in (lines[0], lines[-1]))
    assert last > first + 0.05, "self-training helps"
    right = [float(re.search(r"selected, ([\d.]+)", line)[1]) for line in lines[:-1]]
    assert right[0] > first + 0.1, "the surest are more often right than all"


def test_selector_of_your_own(in_folder, fewer_digits, capsys):
    """At a smaller size, without a page."""
    try:
        module = load("selector_of_your_own")
        smaller = {"data.rendered_per_class": 10, "self_training.rounds": 1, "self_training.steps": 2}
        module.SMALL |= {**smaller, "report.page": False}
        module.main()
    finally:
        SELECTORS._entries.pop("mine", None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["avc", "mine"]
    assert "selector: mine" in (in_folder / "runs/selector_mine/config.yaml").read_text()
    before = {re.search(r"class mean ([\d.]+) before", line)[1] for line in lines}
    assert len(before) == 1, "both begin with the same source model"


def test_two_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    load("two_folders").main()
    lines = capsys.readouterr().out.splitlines()
    assert re.search(r"photos/circle/0.png: (circle|square|triangle) with probability [01]\.\d{3}$", lines[-1])
    text = "\n".join(lines)
    source, final = (float(re.search(rf"^  {name} +([\d.]+)", text, re.M)[1]) for name in ("source only", "final"))
    assert final > source, "the adapted model is better on the photos"
