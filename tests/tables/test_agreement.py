"""Agreement of runs that differ by their seed alone."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from uda.tables.agreement import agreement_markdown, between_seeds, update_agreement
from uda.tables.ledger import read_csv


@dataclass
class MadeUp:
    """What the agreement needs of a job."""

    row: SimpleNamespace
    pair: tuple[str, str]
    seed: int
    folder: Path
    digest: str


@pytest.fixture
def job(tmp_path):
    def make(row, seed, classes, target="photo", digest="new"):
        folder = tmp_path / f"{row}{seed}{target}"
        folder.mkdir(exist_ok=True)
        lines = [f"{number}.png,{name}" for number, name in enumerate(classes)]
        (folder / "predictions.csv").write_text("\n".join(["path,prediction", *lines]) + "\n")
        return MadeUp(SimpleNamespace(name=row), ("sketch", target), seed, folder, digest)

    return make


def test_by_hand(job):
    jobs = [job("A", 0, "aabb"), job("A", 1, "aaba"), job("A", 2, "bbbb"), job("B", 0, "aaaa")]
    (found,) = between_seeds(jobs)
    assert found["row"] == "A" and found["seeds"] == "0 1 2"
    assert found["agreement"] == pytest.approx((3 / 4 + 2 / 4 + 1 / 4) / 3)


def test_runs_that_predicted_other_images_are_no_pair(job):
    jobs = [job("A", 0, "aabb"), job("A", 1, "aaba"), job("A", 2, "aab"), job("B", 0, "a"), job("B", 1, "ab")]
    (found,) = between_seeds(jobs)
    assert found["agreement"] == 3 / 4


def test_more_runs_of_another_recipe_do_not_stay(job, tmp_path):
    path = tmp_path / "made_up_agreement.csv"

    def update(jobs):
        update_agreement(path, jobs, "A", {("A", "sketch", "photo", str(seed)): "new" for seed in range(3)})
        return [(record["seeds"], record["agreement"]) for record in read_csv(path)]

    old, new = (
        [job("A", seed, classes, digest=recipe) for seed, classes in enumerate(("ab", "aa", "aa"))]
        for recipe in ("old", "new")
    )
    assert update(old) == [("0 1 2", f"{2 / 3:.6f}")]
    assert update([]) == [("0 1 2", f"{2 / 3:.6f}")], "it stays until there is something else"
    assert update(new[:2]) == [("0 1", "0.500000")]
    assert update(new) == [("0 1 2", f"{2 / 3:.6f}")]
    assert update(new[:2]) == [("0 1 2", f"{2 / 3:.6f}")], "the folder of the third is gone"


def test_what_is_known_stays_where_folders_are_gone(job, tmp_path):
    path = tmp_path / "made_up_agreement.csv"
    update_agreement(path, [], "AB", {})
    assert not path.exists()
    update_agreement(path, [job("A", 0, "ab"), job("A", 1, "aa")], "AB", {})
    update_agreement(path, [job("B", 0, "ab"), job("B", 1, "ab")], "AB", {})
    assert [(record["row"], record["agreement"]) for record in read_csv(path)] == [("A", "0.500000"), ("B", "1.000000")]
    update_agreement(path, [], "BA", {})
    assert [record["row"] for record in read_csv(path)] == ["B", "A"]
    update_agreement(path, [], "AB", {})
    table = agreement_markdown(read_csv(path))
    assert "| A | 50.0 |" in table and "| B | 100.0 |" in table
    assert agreement_markdown([]) == ""
