"""Tables of runs: real tiny runs to CSV, Markdown and LaTeX, and the arithmetic on records made up by hand."""

import json
import os
import re
import shlex
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.in_process import command_in_process, table_tool
from uda.adaptation.config import AdaptationConfig
from uda.adaptation.table import COLUMNS
from uda.core.errors import UserError
from uda.core.interruption import Interrupted
from uda.core.resources import CHECKOUT
from uda.kinds import register_tables
from uda.tables import (
    INNER,
    Ledger,
    choose_jobs,
    classes_markdown,
    collect,
    dry_run,
    inner_markdown,
    jobs_of,
    load_table,
    read_csv,
    run_jobs,
    scores_markdown,
    status_of,
    to_latex,
    to_markdown,
    validator_markdown,
    write_documents,
)
from uda.tables.launchers.local import Local, Worker
from uda.tables.recipe import digest, recipe
from uda.training import run_folder

register_tables()

SEEDS = (0, 1)
BROKEN = "Nothing selected"
ROWS = ("Source", BROKEN, "MCC", "Smoothed", "CBST + AVH", "AVH after MCC")


@pytest.fixture(scope="module")
def table(tiny, tmp_path_factory):
    """Rows that share the first one's source model or do not, and a row that selects nothing and so stops."""
    shared = [f"data.root={tiny.parent}"]
    nothing = ["self_training.portion.start=0.01", "self_training.portion.max=0.01"]
    mcc = ["method=mcc", "source.epochs=0", "adaptation={steps: 5, evaluate_every: 2, batch: {source: 4, target: 4}}"]
    settings = (["method=source_only"], nothing, mcc, ["source.label_smoothing=0.1"], [], [])
    starts = {"AVH after MCC": {"start": "MCC"}}
    content = {
        "reference": "CBST + AVH",
        "seeds": list(SEEDS),
        "pairs": [["drawn", "photos"]],
        "rows": [
            {"name": name, "cfg": str(tiny), "set": [*shared, *own], **starts.get(name, {})}
            for name, own in zip(ROWS, settings, strict=True)
        ],
    }
    path = tmp_path_factory.mktemp("table") / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_table(path)


@pytest.fixture(scope="module")
def in_process():
    with command_in_process("adapt"):
        yield


@pytest.fixture(scope="module")
def ran(table, tmp_path_factory, in_process):
    """Seed 0 of all rows, and seed 1 of two: jobs, the error that they ended with, what was logged."""
    runs = tmp_path_factory.mktemp("runs")
    found = [job for job in jobs_of(table, runs) if job.seed == 0 or job.row.name in ("Source", "CBST + AVH")]
    lines = []
    with pytest.raises(UserError) as caught:
        run_jobs(found, Local(1), log=lines.append)
    return found, str(caught.value), lines


@pytest.fixture
def copied(ran, tmp_path):
    """The jobs with run folders of their own, which a test may spoil."""
    runs = tmp_path / "copied"
    shutil.copytree(ran[0][0].runs, runs)
    return [replace(job, runs=runs) for job in ran[0]]


def finished(found):
    return [job for job in found if job.row.name != BROKEN]


def one(found, name, seed=0):
    return next(job for job in found if (job.row.name, job.seed) == (name, seed))


def recorded(job):
    return job.record(job.results())


def results_of(job):
    return json.loads((job.folder / "results.json").read_text())


def test_jobs_are_rows_times_pairs_times_seeds_source_first(table, tmp_path):
    found = jobs_of(table, tmp_path)
    assert [(job.row.name, job.seed) for job in found] == [(name, seed) for name in ROWS for seed in SEEDS]
    assert [job.is_source for job in found] == [True] * 2 + [False] * 10
    assert found[-3].folder == tmp_path / "small" / "cbst_avh" / "drawn_to_photos" / "seed1"
    assert len({job.folder for job in found}) == len(found)


def test_folders_of_ones_own_as_domains_stay_below_the_tables_runs(table, tmp_path):
    own = table.model_copy(update={"pairs": [("/data/renderings", "data/photos.txt")]})
    job = jobs_of(own, tmp_path / "runs")[0]
    assert job.folder == tmp_path / "runs" / "small" / "source" / "_data_renderings_to_data_photos.txt" / "seed0"
    assert job.setting == ["data.source=/data/renderings", "data.target=data/photos.txt"]


def test_a_pair_may_have_several_sources(table, tmp_path):
    content = table.model_dump() | {"pairs": [[["drawn", "sketched"], "photos"]]}
    job = jobs_of(type(table).model_validate(content), tmp_path)[0]
    assert job.config.data.source == ["drawn", "sketched"] and job.config.data.target == "photos"
    assert job.domains == "drawn+sketched_to_photos"
    assert job.title.endswith("drawn + sketched to photos, seed 0")


def test_rows_of_the_same_source_stage_start_from_its_model_and_no_others(ran):
    """MCC has no source stage and Smoothed another one: neither is given the table's source model."""
    for seed in SEEDS:
        source, avh = (one(ran[0], name, seed) for name in ("Source", "CBST + AVH"))
        saved = yaml.safe_load((avh.folder / "config.yaml").read_text())
        assert saved["source"]["checkpoint"] == str(source.folder / "checkpoints" / "final.safetensors")
        assert results_of(avh)["source_only"]["class_mean"] == results_of(source)["final"]["class_mean"]
    for name in ("Source", "MCC", "Smoothed"):
        saved = yaml.safe_load((one(ran[0], name).folder / "config.yaml").read_text())
        assert saved["source"]["checkpoint"] is None
    assert results_of(one(ran[0], "MCC"))["source_only"]["class_mean"] is None


def test_a_row_may_start_from_the_model_of_another(ran):
    """Its first choice is that model's, its steps are both rows', and its recipe changes with the other's."""
    job, mcc = one(ran[0], "AVH after MCC"), one(ran[0], "MCC")
    saved = yaml.safe_load((job.folder / "config.yaml").read_text())
    assert saved["source"]["checkpoint"] == str(mcc.weights)
    assert results_of(job)["source_only"]["class_mean"] == results_of(mcc)["final"]["class_mean"]
    assert recorded(job)["steps"] == results_of(job)["steps"] + recorded(mcc)["steps"]
    changed = mcc.row.model_copy(update={"set": [*mcc.row.set, "adaptation.steps=6"]})
    rows = [changed if row is mcc.row else row for row in job.table.rows]
    other = replace(job, table=job.table.model_copy(update={"rows": rows}))
    assert other.digest != job.digest and other.config == job.config
    with pytest.raises(UserError, match="started from the model of a row whose recipe has changed since"):
        other.results()


def test_overrides_of_the_table_concern_every_row_and_a_row_may_overrule_them(table, tmp_path):
    changed = table.model_copy(update={"set": ["source.label_smoothing=0.3", "model.dropout=0.2"]})
    by_name = {job.row.name: job.config for job in jobs_of(changed, tmp_path) if job.seed == 0}
    assert {config.model.dropout for config in by_name.values()} == {0.2}
    assert by_name["MCC"].source.label_smoothing == 0.3 and by_name["Smoothed"].source.label_smoothing == 0.1


def test_the_model_that_a_row_starts_from_is_run_first(table, tmp_path, in_process):
    """Asked for alone, a row brings along what it starts from; without that model it fails and says so."""
    (job,) = choose_jobs(jobs_of(table, tmp_path), rows="AVH after MCC", seeds="0")
    run_jobs([job], Local(2), log=lambda line: None)
    assert job.has_model and job.needs.has_model and not job.source.folder.exists()
    shutil.rmtree(job.folder)
    job.needs.weights.unlink()
    broken = replace(job, table=table.model_copy(update={"rows": [*table.rows[:2], _failing(table.rows[2]), job.row]}))
    with pytest.raises(UserError, match=r"AVH after MCC.*: the model that it starts from is missing \(MCC, "):
        run_jobs([broken], Local(1), log=lambda line: None)


def _failing(row):
    return row.model_copy(update={"set": [*row.set, "adaptation.batch.target=5000"]})


def test_what_comes_after_its_training_does_not_make_another_source_model(table, tmp_path):
    """AdaBN and the target's augmentation are not part of it; another head or batch size is."""
    for word, shares in [
        ("source.adapt_batch_norm=true", True),
        ("transforms.target.flip=true", True),
        ("model.head=8", False),
        ("source.batch_size=4", False),
        ("source.checkpoint=mine.safetensors", False),
    ]:
        row = table.rows[4].model_copy(update={"set": [*table.rows[4].set, word]})
        other = table.model_copy(update={"rows": [table.rows[0], row]})
        assert jobs_of(other, tmp_path)[-1].shares_source is shares, word


def test_a_table_without_a_source_stage_shares_none(table, tmp_path):
    rows = [table.rows[2], table.rows[2].model_copy(update={"name": "MCC again"})]
    assert not any(job.shares_source for job in jobs_of(table.model_copy(update={"rows": rows}), tmp_path))


def test_no_row_starts_from_a_first_row_that_adapts(table, tmp_path):
    """Its final weights are those of an adapted model, though its source stage is the same."""
    other = table.model_copy(update={"rows": [table.rows[4], table.rows[4].model_copy(update={"name": "again"})]})
    first, again = (job for job in jobs_of(other, tmp_path) if job.seed == table.seeds[0])
    assert first.config.trains_source and not first.is_source
    assert not again.shares_source and again.needs is None


def test_steps_count_the_source_stage_wherever_it_was_run(ran):
    """32 images in batches of 8 are 4 source steps; two rounds of 3; 5 steps of MCC from nothing."""
    steps = {name: recorded(one(ran[0], name))["steps"] for name in ("Source", "CBST + AVH", "Smoothed", "MCC")}
    assert steps == {"Source": 4, "CBST + AVH": 10, "Smoothed": 10, "MCC": 5}
    assert [results_of(one(ran[0], name))["steps"] for name in ("CBST + AVH", "Smoothed")] == [6, 10]


def test_a_failing_run_is_named_with_its_log_while_the_others_finish(ran):
    found, error, lines = ran
    assert error.startswith(f"{BROKEN}, drawn to photos, seed 0: exit code 2, see ")
    log = Path(error.rpartition("see ")[2])
    assert "selects no target image" in log.read_text()
    assert all(recorded(job) for job in finished(found)) and len(finished(found)) == 7
    assert [line for line in lines if line.startswith("FAILED")] == [f"FAILED {error}"]
    assert re.match(rf"{len(found)} runs to do, 1 at a time, output in .*/small/\*/\*/seed\*\.out", lines[0])
    assert len(lines) == 1 + len(found)


def test_a_failed_run_has_no_record(ran):
    assert one(ran[0], BROKEN).results() is None


def test_csv_has_a_row_a_run_with_the_figures_of_its_results(table, ran, tmp_path):
    collect(table, ran[0], tmp_path)
    rows = read_csv(tmp_path / "small.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [(row["row"], int(row["seed"])) for row in rows] == [(job.row.name, job.seed) for job in finished(ran[0])]
    for row, job in zip(rows, finished(ran[0]), strict=True):
        results = results_of(job)
        assert (row["config"], row["source"], row["target"]) == ("tiny", "drawn", "photos")
        assert float(row["class_mean"]) == pytest.approx(results["final"]["class_mean"], abs=1e-6)
        assert json.loads(row["per_class"]) == pytest.approx(results["final"]["per_class"], abs=1e-6)
        assert list(json.loads(row["per_class"])) == ["ant", "bee", "cat", "dog"]
        assert row["digest"] == job.digest and re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["finished"])
        chooses = job.row.name in ("Smoothed", "CBST + AVH", "AVH after MCC")
        if results["rounds"]:
            assert float(row["oracle_best"]) >= float(row["class_mean"]) - 1e-6
        if chooses:
            last = results["rounds"][-1]
            assert int(row["selected"]) == last["selected"] > 0
            assert [float(row[key]) for key in INNER] == pytest.approx([last[key] for key in INNER], abs=1e-6)
            assert float(row["tp_rate_round0"]) == pytest.approx(results["rounds"][0]["tp_rate"], abs=1e-6)
        else:
            assert [row[key] for key in ("selected", "tp_rate_round0", *INNER)] == [""] * (2 + len(INNER))


def test_reports_hold_every_validator_of_every_report(table, ran, tmp_path):
    """Two rounds of self-training, three reports of MCC (after 2, 4 and 5 steps), one of a source model."""
    collect(table, ran[0], tmp_path)
    reports = read_csv(tmp_path / "small_reports.csv")
    names = {"Source": ["source"], "MCC": ["0", "1", "2"], "CBST + AVH": ["0", "1"]}
    for name, expected in names.items():
        own = [report for report in reports if (report["row"], report["seed"]) == (name, "0")]
        assert [report["report"] for report in own] == expected
        for report, entry in zip(own, results_of(one(ran[0], name))["rounds"], strict=False):
            told = {key: value for key, value in entry["validators"].items() if value is not None}
            assert {key: float(report[key]) for key in told} == pytest.approx(told, abs=1e-6)
            assert {"im", "entropy", "snd"} <= told.keys()
            assert [report[key] for key in entry["validators"] if key not in told] in ([], [""]), "no report before it"
            assert float(report["class_mean"]) == pytest.approx(entry["class_mean"], abs=1e-6)


def test_the_document_gets_the_tables_of_the_csvs(table, ran, tmp_path):
    document = tmp_path / "README.md"
    places = "<!-- table {0} -->\n{1}<!-- end {0} -->\n"
    document.write_text(f"# Runs\n\n{places.format('small', 'old')}{places.format('small_validators', '')}The end.\n")
    other = tmp_path / "more.md"
    other.write_text(places.format("small_inner", "old"))
    collect(table, ran[0], tmp_path)
    printed = write_documents(table, tmp_path, [document, other])
    records, reports = (read_csv(tmp_path / name) for name in ("small.csv", "small_reports.csv"))
    markdown, validators = to_markdown(records, "CBST + AVH"), validator_markdown(reports)
    inner = inner_markdown(records)
    assert printed == "\n".join([markdown, classes_markdown(records), inner, validators, scores_markdown(reports)])
    assert "| CBST + AVH |" in inner and "| MCC |" not in inner
    assert other.read_text() == places.format("small_inner", inner)
    assert "| CBST + AVH |" in markdown and BROKEN not in markdown
    blocks = places.format("small", markdown) + places.format("small_validators", validators)
    assert document.read_text() == f"# Runs\n\n{blocks}The end.\n"
    assert (tmp_path / "small.tex").read_text() == to_latex(records, "CBST + AVH")
    document.write_text("no place\n")
    with pytest.raises(UserError, match="no place for table 'small'"):
        write_documents(table, tmp_path, [document])


def test_finished_runs_are_not_run_again(ran):
    done = finished(ran[0])
    places = [path for job in done for path in (job.folder.parent, *job.folder.parent.rglob("*"))]
    before = {path: path.stat().st_mtime_ns for path in places}
    lines = []
    run_jobs(done, Local(1), log=lines.append)
    assert lines == []
    assert {path: path.stat().st_mtime_ns for path in places} == before


def test_a_run_that_finished_unseen_is_recorded_at_the_next_start(ran):
    """Its table was killed before it could; what the CSV has is not looked at again."""
    done, seen = finished(ran[0]), []
    run_jobs(done, Local(1), log=pytest.fail, after=seen.append)
    assert seen == done
    all_of_them = SimpleNamespace(holds=lambda run, digest: True)
    run_jobs(done, Local(1), log=pytest.fail, after=pytest.fail, recorded=all_of_them)


@pytest.mark.parametrize("again", [False, True])
def test_a_row_whose_config_is_wrong_fails_by_itself(table, tmp_path, again):
    """Not the whole table with it: the error is its row's, by name, whether or not there is a record to look into."""
    wrong = table.model_copy(update={"rows": [table.rows[0].model_copy(update={"name": "Wrong", "set": ["sede=1"]})]})
    lines, recorded = [], None if again else Ledger.read(tmp_path, table)
    with pytest.raises(UserError, match=r"^Wrong, .* seed 0: table small, row Wrong: sede: unknown key"):
        run_jobs(jobs_of(wrong, tmp_path)[:1], Local(1), log=lines.append, recorded=recorded)
    assert lines == []


def test_a_mistake_is_told_once_and_blamed_on_its_place(table, tmp_path):
    """A mistake in the table's `set` is that of every row, one in the source row that of those that start from it."""
    wrong = table.rows[0].model_copy(update={"set": ["sede=1"]})
    for change, where in (
        ({"set": ["sede=1"]}, "table small, set: sede: unknown key"),
        ({"rows": [wrong, *table.rows[1:]]}, "table small, row Source: sede: unknown key"),
    ):
        jobs = choose_jobs(jobs_of(table.model_copy(update=change), tmp_path), "Source,CBST + AVH")
        (line,) = status_of(jobs).errors
        more = f"seed 0 and {len(jobs) - 1} other runs of the rows Source, CBST + AVH"
        assert line.startswith(f"Source, drawn to photos, {more}: {where}")
    with pytest.raises(UserError, match=r"^command line: runtime\.threads: "):
        _ = jobs_of(table, tmp_path, ["runtime.threads=many"])[0].config


def test_a_signal_stops_the_runs_under_way_and_starts_no_other(table, tmp_path, monkeypatch):
    started, lines = [], []

    launcher = Local(1)

    def run(self, words, output, again, plugins):
        started.append(words)
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + 30
        while launcher.stopped is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        return 143

    monkeypatch.setattr(Worker, "run", run)
    found = [job for job in jobs_of(table, tmp_path / "runs") if job.row.name == "Source"]
    assert len(found) == 2
    with pytest.raises(Interrupted):
        run_jobs(found, launcher, log=lines.append)
    assert len(started) == 1
    (stopped,) = lines[1:]
    assert re.fullmatch(r"Source, .* seed 0: stopped and can be resumed, see .*seed0\.out", stopped)


def test_without_run_folders_the_csvs_stay_as_they_are_and_nothing_is_run(table, ran, tmp_path):
    """A fresh clone: all is in the CSV, the one run that failed is missing."""
    ledger = collect(table, ran[0], tmp_path)
    names = ("small.csv", "small_reports.csv")
    before = [(tmp_path / name).read_bytes() for name in names]
    elsewhere = jobs_of(table, tmp_path / "none")
    collect(table, elsewhere, tmp_path, log=pytest.fail)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    recorded = [job for job in elsewhere if ledger.holds(job.run, job.digest)]
    assert [job.run for job in recorded] == [job.run for job in finished(ran[0])]
    run_jobs(recorded, Local(1), log=pytest.fail, recorded=ledger)


def test_a_table_grows_from_parts_in_its_own_order(table, ran, tmp_path):
    """AVH on one machine, the others on a second: as if all had been made on one."""
    for job in reversed(finished(ran[0])):
        collect(table, [job], tmp_path / "grown")
    collect(table, ran[0], tmp_path / "whole")
    for name in ("small.csv", "small_reports.csv"):
        assert (tmp_path / "grown" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_a_row_that_is_gone_stays_until_it_is_pruned(table, ran, tmp_path):
    collect(table, ran[0], tmp_path)
    lines, smaller = [], table.model_copy(update={"rows": [table.rows[0], table.rows[4]], "seeds": [0]})
    now = jobs_of(smaller, ran[0][0].runs)
    kept = collect(smaller, now, tmp_path, log=lines.append)
    recorded = [(record["row"], record["seed"]) for record in read_csv(tmp_path / "small.csv")]
    assert recorded[:4] == [("Source", "0"), ("Source", "1"), ("CBST + AVH", "0"), ("CBST + AVH", "1")]
    assert recorded[4:] == [("MCC", "0"), ("Smoothed", "0"), ("AVH after MCC", "0")] and lines == []
    assert len(kept.runs) == 7
    pruned = collect(smaller, now, tmp_path, prune=True, log=lines.append)
    assert len(pruned.runs) == 2 and pruned.reports.keys() == pruned.runs.keys()
    assert [(record["row"], record["seed"]) for record in read_csv(tmp_path / "small.csv")] == [
        ("Source", "0"),
        ("CBST + AVH", "0"),
    ]
    assert {report["row"] for report in read_csv(tmp_path / "small_reports.csv")} == {"Source", "CBST + AVH"}
    assert lines == ["removed: Source, CBST + AVH, MCC, Smoothed, AVH after MCC"]


def changed(table, *words):
    """The table with another recipe for its AVH row."""
    row = table.rows[4].model_copy(update={"set": [*table.rows[4].set, *words]})
    return table.model_copy(update={"rows": [*table.rows[:4], row]})


def test_a_run_of_another_config_is_left_out_and_said_with_the_key_while_the_rest_is_collected(table, ran, tmp_path):
    other, lines = changed(table, "self_training.rounds=5"), []
    now = jobs_of(other, ran[0][0].runs)
    collect(other, now, tmp_path, log=lines.append)
    message = r"cbst_avh.*another config.*self_training\.rounds: 2 -> 5"
    assert len(lines) == 2 and all(re.search(message, line) for line in lines)
    assert {record["row"] for record in read_csv(tmp_path / "small.csv")} == {"Source", "MCC", "Smoothed"}
    failed = []
    with pytest.raises(UserError, match=r"^CBST \+ AVH, .*self_training\.rounds: 2 -> 5"):
        run_jobs(choose_jobs(now, "Source,CBST*", seeds="0"), Local(1), log=failed.append)
    assert failed == [], "the error is told once"


def test_the_agreement_is_of_runs_of_the_table_s_own_recipe(table, ran, tmp_path):
    for own, rows in ((table, {"Source", "CBST + AVH"}), (changed(table, "self_training.rounds=5"), {"Source"})):
        measured = own.model_copy(update={"agreement": True})
        collect(measured, jobs_of(own, ran[0][0].runs), tmp_path / str(len(rows)), log=lambda line: None)
        assert {record["row"] for record in read_csv(tmp_path / str(len(rows)) / "small_agreement.csv")} == rows


def test_a_row_whose_config_became_wrong_keeps_its_records_while_the_rest_is_collected(table, copied, tmp_path):
    collect(table, copied, tmp_path)
    before = read_csv(tmp_path / "small.csv")
    wrong, lines = changed(table, "sede=1"), []
    collect(wrong, jobs_of(wrong, copied[0].runs), tmp_path, log=lines.append)
    assert read_csv(tmp_path / "small.csv") == before
    (line,) = lines
    assert re.search(r"left out: CBST \+ AVH, .* seed 0 and 1 other run of this row: .*sede: unknown key", line)


def test_a_changed_recipe_replaces_its_row_when_it_was_run_and_no_earlier(table, copied, tmp_path):
    collect(table, copied, tmp_path)
    before = {run_name(record): record for record in read_csv(tmp_path / "small.csv")}
    other = changed(table, "self_training.steps=2")
    (job,) = choose_jobs(jobs_of(other, copied[0].runs), "CBST*", seeds="0")
    lines = []
    ledger = collect(other, jobs_of(other, tmp_path / "none"), tmp_path, log=lines.append)
    assert len(lines) == 1 and lines[0].startswith("outdated: CBST + AVH: 2 recorded with an earlier recipe")
    assert not ledger.holds(job.run, job.digest), "the recorded row is of the old recipe"
    assert {run_name(record): record for record in read_csv(tmp_path / "small.csv")} == before
    shutil.rmtree(job.folder)
    run_jobs([job], Local(1), log=lambda line: None, recorded=ledger, after=lambda job: collect(other, [job], tmp_path))
    after = {run_name(record): record for record in read_csv(tmp_path / "small.csv")}
    assert [run for run in before if before[run] != after[run]] == [("CBST + AVH", "0")]
    assert after["CBST + AVH", "0"]["digest"] == job.digest and after["CBST + AVH", "0"]["steps"] == "8"


def run_name(record):
    return record["row"], record["seed"]


def test_a_record_names_the_commit_or_else_the_installed_version(copied):
    job = one(copied, "Source")
    path = job.folder / "environment.json"
    environment = json.loads(path.read_text())
    for commit, named in (("0123456789ab-dirty", "0123456789ab-dirty"), (None, "uda-toolkit 1.2")):
        path.write_text(json.dumps({**environment, "uda": "1.2", "commit": commit}))
        assert recorded(job)["commit"] == named


def test_the_results_of_a_run_are_read_once_to_record_it(table, ran, tmp_path, monkeypatch):
    job, read = one(ran[0], "Source"), []
    results = type(job).results
    monkeypatch.setattr(type(job), "results", lambda self: read.append(self) or results(self))
    collect(table, [job], tmp_path)
    assert read == [job]


def test_of_two_records_of_a_recipe_the_later_stays(ran):
    job = one(ran[0], "Source")
    record = recorded(job)
    ledger = Ledger({}, {})
    ledger.add({**record, "finished": "2026-05-02T00:00:00Z", "commit": "later"}, [])
    ledger.add({**record, "finished": "2026-05-01T00:00:00Z", "commit": "earlier"}, [])
    assert ledger.runs[job.run]["commit"] == "later"
    ledger.add({**record, "finished": "2026-05-03T00:00:00Z", "commit": "last"}, [])
    assert ledger.runs[job.run]["commit"] == "last"


def test_steps_stay_known_when_the_run_that_another_began_from_is_gone(ran):
    """Collected again, its own folder cannot say any more how many steps that one had."""
    job = one(ran[0], "AVH after MCC")
    ledger = Ledger({}, {})
    ledger.add(recorded(job), [])
    known = dict(ledger.runs[job.run])
    ledger.add({**recorded(job), "steps": None}, [])
    assert ledger.runs[job.run] == known and int(known["steps"]) > 0


def test_damaged_folders_are_left_out_and_said(table, copied, tmp_path):
    (one(copied, "MCC").folder / "config.yaml").write_text("name: [")
    (one(copied, "Smoothed").folder / "results.json").write_text("{")
    old = one(copied, "CBST + AVH").folder / "config.yaml"
    old.write_text(old.read_text().replace("self_training:\n", "self_training:\n  no_longer_there: 1\n"))
    lines = []
    collect(table, copied, tmp_path / "results", log=lines.append)
    assert [
        re.search("out: (.*?),.*(results.json is broken|version or is damaged)", line).groups() for line in lines
    ] == [
        ("MCC", "version or is damaged"),
        ("Smoothed", "results.json is broken"),
        ("CBST + AVH", "version or is damaged"),
    ]
    assert " and 1 other run of the rows MCC, AVH after MCC: " in lines[0], "its steps are also MCC's"
    assert {run_name(r) for r in read_csv(tmp_path / "results" / "small.csv")} == {
        ("Source", "0"), ("Source", "1"), ("CBST + AVH", "1"),
    }  # fmt: skip


def test_a_source_model_that_is_needed_is_run_though_the_csv_has_its_row(table, ran, tmp_path, in_process):
    ledger = collect(table, [one(ran[0], "Source")], tmp_path)
    (job,) = choose_jobs(jobs_of(table, tmp_path / "elsewhere"), "CBST*", seeds="0")
    lines = []
    run_jobs([job], Local(1), log=lines.append, recorded=ledger)
    assert lines[0].startswith("2 runs to do")
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "Source, drawn to photos, seed 0",
        "CBST + AVH, drawn to photos, seed 0",
    ]


def written(table, folder):
    """The table's YAML in a folder, for the tool."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(table.model_dump(exclude={"name"}, mode="json")))
    return str(path)


def all_files(folder):
    return {path: path.stat().st_mtime_ns for path in (folder, *folder.rglob("*"))}


@pytest.fixture
def three_recorded(table, ran, in_folder):
    """results/small.csv with both source models, of 10 and 30 seconds, and MCC's seed 0, of 300."""
    three = [one(ran[0], "Source", 0), one(ran[0], "Source", 1), one(ran[0], "MCC")]
    ledger = collect(table, three, in_folder / "results")
    for job, seconds in zip(three, ("10.0", "30.0", "300.0"), strict=True):
        ledger.runs[job.run]["seconds"] = seconds
    ledger.write(in_folder / "results", table)
    return ledger


def test_a_dry_run_lists_what_the_same_command_then_runs_and_writes_nothing(
    table, three_recorded, in_folder, monkeypatch, capsys
):
    """Models that are needed and gone are listed by themselves: their rows are in the CSV."""
    words = [written(table, in_folder), "--rows", "Source,MCC,CBST*", "--into", "page.md", "--prune"]
    before = all_files(in_folder)
    monkeypatch.setattr(Worker, "run", lambda *_: pytest.fail("a run was started"))
    assert table_tool([*words, "--dry-run"], monkeypatch) == 0
    captured = capsys.readouterr()
    assert all_files(in_folder) == before and captured.err == ""
    assert captured.out.splitlines() == [
        "missing  MCC, drawn to photos, seed 1: about 5 min",
        "missing  CBST + AVH, drawn to photos, seed 0",
        "missing  CBST + AVH, drawn to photos, seed 1",
        "model    Source, drawn to photos, seed 0, which others start from: about 20 s",
        "model    Source, drawn to photos, seed 1, which others start from: about 20 s",
        "runs     6 of the table's 12, 3 recorded in results/small.csv, 3 missing, 2 more to be run for their models",
        "cost     about 6 min, one run at a time, on the machine that made results/small.csv (median seconds of "
        "each row's runs); not counted: 2 of rows without a record",
        "dry run of table 'small': configs are right, data and networks were not checked; nothing was run, nothing "
        "was written",
    ]
    listed = re.findall(r"^(?:missing|model)  +(.*?, seed \d)", captured.out, re.MULTILINE)
    monkeypatch.setattr(Worker, "run", lambda *_: 1)
    assert table_tool(words[:3], monkeypatch) == 2
    failed = re.findall(r"^FAILED (.*?, seed \d)", capsys.readouterr().out, re.MULTILINE)
    assert sorted(failed) == sorted(listed)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seeds", "1"], ["runs     1 of the table's 12, 1 recorded in results/small.csv, 0 missing"]),
        (
            ["--seeds", "1", "--again"],
            [
                "missing  Source, drawn to photos, seed 1, again: about 20 s",
                "runs     1 of the table's 12, 1 recorded in results/small.csv, 1 missing",
            ],
        ),
        (
            ["--results", "none"],
            [
                "missing  Source, drawn to photos, seed 0",
                "missing  Source, drawn to photos, seed 1",
                "runs     2 of the table's 12, 0 recorded in none/small.csv, 2 missing",
                "cost     unknown, because none/small.csv has no run of these rows",
            ],
        ),
    ],
)
def test_a_dry_run_is_of_the_part_that_is_asked_for(
    table, three_recorded, in_folder, monkeypatch, capsys, words, expected
):
    assert table_tool([written(table, in_folder), "--dry-run", "--rows", "Source", *words], monkeypatch) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("cost     about")]
    assert lines[:-1] == expected and lines[-1].startswith("dry run of table 'small': configs are right")


def test_a_dry_run_tells_finished_runs_and_changed_recipes_from_missing_ones(table, ran, three_recorded, tmp_path):
    """A finished run would be recorded and not run; with --again, one that is recorded too would be neither."""
    found = choose_jobs(jobs_of(table, ran[0][0].runs), "Source,Smoothed", seeds="0")
    for recorded in (three_recorded, None):
        text = dry_run(table, status_of(found, recorded), three_recorded, tmp_path)
        counts = f"2 in total, 1 recorded in {tmp_path}/small.csv, 1 finished and to be added to it, 0 missing"
        assert text.startswith(f"runs     {counts}\ndry run")
    mcc = [_failing(row) if row.name == "MCC" else row for row in table.rows]
    other = table.model_copy(update={"rows": mcc})
    (job,) = choose_jobs(jobs_of(other, tmp_path / "none"), "MCC", seeds="0")
    text = dry_run(other, status_of([job], three_recorded), three_recorded, tmp_path)
    missing, counts, *_ = text.splitlines()
    assert missing == "missing  MCC, drawn to photos, seed 0, recorded with another recipe: about 5 min"
    assert counts == f"runs     1 in total, 0 recorded in {tmp_path}/small.csv, 1 missing"


def test_a_dry_run_names_what_is_wrong_after_the_rest(table, in_folder, monkeypatch, capsys):
    """A row is wrong with the row whose model it begins with; others are listed all the same."""
    wrong = table.rows[0].model_copy(update={"set": ["sede=1"]})
    path = written(table.model_copy(update={"rows": [wrong, *table.rows[1:]]}), in_folder)
    assert table_tool([path, "--dry-run", "--rows", "Source,MCC,CBST*", "--seeds", "0"], monkeypatch) == 2
    captured = capsys.readouterr()
    missing, counts, *_ = captured.out.splitlines()
    assert missing == "missing  MCC, drawn to photos, seed 0" and "are right" not in captured.out
    assert counts == "runs     3 of the table's 12, 0 recorded in results/small.csv, 1 missing, 2 with errors"
    (error,) = captured.err.splitlines()  # that of the row, not one for each row that starts from it
    assert error.startswith("error: Source, drawn to photos, seed 0 and 1 other run of the rows Source, ")
    assert ": table small, row Source: sede: unknown key" in error


def test_printed_commands_are_those_of_the_runs_and_nothing_is_run(table, ran, in_folder, monkeypatch, capsys):
    """One a line, source models first, for a shell. What is in the CSV is left out."""
    path, words = written(table, in_folder), ["--rows", "Source,AVH*,MCC", "--launcher", "print"]
    collect(table, [one(ran[0], "Source", 0)], in_folder / "results")
    before = all_files(in_folder)
    assert table_tool([path, *words], monkeypatch) == 0
    captured = capsys.readouterr()
    assert all_files(in_folder / "results") == {p: t for p, t in before.items() if "results" in p.parts}
    todo = [("Source", 1), ("MCC", 0), ("MCC", 1), ("AVH after MCC", 0), ("AVH after MCC", 1)]
    jobs = jobs_of(table, Path("runs/tables"))
    assert [shlex.split(line) for line in captured.out.splitlines()] == [
        ["uda", *one(jobs, *run).words()] for run in todo
    ]
    assert captured.err == (
        "5 runs to do, a command each, for this folder; the runs from line 4 on start from models of the runs before, "
        "which must have ended\n"
    )
    assert not list(in_folder.rglob("config.yaml")) and not list(in_folder.rglob("*.out"))


@pytest.mark.parametrize("other", ["--collect", "--published"])
def test_a_dry_run_is_of_runs_alone(table, three_recorded, in_folder, monkeypatch, capsys, other):
    path, before = written(table, in_folder), all_files(in_folder / "results")
    assert table_tool([path, "--dry-run", other], monkeypatch) == 2
    assert re.search(rf"{other}: not allowed with argument --dry-run", capsys.readouterr().err)
    assert all_files(in_folder / "results") == before


def test_a_record_without_seconds_does_not_count_as_one_of_none(three_recorded):
    three_recorded.runs["Source", "drawn", "photos", "0"]["seconds"] = ""
    assert three_recorded.seconds("Source") == 30 and three_recorded.seconds("Smoothed") is None


def test_the_tool_writes_what_finished_and_then_says_what_failed(table, copied, in_folder, monkeypatch, capsys):
    """Only the broken row is asked for: it fails again, and all that had finished is in the table."""
    path = written(table, in_folder)
    document = in_folder / "page.md"
    document.write_text("<!-- table small -->\n<!-- end small -->\n")
    words = [path, "--rows", "Nothing*", "--seeds", "0", "--runs", str(copied[0].runs), "--into", "page.md"]
    monkeypatch.setattr(run_folder, "code_commit", lambda: "0123456789ab-dirty")
    assert table_tool(words, monkeypatch) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("note: the code has uncommitted changes")
    assert re.match(rf"error: {BROKEN}, drawn to photos, seed 0: exit code 2, see ", captured.err)
    assert [run_name(record) for record in read_csv(in_folder / "results" / "small.csv")] == [
        (job.row.name, str(job.seed)) for job in finished(copied)
    ]
    assert "| CBST + AVH | 2 |" in document.read_text() and "| CBST + AVH | 2 |" in captured.out


def test_no_finished_run_is_an_error_and_writes_nothing(table, tmp_path):
    with pytest.raises(UserError, match="'small': no finished run"):
        collect(table, jobs_of(table, tmp_path / "runs"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_columns_of_another_version_are_not_lost_silently(table, tmp_path):
    (tmp_path / "small.csv").write_text("row,source,target,seed,shoe_size\nA,b,c,0,44\n")
    with pytest.raises(UserError, match=r"small\.csv: unknown columns shoe_size"):
        Ledger.read(tmp_path, table)


def test_a_recipe_is_what_decides_the_result(tiny):
    """Not where it runs, not where its files lie, not what its method does not read, not defaults written out."""
    base = AdaptationConfig.load(tiny, [])
    for word, same in [
        ("runtime.workers=3", True),
        ("output=elsewhere", True),
        ("data.root=/data", True),
        ("adaptation.steps=7", True),
        ("source.label_smoothing=0.0", True),
        ("seed=1", False),
        ("self_training.steps=4", False),
        ("method=mcc", False),
    ]:
        assert (digest(AdaptationConfig.load(tiny, [word])) == digest(base)) is same, word
    mcc = AdaptationConfig.load(tiny, ["method=mcc"])
    assert digest(AdaptationConfig.load(tiny, ["method=mcc", "self_training.steps=4"])) == digest(mcc)
    assert digest(AdaptationConfig.load(tiny, ["method=mcc", "adaptation.steps=7"])) != digest(mcc)
    for words, same in [
        (["method_options={weight: 1}"], True),
        (["method_options={weight: 0.3}"], False),
        (["method_options={temperature: 2.5}"], True),
    ]:
        assert (digest(AdaptationConfig.load(tiny, ["method=mcc", *words])) == digest(mcc)) is same, words
    written_out = ["method=mmd", "method_options={exponents: [-3, -2, -1, 0, 1]}"]
    assert digest(AdaptationConfig.load(tiny, written_out)) == digest(AdaptationConfig.load(tiny, ["method=mmd"]))
    assert recipe(mcc.model_copy(update={"method": "gone"}))["method"] == "gone"
    of_old = mcc.model.model_copy(update={"loss": "gone", "loss_options": {"s": 1}})
    assert recipe(mcc.model_copy(update={"model": of_old}))["model.loss_options.s"] == 1
    angles = AdaptationConfig.load(tiny, ["method=mcc", "model={loss: avh}"])
    for scale, same in ((10, True), (20, False)):
        words = ["method=mcc", f"model={{loss: avh, loss_options: {{scale: {scale}}}}}"]
        assert (digest(AdaptationConfig.load(tiny, words)) == digest(angles)) is same, scale
    assert recipe(mcc)["method"] == "mcc" and "source.label_smoothing" not in recipe(mcc)


def test_a_part_of_a_table_is_chosen_by_names_with_wildcards(table, tmp_path):
    wide = table.model_copy(update={"pairs": [("photo", "sketch"), ("photo", "art"), ("art", "sketch")]})
    found = jobs_of(wide, tmp_path)
    chosen = choose_jobs(found, rows="MCC, CBST*", pairs="photo_to_*", seeds="1")
    assert [(job.row.name, job.pair) for job in chosen] == [
        (name, pair) for name in ("MCC", "CBST + AVH") for pair in (("photo", "sketch"), ("photo", "art"))
    ]
    assert {job.seed for job in chosen} == {1} and choose_jobs(found) == found
    for words, message in [
        ({"rows": "MCC,MDC"}, "--rows: nothing matches 'MDC', did you mean 'MCC'"),
        ({"pairs": "photo"}, "--pairs/--targets: nothing matches 'photo'.*photo_to_sketch, photo_to_art"),
        ({"seeds": "0,7"}, r"--seeds: nothing matches '7' \(0, 1\)"),
    ]:
        with pytest.raises(UserError, match=message):
            choose_jobs(found, **words)


def test_an_override_that_decides_results_is_refused(table, tmp_path):
    assert jobs_of(table, tmp_path, ["runtime.device=cpu", "data.root=/data"])[0].extra
    with pytest.raises(UserError, match=r"source\.epochs: changes the results"):
        jobs_of(table, tmp_path, ["runtime.device=cpu", "source.epochs=1"])
    with pytest.raises(UserError, match=r"runtime\.accumulate: changes the results"):
        jobs_of(table, tmp_path, ["runtime.accumulate=2"])
    with pytest.raises(UserError, match=r"data\.features: changes the results"):
        jobs_of(table, tmp_path, ["data.features=banks/other"])


PLAIN = "seeds: [0]\npairs: [[a, b]]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: []\npairs: [[a, b]]\nrows: [{name: A, cfg: c.yaml}]\n", r"wrong\.yaml: seeds: "),
        ("seeds: [0]\npairs: [[a]]\nrows: [{name: A, cfg: c.yaml}]\n", r"wrong\.yaml: pairs\.0"),
        ("seeds: [0]\npairs: [[a, b]]\nrows: [{name: A, config: c.yaml}]\n", r"wrong\.yaml: rows\.0\.cfg: "),
        ("seeds: [0]\n", r"wrong\.yaml: rows: "),
        (f"{PLAIN}rows: [{{name: A, cfg: c}}, {{name: A, cfg: d}}]\n", r"wrong\.yaml: .*two rows 'A'"),
        (
            f"{PLAIN}rows: [{{name: A, cfg: c, start: B}}, {{name: B, cfg: d}}]\n",
            "'A' starts from 'B', but no row above it",
        ),
        (f"{PLAIN}reference: Sorce\nrows: [{{name: Source, cfg: c}}]\n", "no row 'Sorce' .*did you mean 'Source'"),
        ("", r"wrong\.yaml: seeds: "),
        ("- a\n", r"wrong\.yaml: .*this is a list"),
        ("rows: [\n", r"wrong\.yaml: not valid YAML"),
        (f"{PLAIN}seeds: [1]\nrows: [{{name: A, cfg: c}}]\n", r"wrong\.yaml: .*key 'seeds' is given twice"),
    ],
)
def test_a_wrong_table_is_refused_with_file_and_key(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_table(path)


def test_an_unknown_table_names_the_known_ones():
    with pytest.raises(UserError, match=r"digit: no such table: .*did you mean 'digits\.yaml'"):
        load_table("digit")


@pytest.mark.parametrize("name", sorted(path.stem for path in (CHECKOUT / "configs" / "tables").glob("*.yaml")))
def test_every_table_of_the_project_has_valid_runs(name, tmp_path):
    """Each job's config loads and has a folder of its own; rows with the source row's source stage start from it."""
    table = load_table(name)
    without_bank = [word for word in table.set if not word.startswith("data.features=")]  # it need not be there
    table = table.model_copy(update={"set": without_bank})
    found = jobs_of(table, tmp_path)
    assert len({job.folder for job in found}) == len(found) == len(table.rows) * len(table.pairs) * len(table.seeds)
    ends = (table.pairs[0], table.pairs[-1])
    last = [job for job in choose_jobs(found, seeds=str(table.seeds[-1])) if job.pair in ends]
    if table.kind == "generalization":
        assert [(job.config.seed, job.config.target) for job in last] == [(job.seed, job.pair[1]) for job in last]
        return

    def source_stage(row):
        alone = AdaptationConfig.load(row.cfg, [*table.set, *row.set])
        trained = alone.source.model_copy(update={"adapt_batch_norm": False})
        return alone.trains_source, trained, alone.model

    starts, first = {}, table.rows[0]
    lends = AdaptationConfig.load(first.cfg, [*table.set, *first.set]).method == "source_only"
    for job in last:
        config = AdaptationConfig.load(job.row.cfg, job.overrides())
        assert (config.seed, config.data.source, config.data.target) == (job.seed, *job.pair)
        if job.row.start:
            assert config.source.checkpoint == str(job.start.weights) and job.start.row.name == job.row.start
            continue
        trains, *_ = source_stage(job.row)
        starts[job.row.name] = "shared" if config.source.checkpoint else "own" if config.trains_source else "none"
        same = source_stage(job.row) == source_stage(first)
        assert (starts[job.row.name] == "shared") == (trains and same and lends and job.row is not first), job.row.name
    expected = {"Source": "own", "CBST": "shared", "SHOT": "own", "MCD": "none", "CBST + AVH": "shared", "MCC": "none"}
    assert starts
    assert {name: starts[name] for name in expected if name in starts}.items() <= expected.items()
