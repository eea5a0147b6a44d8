"""Tables in README.md and docs/ are the committed CSVs; docs/visda.md is the card and the published figures."""

import json
import re

import pytest

from uda.core.resources import CHECKOUT
from uda.data.cards import CARDS
from uda.kinds import register_tables
from uda.tables import Ledger, blocks_of, load_table, published_latex, published_markdown, read_csv, to_latex

register_tables()

RESULTS = CHECKOUT / "results"
TABLES = sorted(path.stem for path in (CHECKOUT / "configs" / "tables").glob("*.yaml"))


# docs/study.md has tables of another kind: tests/docs/test_study.py.
DOCUMENTS = ("README.md", "docs/results.md", "docs/bank_results.md", "docs/generalization_results.md")
WITH_TABLES = {name: (CHECKOUT / name).read_text(encoding="utf-8") for name in DOCUMENTS}


def places():
    """What stands between the marks of each table's block; no block is in two places."""
    pattern = r"<!-- table (\w+) -->\n(.*?)<!-- end \1 -->"
    found = [place for text in WITH_TABLES.values() for place in re.findall(pattern, text, flags=re.DOTALL)]
    assert len(dict(found)) == len(found) == sum(text.count("<!-- table ") for text in WITH_TABLES.values())
    return dict(found)


def test_every_place_of_a_table_is_that_of_a_block_and_every_table_has_one():
    published = {f"{path.stem}_published" for path in (RESULTS / "published").glob("*.csv")}
    blocks = {name: blocks_of(load_table(name), RESULTS) for name in TABLES}
    assert places().keys() <= published.union(*blocks.values())
    assert [name for name in TABLES if not any(places().get(block) for block in blocks[name])] == []
    for name in ("digits", "pacs"):
        assert {block for block, text in blocks[name].items() if text} - places().keys() == {f"{name}_scores"}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_in_a_document_is_what_its_csvs_give(name):
    """Every block and the LaTeX; so a CSV that grew shows if it was not written out."""
    table = load_table(name)
    for block, markdown in blocks_of(table, RESULTS).items():
        assert places().get(block, markdown) == markdown
    latex = to_latex(read_csv(RESULTS / f"{name}.csv"), table.reference, table.measure)
    assert (RESULTS / f"{name}.tex").read_text(encoding="utf-8") == latex


def test_the_main_table_stands_in_readme():
    assert "<!-- table digits -->" in WITH_TABLES["README.md"]


@pytest.mark.parametrize("name", TABLES)
def test_a_results_csv_is_of_its_table_and_as_the_tool_writes_it(name, tmp_path):
    """Rows that the table has, in its order, each with accuracy by class, steps, reports; writing changes nothing."""
    table, ledger = load_table(name), Ledger.read(RESULTS, load_table(name))
    assert {run[0] for run in ledger.runs} <= {row.name for row in table.rows}
    assert ledger.reports.keys() == ledger.runs.keys()
    for record in ledger.runs.values():
        shares = json.loads(record["per_class"]).values()
        assert sum(shares) / len(shares) == pytest.approx(float(record["class_mean"]), abs=1e-5)
        assert int(record["steps"]) > 0 and record["commit"] and record["finished"]
    ledger.write(tmp_path, table)
    for file in (f"{name}.csv", f"{name}_reports.csv"):
        assert (tmp_path / file).read_bytes() == (RESULTS / file).read_bytes()


def test_published_figures_are_those_of_their_csv():
    for path in (RESULTS / "published").glob("*.csv"):
        records = read_csv(path)
        assert places()[f"{path.stem}_published"] == published_markdown(records)
        assert path.with_suffix(".tex").read_text(encoding="utf-8") == published_latex(records)


def test_figures_in_readmes_text_are_those_of_the_tables():
    """Differences to CBST on digits of the best methods, of AVC on PACS, and what the paper has on VisDA-2017."""
    text = " ".join(WITH_TABLES["README.md"].partition("## Results")[2].partition("<!--")[0].split())
    cells = re.findall(r"^\| (.+?) \|.*\| (\S+) \[.*\|$", places()["digits"], flags=re.MULTILINE)
    gains = {method: float(difference) for method, difference in cells}
    best = sorted(gains, key=gains.get)[-4:]
    assert set(best) == {"SHOT", "ADR", "MCC", "FixMatch"} and gains["CBST + AVH"] == 0
    assert f"{gains[best[0]]} to {gains[best[-1]]} points ahead of CBST" in text
    runs = Ledger.read(RESULTS, load_table("pacs")).runs
    accuracy = {run: 100 * float(record["class_mean"]) for run, record in runs.items()}
    pairs = [(accuracy[run], accuracy["CBST", *run[1:]]) for run in accuracy if run[0] == "CBST + AVH"]
    leads = [avc - softmax for avc, softmax in pairs]
    assert len(leads) == 6 and f"in all six runs, by {min(leads):.1f} to {max(leads):.1f} points" in text
    paper = {row["method"]: row["mean"] for row in read_csv(RESULTS / "published" / "visda2017.csv")}
    assert f"{paper['CBST + AVH']} % for CBST + AVH and {paper['CBST']} % for CBST" in text


def test_published_figures_of_the_first_visda_run_are_those_of_their_csvs():
    """A row for every VisDA config; a method's figure is tllib's or SHOT's, or marked as the paper's."""
    page = (CHECKOUT / "docs" / "visda.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `visda_(\w+)\.yaml` \| [^|]*[a-z][^|]* \| ([^|]*) \|$", page, flags=re.MULTILINE))
    assert rows.keys() == {path.stem.removeprefix("visda_") for path in CHECKOUT.glob("configs/visda_*.yaml")}
    paper, others = (
        {row["method"]: row["mean"] for row in read_csv(RESULTS / "published" / f"{name}.csv")}
        for name in ("visda2017", "visda2017_reruns")
    )
    for method, name in {"mmd": "DAN", "cdan": "CDAN (without +E)", "fixmatch": "FixMatch"}.items():
        assert rows.pop(method) == others[name]
    for method in ("dann", "mcd", "mcc", "shot"):
        assert rows.pop(method) == others[method.upper()]
    for method in ("adr", "ent"):
        assert rows.pop(method) == f"{paper[method.upper()]} (the paper)"
    for method, name in {"cbst": "CBST", "crst": "CRST", "avh": "CBST + AVH"}.items():
        assert rows.pop(method) == paper[name]
    cbst = "Source (CBST's)"
    assert rows == {
        "source": f"{paper[cbst]} (CBST's), {paper['Source']} (the paper)",
        "entmin": "none",
    }
    inner = {name: paper[name] for name in ("MMD", "DANN", "MCD")}
    assert f"({', '.join(f'{name} {mean}' for name, mean in inner.items())})" in page


def test_sizes_of_the_first_visda_run_are_those_of_the_card():
    page, card = (CHECKOUT / "docs" / "visda.md").read_text(encoding="utf-8"), CARDS["visda2017"]
    for file in card.files:
        assert f"| [{file.name}]({file.url}) | {file.bytes:,} |" in page
    for domain in card.domains.values():
        assert f"{domain.images:,}" in page
    of_class = card.domains["validation"].per_class
    assert f"{of_class['car']:,} of the 55,388 photos are cars and {of_class['knife']:,} knives" in page
