"""Tables of runs: real tiny runs to CSV and Markdown, and the arithmetic on records made up by hand."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from uda.config import ROOT, load_config
from uda.errors import UserError
from uda.tables import (
    COLUMNS,
    INNER,
    insert_markdown,
    jobs_of,
    load_table,
    read_csv,
    run_jobs,
    to_csv,
    to_markdown,
    write_table,
)

SEEDS = (0, 1)
BROKEN = "Nothing selected"


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory):
    """Source and AVH rows that work, and between them a row that selects nothing and so stops."""
    shared = [f"data.root={tiny.parent}"]
    nothing = ["self_training.portion.start=0.01", "self_training.portion.max=0.01"]
    content = {
        "seeds": list(SEEDS),
        "pairs": [["drawn", "photos"]],
        "rows": [
            {"name": "Source", "cfg": str(tiny), "set": [*shared, "method=source_only"]},
            {"name": BROKEN, "cfg": str(tiny), "set": [*shared, *nothing]},
            {"name": "CBST + AVH", "cfg": str(tiny), "set": shared},
        ],
    }
    path = tmp_path_factory.mktemp("table") / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_table(path)


@pytest.fixture(scope="module")
def ran(table, tmp_path_factory):
    """All runs of the table (the broken row with one seed): jobs, the error that it ended with, what was logged."""
    runs = tmp_path_factory.mktemp("runs")
    jobs = [job for job in jobs_of(table, runs, ["runtime.workers=0"]) if (job.row.name, job.seed) != (BROKEN, 1)]
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        with pytest.raises(UserError) as caught:
            run_jobs(jobs, 2, log=lines.append)
    return jobs, str(caught.value), lines


def finished(jobs):
    return [job for job in jobs if job.row.name != BROKEN]


def test_jobs_are_rows_times_pairs_times_seeds_source_first(table, tmp_path):
    jobs = jobs_of(table, tmp_path)
    assert [(job.row.name, job.seed) for job in jobs] == [
        (name, seed) for name in ("Source", BROKEN, "CBST + AVH") for seed in SEEDS
    ]
    assert [job.is_source for job in jobs] == [True] * 2 + [False] * 4
    assert jobs[-1].folder == tmp_path / "small" / "cbst_avh" / "drawn_to_photos" / "seed1"
    assert len({job.folder for job in jobs}) == len(jobs)


def test_other_rows_start_from_the_source_model_of_their_seed(ran):
    jobs, _, _ = ran
    for seed in SEEDS:
        source, avh = (next(j for j in jobs if (j.row.name, j.seed) == (n, seed)) for n in ("Source", "CBST + AVH"))
        weights = source.folder / "checkpoints" / "final.safetensors"
        assert yaml.safe_load((avh.folder / "config.yaml").read_text())["source"]["checkpoint"] == str(weights)
        before, after = (json.loads((j.folder / "results.json").read_text()) for j in (source, avh))
        assert after["source_only"]["class_mean"] == before["final"]["class_mean"]


def test_a_failing_run_is_named_with_its_log_while_the_others_finish(ran):
    jobs, error, lines = ran
    assert error.startswith(f"{BROKEN}, drawn to photos, seed 0: exit code 2, see ")
    log = Path(error.rpartition("see ")[2])
    assert "selects no target image" in log.read_text()
    assert all(job.record() for job in finished(jobs)) and len(finished(jobs)) == 4
    assert [line for line in lines if line.startswith("FAILED")] == [f"FAILED {error}"]
    assert len(lines) == len(jobs)


def test_a_failed_run_has_no_record(ran):
    jobs, _, _ = ran
    (broken,) = (job for job in jobs if job.row.name == BROKEN)
    assert broken.record() is None


def test_csv_has_a_row_a_run_with_the_figures_of_its_results(table, ran, tmp_path):
    jobs, _, _ = ran
    write_table(table, jobs, tmp_path, document=None)
    with open(tmp_path / "small.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["row"], int(row["seed"])) for row in rows] == [
        (name, seed) for name in ("Source", "CBST + AVH") for seed in SEEDS
    ]
    for row, job in zip(rows, finished(jobs), strict=True):
        results = json.loads((job.folder / "results.json").read_text())
        assert (row["config"], row["source"], row["target"]) == ("tiny", "drawn", "photos")
        assert float(row["class_mean"]) == pytest.approx(results["final"]["class_mean"], abs=1e-6)
        assert float(row["source_only"]) == pytest.approx(results["source_only"]["class_mean"], abs=1e-6)
        if results["rounds"]:
            last = results["rounds"][-1]
            assert int(row["selected"]) == last["selected"] > 0
            assert [float(row[key]) for key in INNER] == pytest.approx([last[key] for key in INNER], abs=1e-6)
            assert float(row["tp_rate_round0"]) == pytest.approx(results["rounds"][0]["tp_rate"], abs=1e-6)
            assert float(row["oracle_best"]) >= float(row["class_mean"]) - 1e-6
        else:
            assert [row[key] for key in ("selected", "oracle_best", *INNER)] == [""] * (2 + len(INNER))


def test_the_document_gets_the_table_of_the_csv(table, ran, tmp_path):
    jobs, _, _ = ran
    document = tmp_path / "README.md"
    document.write_text("# Runs\n\n<!-- table small -->\nold\n<!-- end small -->\n\nThe end.\n")
    markdown = write_table(table, jobs, tmp_path / "results", document)
    assert markdown == to_markdown(read_csv(tmp_path / "results" / "small.csv"))
    assert "| CBST + AVH |" in markdown and BROKEN not in markdown
    assert document.read_text() == f"# Runs\n\n<!-- table small -->\n{markdown}<!-- end small -->\n\nThe end.\n"


def test_finished_runs_are_not_run_again(ran):
    jobs, _, _ = ran
    places = [path for job in finished(jobs) for path in (job.folder.parent, *job.folder.parent.rglob("*"))]
    before = {path: path.stat().st_mtime_ns for path in places}
    lines = []
    run_jobs(finished(jobs), 1, log=lines.append)
    assert lines == []
    assert {path: path.stat().st_mtime_ns for path in places} == before


def test_a_run_of_another_config_is_refused_with_the_key(table, ran, tmp_path):
    jobs, _, _ = ran
    runs = jobs[0].runs
    changed = table.rows[2].model_copy(update={"set": [*table.rows[2].set, "self_training.rounds=5"]})
    other = table.model_copy(update={"rows": [table.rows[0], changed]})
    with pytest.raises(UserError, match=r"cbst_avh.*another config.*self_training\.rounds: 2 -> 5"):
        write_table(other, jobs_of(other, runs), tmp_path, document=None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"self_training\.rounds: 2 -> 5"):
        run_jobs(jobs_of(other, runs), 1, log=print)


def test_no_finished_run_is_an_error_and_writes_nothing(table, tmp_path):
    with pytest.raises(UserError, match="'small': no finished run in"):
        write_table(table, jobs_of(table, tmp_path / "runs"), tmp_path, document=None)
    assert list(tmp_path.iterdir()) == []


def record(row, seed, class_mean, target="photos", **values):
    """A made-up finished run; what is not given is empty, as for a run without rounds."""
    empty = dict.fromkeys(COLUMNS)
    return {
        **empty, "row": row, "config": "made_up", "source": "drawn", "target": target, "seed": seed,
        "class_mean": class_mean, **values,
    }  # fmt: skip


@pytest.fixture
def markdown_of(tmp_path):
    """Markdown of records that went through the CSV, as they always do; its table lines as lists of cells by method."""

    def make(records):
        path = tmp_path / "made_up.csv"
        path.write_text(to_csv(records), encoding="utf-8")
        blocks = []
        for line in to_markdown(read_csv(path)).splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if line.startswith("| Method "):
                blocks.append({"head": cells[1:]})
            elif line.startswith("| "):
                blocks[-1][cells[0]] = cells[1:]
        return blocks

    return make


def test_mean_and_standard_deviation_by_hand(markdown_of):
    """90, 92, 97: mean 93, deviations -3, -1, 4, squares 26 over n - 1 = 2 is 13, root 3.606.

    TP rates .5, .6, .7: mean .6, deviations -.1, 0, .1, squares .02 over 2, root .1. A single run has no deviation.
    """
    shared = {"overall": 0.5, "oracle_best": 0.97, "tp_rate_round0": 0.25}
    records = [
        record("CBST", seed, accuracy, label_free=accuracy, tp_rate=rate, **shared)
        for seed, (accuracy, rate) in enumerate([(0.90, 0.5), (0.92, 0.6), (0.97, 0.7)])
    ]
    accuracy, inner = markdown_of([record("Source", 0, 0.5), *records])
    columns = dict(zip(accuracy["head"], accuracy["CBST"], strict=True))
    assert columns["drawn to photos"] == columns["label-free choice"] == "93.0 ± 3.6"
    assert columns["overall"] == "50.0 ± 0.0" and columns["oracle best"] == "97.0 ± 0.0"
    source = dict(zip(accuracy["head"], accuracy["Source"], strict=True))
    assert source["drawn to photos"] == "50.0" and source["overall"] == source["oracle best"] == ""
    columns = dict(zip(inner["head"], inner["CBST"], strict=True))
    assert columns["TP rate"] == "0.600 ± 0.100" and columns["TP rate, first round"] == "0.250 ± 0.000"
    assert columns["AVH"] == "" and "Source" not in inner


def test_several_pairs_have_a_column_each_and_their_mean(markdown_of):
    """Seed 0: 80 and 60, mean 70; seed 1: 90 and 70, mean 80; over seeds 75 ± 10 / sqrt 2 = 7.07."""
    records = [
        record("CBST", seed, accuracy, target)
        for seed, target, accuracy in [(0, "photos", 0.8), (0, "art", 0.6), (1, "photos", 0.9), (1, "art", 0.7)]
    ]
    accuracy, _ = markdown_of(records)
    columns = dict(zip(accuracy["head"], accuracy["CBST"], strict=True))
    assert columns["drawn to photos"] == "85.0 ± 7.1"
    assert columns["drawn to art"] == "65.0 ± 7.1"
    assert columns["mean"] == "75.0 ± 7.1"


def test_missing_runs_leave_the_cells_of_what_is_there(markdown_of):
    """AVH lacks seed 1 on art: its mean is seed 0's alone, (80 + 60) / 2. CRST has one run: no mean over the pairs."""
    records = [
        *(record("CBST", seed, 0.5, target) for seed in SEEDS for target in ("photos", "art")),
        record("AVH", 0, 0.8, "photos"),
        record("AVH", 1, 0.9, "photos"),
        record("AVH", 0, 0.6, "art"),
        record("CRST", 1, 0.7, "art"),
    ]
    accuracy, _ = markdown_of(records)
    rows = {name: dict(zip(accuracy["head"], accuracy[name], strict=True)) for name in ("CBST", "AVH", "CRST")}
    assert [rows[name]["seeds"] for name in ("CBST", "AVH", "CRST")] == ["2", "2", "1"]
    assert rows["CBST"]["mean"] == "50.0 ± 0.0"
    assert [rows["AVH"][key] for key in ("drawn to photos", "drawn to art", "mean")] == ["85.0 ± 7.1", "60.0", "70.0"]
    assert [rows["CRST"][key] for key in ("drawn to photos", "drawn to art", "mean")] == ["", "70.0", ""]


def test_markdown_goes_between_the_markers_and_nowhere_else():
    before = "# Title\n\n<!-- table other -->\nleft\n<!-- end other -->\ntext <!-- comment -->\n"
    after = "\n\nmore | text\n<!-- table last -->\n<!-- end last -->\n"
    document = f"{before}<!-- table mine -->\nold\n\nolder\n<!-- end mine -->{after}"
    expected = f"{before}<!-- table mine -->\n| new |\n<!-- end mine -->{after}"
    assert insert_markdown(document, "mine", "| new |\n") == expected
    assert insert_markdown(expected, "mine", "| new |\n") == expected


@pytest.mark.parametrize(
    "document",
    [
        "nothing here",
        "<!-- table mine -->\n",
        "<!-- end mine -->\n",
        "<!-- table other -->\n<!-- end other -->\n",
        "<!-- end mine -->\n<!-- table mine -->\nall that follows\n",
    ],
)
def test_missing_or_crossed_markers_are_named(document):
    with pytest.raises(UserError, match=re.escape("<!-- table mine --> and <!-- end mine -->")):
        insert_markdown(document, "mine", "| new |\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: []\npairs: [[a, b]]\nrows: [{name: A, cfg: c.yaml}]\n", r"wrong\.yaml: seeds: "),
        ("seeds: [0]\npairs: [[a]]\nrows: [{name: A, cfg: c.yaml}]\n", r"wrong\.yaml: pairs\.0"),
        ("seeds: [0]\npairs: [[a, b]]\nrows: [{name: A, config: c.yaml}]\n", r"wrong\.yaml: rows\.0\.cfg: "),
        ("seeds: [0]\n", r"wrong\.yaml: rows: "),
    ],
)
def test_a_wrong_table_is_refused_with_file_and_key(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_table(path)


def test_an_unknown_table_names_the_known_ones():
    with pytest.raises(UserError, match=r"digit\.yaml|digit: .*known: digits, pacs"):
        load_table("digit")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "tables").glob("*.yaml")))
def test_every_table_of_the_project_has_valid_runs(name, tmp_path):
    """Each job's config loads, each has a folder of its own, and all but the source row start from a source model."""
    table = load_table(name)
    jobs = jobs_of(table, tmp_path)
    assert len({job.folder for job in jobs}) == len(jobs) == len(table.rows) * len(table.pairs) * len(table.seeds)
    for job in jobs:
        config = load_config(job.row.cfg, job.overrides())
        assert (config.seed, config.data.source, config.data.target) == (job.seed, *job.pair)
        assert (config.source.checkpoint is None) == job.is_source
