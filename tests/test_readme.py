"""README.md and docs/ are true: commands parse, the plugin and the five lines of config run, tables are the CSVs."""

import json
import re
import runpy
import shlex
from configparser import ConfigParser

import pytest

from tests.data.trees import make_folders
from tests.in_process import adapt
from uda.adaptation.config import AdaptationConfig
from uda.cli.main import tree
from uda.data.cards import CARDS
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import names_of
from uda.methods import ADAPTATION_METHODS
from uda.resources import CHECKOUT
from uda.selectors import SELECTORS
from uda.tables import (
    Ledger,
    blocks_of,
    jobs_of,
    load_table,
    published_latex,
    published_markdown,
    read_csv,
    to_latex,
)

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
PLUGIN, METHOD = "my_selectors.py", "my_method.py"


def block_after(marker, language):
    """The fenced block that follows a marker."""
    found = re.search(rf"<!-- {marker} -->\n+```{language}\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    assert found, f"README.md: no {language} block after <!-- {marker} -->"
    return found[1]


def tool_commands():
    """Words of every command that runs something in tools/: in fenced blocks, and in backquotes within the text."""
    documents = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
    texts = [path.read_text(encoding="utf-8").replace("\\\n", " ") for path in documents]
    lines = [
        line
        for text in texts
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.split("\n")
    ]
    prose = "".join(re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE) for text in texts)
    parts = [part for line in [*lines, *re.findall(r"`([^`\n]+)`", prose)] for part in line.split("&&")]
    commands = [
        shlex.split(part, comments=True) for part in parts if re.search(r"\b(python|torchrun)\b.*\btools/", part)
    ]
    return [words[next(i for i, word in enumerate(words) if word.startswith("tools/")) :] for words in commands]


TOOLS = tool_commands()
MAIN = ("tools/self_train.py", "tools/adapt.py")
SELF_TRAIN = [words[1:] for words in TOOLS if words[0] in MAIN]


@pytest.fixture
def forget_mine():
    """Take README's selector and method out of the registries again: a plugin is registered once a process."""
    yield
    SELECTORS._entries.pop("mine", None)
    ADAPTATION_METHODS._entries.pop("nuclear", None)


@pytest.fixture
def plugin(in_folder, forget_mine):
    """README's plugins, word for word, in the working folder."""
    (in_folder / PLUGIN).write_text(block_after("plugin", "python"), encoding="utf-8")
    (in_folder / METHOD).write_text(block_after("method", "python"), encoding="utf-8")


def test_the_two_set_up_commands_come_first():
    """Before any other block, a line each: install and run the main job, install and test."""
    demo, test = (text.strip() for _, text in BLOCKS[:2])
    assert demo == 'pip install -e ".[demo]" && python tools/self_train.py --cfg digits_avh.yaml'
    assert test == 'pip install -e ".[test]" && pytest'
    setup = ConfigParser()
    setup.read(CHECKOUT / "setup.cfg", encoding="utf-8")
    assert {"demo", "test"} <= set(setup["options.extras_require"])


def test_a_selector_of_ones_own_in_ten_lines_makes_a_whole_run(plugin, tiny, in_folder):
    text = block_after("plugin", "python")
    assert len(text.splitlines()) <= 10
    assert text.startswith(f"# {PLUGIN}\n"), "README says what to call the file"
    arguments = ["--cfg", str(tiny), f"plugins={PLUGIN}", "self_training.selector=mine", "output=run"]
    assert adapt(arguments) == 0
    results = json.loads((in_folder / "run" / "results.json").read_text())
    assert results["selector"] == "mine" and [r["round"] for r in results["rounds"]] == [0, 1]
    assert all(r["selected"] > 0 for r in results["rounds"])
    assert "plugins: [my_selectors.py]" in README and "`selector: mine`" in README, "the way through a config"


def test_a_method_of_ones_own_is_named_and_run_like_ours(plugin, tiny, in_folder):
    assert block_after("method", "python").startswith(f"# {METHOD}\n")
    small = ["source.epochs=0", "adaptation={steps: 3, batch: {source: 4, target: 4}}", "report.page=true"]
    assert adapt(["--cfg", str(tiny), f"plugins={METHOD}", "method=nuclear", "output=run", *small]) == 0
    results = json.loads((in_folder / "run" / "results.json").read_text())
    assert results["method"] == "nuclear" and results["steps"] == 3
    assert "nuclear" in (in_folder / "run" / "report.html").read_text()


def test_a_comparison_of_ones_own_has_valid_runs(plugin, in_folder):
    path = in_folder / "my_table.yaml"
    path.write_text(block_after("comparison", "yaml"), encoding="utf-8")
    table = load_table(path)
    jobs = jobs_of(table, in_folder / "runs")
    assert table.name == "my_table" and table.reference == "CBST" and len(jobs) == 9
    assert {job.config.method for job in jobs} == {"source_only", "self_training", "nuclear"}
    assert [job.config.data.source for job in jobs] == ["rendered"] * 9
    (cbst,) = [job for job in jobs if job.row.name == "CBST" and job.seed == 1]
    assert cbst.needs.title == "Source, rendered to mnist, seed 1"


@pytest.mark.parametrize("labelled", [True, False])
def test_data_of_ones_own_in_five_lines_makes_a_whole_run(labelled, in_folder):
    """README's config beside renderings/<class>/*.png and photos.txt; only network and sizes are cut down."""
    text = block_after("own data", "yaml")
    assert len(text.splitlines()) <= 5
    config = in_folder / "mine.yaml"
    config.write_text(text, encoding="utf-8")
    classes = ["ant", "bee", "cat"]
    make_folders(in_folder / "renderings", classes, per_class=6, suffix=".png")
    make_folders(in_folder / "shots", classes, per_class=6, seed=1)
    shots = [(path.relative_to(in_folder), path.parent.name) for path in sorted((in_folder / "shots").rglob("*.jpg"))]
    lines = [f"{path} {name}\n" if labelled else f"{path}\n" for path, name in shots]
    (in_folder / "photos.txt").write_text("".join(lines), encoding="utf-8")
    small = [
        "model.backbone=digits_cnn",
        "model.weights=none",
        "model.head=16",
        "transforms.size=24",
        "transforms.resize=28",
        "source.epochs=1",
        "source.batch_size=6",
        "self_training.rounds=1",
        "self_training.portion.start=0.5",
        "self_training.source_share.start=1.0",
        "self_training.source_share.max=1.0",
        "self_training.batch.mixed=6",
        "runtime.device=cpu",
        "runtime.workers=0",
    ]
    assert adapt(["--cfg", str(config), *small]) == 0
    results = json.loads((in_folder / "runs" / "mine" / "seed0" / "results.json").read_text())
    assert results["selector"] == "avc" and results["rounds"][0]["selected"] > 0
    assert list(results["rounds"][0]["selected_per_class"]) == classes
    assert (results["final"]["class_mean"] is not None) == labelled, "oracle figures need labels"


def test_there_are_commands_to_check():
    assert {words[0] for words in TOOLS} == {f"tools/{path.name}" for path in (CHECKOUT / "tools").glob("*.py")}
    assert sum("--cfg" in words for words in SELF_TRAIN) >= 8


@pytest.mark.parametrize("words", SELF_TRAIN, ids=" ".join)
def test_every_command_of_the_main_tool_is_valid(words, plugin):
    """Options parse, the config exists, the overrides validate, the domains are the card's."""
    options = tree().commands["adapt"].parse_intermixed_args(words)
    if options.list:
        return
    config = AdaptationConfig.load(options.cfg, options.overrides)
    card = CARDS[config.data.dataset]
    assert {*config.data.sources, *config.data.targets} <= card.domains.keys()


@pytest.mark.parametrize("words", [words for words in TOOLS if words[0] == "tools/generalize.py"], ids=" ".join)
def test_every_command_of_domain_generalisation_is_valid(words):
    options = tree().commands["generalize"].parse_intermixed_args(words[1:])
    for file in options.cfg:
        config = GeneralizationConfig.load(file, options.overrides)
        assert set(names_of(config)) <= CARDS[config.data.dataset].domains.keys()


@pytest.mark.parametrize("words", [words for words in TOOLS if words[0] not in MAIN], ids=" ".join)
def test_every_option_of_the_other_tools_is_in_their_help(words, monkeypatch, capsys):
    tool, *arguments = words
    command = arguments[:1] if tool == "tools/hardness.py" else []  # its subcommands have options of their own
    monkeypatch.setattr("sys.argv", [tool, *command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(CHECKOUT / tool), run_name="__main__")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in arguments:
        assert not option.startswith("--") or re.search(rf"{option}\b", text), option
    if tool == "tools/check_data.py":
        assert arguments[0] in CARDS


def test_every_config_family_that_readme_names_is_there():
    rows = re.findall(r"^\| (`<dataset>_\w+\.yaml`.*?) \|", README, flags=re.MULTILINE)
    methods = [name for row in rows for name in re.findall(r"_([a-z]+)", row)]
    with_rounds = {"avh", "cbst", "crst", "source"}
    assert set(methods) - with_rounds == set(ADAPTATION_METHODS) - {"self_training", "source_only"}
    for dataset in ("visda", "digits", "pacs"):
        for method in methods:
            assert (CHECKOUT / "configs" / f"{dataset}_{method}.yaml").is_file()


def test_links_within_the_repository_lead_somewhere():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (CHECKOUT / target).exists()] == []


RESULTS = CHECKOUT / "results"
TABLES = sorted(path.stem for path in (CHECKOUT / "configs" / "tables").glob("*.yaml"))


# docs/hardness.md has tables of another kind: tests/hardness/test_docs.py.
DOCUMENTS = ("README.md", "docs/results.md", "docs/generalization.md")
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
def test_a_table_in_readme_is_what_its_csvs_give(name):
    """Every block and the LaTeX; so a CSV that grew shows if it was not written out."""
    table = load_table(name)
    for block, markdown in blocks_of(table, RESULTS).items():
        assert places().get(block, markdown) == markdown
    latex = to_latex(read_csv(RESULTS / f"{name}.csv"), table.reference, table.measure)
    assert (RESULTS / f"{name}.tex").read_text(encoding="utf-8") == latex


def test_the_main_tables_stand_in_readme():
    for name in ("digits", "pacs", "visda2017_published"):
        assert f"<!-- table {name} -->" in README


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


def test_published_figures_in_readme_are_those_of_their_csv():
    for path in (RESULTS / "published").glob("*.csv"):
        records = read_csv(path)
        assert places()[f"{path.stem}_published"] == published_markdown(records)
        assert path.with_suffix(".tex").read_text(encoding="utf-8") == published_latex(records)


def test_published_figures_in_readmes_text_are_those_of_their_csv():
    text = " ".join(README.partition("<!-- end visda2017_published -->")[2].partition("\n## ")[0].split())
    published = {row["method"]: row["mean"] for row in read_csv(RESULTS / "published" / "visda2017_reruns.csv")}
    named = {name: mean for name, mean in published.items() if f"{name} {mean}" in text}
    assert published.keys() - named.keys() == {"Source"}
    assert len(re.findall(r"\d\d\.\d", text)) == len(named)
    assert "best on the target's labels" in text and "the last report" in text


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
