"""docs/study.md is true: its tables are the committed CSVs, its figures and links lead somewhere."""

import re
from pathlib import Path

import pytest

from uda.core.resources import CHECKOUT
from uda.hardness.study.claims import plateaus_first, stronger_than
from uda.hardness.study.publish import blocks_of, both_forms, figures_of, publish
from uda.report.figures import new_axes
from uda.report.findings import Findings
from uda.tables import read_csv

DOCUMENT = CHECKOUT / "docs" / "study.md"
TRAINING = [
    {"run": "net", "accuracy, %": 87.654321, "AVH, in 1 / K": 0.5},
    {"run": "else", "accuracy, %": 85.0, "AVH, in 1 / K": 0.75},
]


def faults(document: Path, results: Path) -> list[str]:
    """What is wrong with a document that `uda hardness all --into` has filled, a line each."""
    text = document.read_text(encoding="utf-8")
    marks = re.findall(r"<!-- table (\w+) -->", text)
    places = dict(re.findall(r"<!-- table (\w+) -->\n(.*?)<!-- end \1 -->", text, flags=re.DOTALL))
    blocks = blocks_of(results)
    unclear = [name for name in dict.fromkeys(marks) if marks.count(name) > 1 or name not in places]
    found = [f"table {name}: stands twice, or without its end" for name in unclear]
    found += [f"table {name}: no {name}.csv" for name in places if name not in blocks]
    found += [f"{name}.csv: no place in the document" for name in blocks if name not in places]
    other = [name for name in places if name in blocks and places[name] != blocks[name]]
    found += [f"table {name}: not what {name}.csv gives" for name in other]
    shown = both_forms(figures_of(text))
    found += [f"figure {name}: not there" for name in shown if not (document.parent / name).is_file()]
    links = [link for link in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)[^)]*\)", text) if link not in shown]
    return found + [f"link {link}: leads nowhere" for link in links if not (document.parent / link).exists()]


@pytest.fixture
def made(tmp_path):
    """A small document, filled in from one table and one figure."""
    findings = Findings(tmp_path / "page", "")
    findings.figure("rho", new_axes(2, 2).figure, "", "", [])
    document = tmp_path / "docs" / "study.md"
    document.parent.mkdir()
    document.write_text(
        "![rho](figures/rho.png) [rules](../results/hardness_training.csv) [paper](https://example.org/x) [up](#top)\n"
        "<!-- table hardness_training -->\n<!-- end hardness_training -->\n"
    )
    publish({"hardness_training": TRAINING}, tmp_path / "page", tmp_path / "results", document)
    return document, tmp_path / "results"


def test_a_document_that_was_just_filled_has_no_faults(made):
    assert faults(*made) == []
    assert "| net | 87.654 | 0.500 |" in made[0].read_text(), "there is something to be wrong"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("87.654", "87.655"), "table hardness_training: not what hardness_training.csv gives"),
        (("<!-- end hardness_training -->", ""), "table hardness_training: stands twice, or without its end"),
        (("hardness_training -->", "hardness_claims -->"), "table hardness_claims: no hardness_claims.csv"),
        (("hardness_training -->", "hardness_claims -->"), "hardness_training.csv: no place in the document"),
        (("figures/rho.png", "figures/rh.png"), "figure figures/rh.png: not there"),
        (("../results/hardness_training.csv", "../results/none.csv#top"), "link ../results/none.csv: leads nowhere"),
    ],
)
def test_what_is_wrong_with_a_document_is_found(change, fault, made):
    document, results = made
    text = document.read_text()
    assert change[0] in text
    document.write_text(text.replace(*change))
    assert fault in faults(document, results)


def test_a_csv_that_grew_and_a_missing_svg_are_found(made):
    document, results = made
    (document.parent / "figures" / "rho.svg").unlink()
    table = results / "hardness_training.csv"
    table.write_text(table.read_text() + "third,80.0,0.6\n")
    assert faults(document, results) == [
        "table hardness_training: not what hardness_training.csv gives",
        "figure figures/rho.svg: not there",
    ]


made_by_the_study = pytest.mark.skipif(
    not DOCUMENT.is_file(), reason="docs/study.md is not made yet: its trainings are not done"
)


@made_by_the_study
def test_the_document_of_the_study_is_what_its_csvs_give():
    assert blocks_of(CHECKOUT / "results"), "the CSVs it is made from are committed"
    assert faults(DOCUMENT, CHECKOUT / "results") == []


def numbers_of(records):
    """Cells of a CSV as they were: numbers, None, texts."""
    return [{key: None if cell == "" else _number(cell) for key, cell in record.items()} for record in records]


def _number(cell):
    try:
        return float(cell)
    except ValueError:
        return cell


@made_by_the_study
@pytest.mark.parametrize(
    ("table", "claim"),
    [("hardness", lambda rows: stronger_than("confidence", rows)), ("hardness_plateaus", plateaus_first)],
)
def test_verdicts_follow_from_the_committed_numbers_by_the_rules_of_today(table, claim):
    found = claim(numbers_of(read_csv(CHECKOUT / "results" / f"{table}.csv")))
    assert found in read_csv(CHECKOUT / "results" / "hardness_claims.csv")
