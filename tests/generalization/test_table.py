"""Tables of runs that leave one domain out: real tiny runs to CSV and Markdown, and the columns on made-up records."""

import json
from pathlib import Path

import pytest
import yaml

from tests.forked import Forked
from tests.in_process import command_in_process, table_tool
from uda.core.errors import UserError
from uda.core.resources import CHECKOUT
from uda.generalization.config import GeneralizationConfig
from uda.generalization.run import GeneralizationRun
from uda.generalization.table import COLUMNS
from uda.tables import (
    Ledger,
    choose_jobs,
    classes_markdown,
    collect,
    differences_markdown,
    jobs_of,
    load_table,
    read_csv,
    run_jobs,
    to_csv,
    to_latex,
    to_markdown,
    validator_markdown,
)
from uda.tables.launchers.local import Local
from uda.tables.ledger import report_columns
from uda.tables.recipe import digest, recipe
from uda.tables.variants import variants_markdown

TARGETS, SEEDS = ("m0", "m60"), (0, 1)
BROKEN = "One domain"
TINY = [
    "training={steps: 4, evaluate_every: 2, batch_size: 16, optim: {name: adamw, lr: 0.003}}",
    *("report={loggers: [], page: false}", "runtime.device=cpu"),
]
CONTENT = {
    "kind": "generalization",
    "reference": "ERM",
    "seeds": list(SEEDS),
    "targets": list(TARGETS),
    "rows": [
        {"name": "ERM", "cfg": "rotated_digits_erm.yaml", "set": ["data.domains=[m0,m30,m60]", *TINY]},
        {"name": BROKEN, "cfg": "rotated_digits_erm.yaml", "set": ["data.domains=[m30]", *TINY]},
        {"name": "AVH loss", "cfg": "rotated_digits_avh_loss.yaml", "set": ["data.domains=[m0,m30,m60]", *TINY]},
    ],
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "turned.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    return path


@pytest.fixture(scope="module")
def table(path):
    return load_table(path)


@pytest.fixture(scope="module")
def ran(table, tmp_path_factory):
    """Seed 0 of all that works, seed 1 of AVH on m0, one broken run: jobs, the error at the end, what was logged.

    The first is run as a process of its own, the others by the command's function in this one.
    """
    jobs = jobs_of(table, tmp_path_factory.mktemp("runs"))
    found = choose_jobs(jobs, "ERM,AVH*", seeds="0")
    found += choose_jobs(jobs, "AVH*", "m0", "1") + choose_jobs(jobs, BROKEN, "m0", "0")
    lines = []

    def forked(worker, words, output):
        return Forked(CHECKOUT / "uda" / "__main__.py", *words, output=output).wait()

    with command_in_process("generalize", forked), pytest.raises(UserError) as caught:
        run_jobs(found, Local(1), log=lines.append)
    return found, str(caught.value), lines


def finished(ran):
    return [job for job in ran[0] if job.row.name != BROKEN]


def results_of(job):
    return json.loads((job.folder / "results.json").read_text())


def test_a_job_is_a_row_an_unseen_domain_and_a_seed(table, tmp_path):
    found = jobs_of(table, tmp_path)
    rows = [row.name for row in table.rows]
    assert [(job.row.name, job.pair, job.seed) for job in found] == [
        (row, ("the others", target), seed) for row in rows for target in TARGETS for seed in SEEDS
    ]
    job = found[-1]
    assert job.folder == tmp_path / "turned" / "avh_loss" / "m60" / "seed1" and job.needs is None
    assert job.title == "AVH loss, m60, seed 1"
    assert (job.config.target, job.config.seed, job.config.model.loss) == ("m60", 1, "avh")
    assert [chosen.pair[1] for chosen in choose_jobs(found, "ERM", pairs="m6*")] == ["m60", "m60"]
    with pytest.raises(UserError, match=r"--pairs/--targets: nothing matches 'm61', did you mean 'm60'\?"):
        choose_jobs(found, pairs="m61")


def test_folders_of_ones_own_are_no_paths_within_the_runs(table, tmp_path):
    (job, *_) = jobs_of(table.model_copy(update={"targets": ["/data/photos"]}), tmp_path)
    assert job.folder == tmp_path / "turned" / "erm" / "_data_photos" / "seed0"
    assert job.pair == ("the others", "/data/photos") and "target=/data/photos" in job.words()


def test_a_failing_run_is_named_while_the_others_finish(ran):
    found, error, lines = ran
    assert error.startswith(f"{BROKEN}, m0, seed 0: exit code 2, see ")
    assert all(job.has_model for job in finished(ran)) and len(finished(ran)) == 5
    reached = results_of(found[0])["final"]["overall"]
    assert lines[1].startswith(f"ERM, m0, seed 0: accuracy {reached:.4f} in ")


def test_csv_has_a_row_a_run_with_the_figures_of_its_results(table, ran, tmp_path):
    collect(table, ran[0], tmp_path)
    rows = read_csv(tmp_path / "turned.csv")
    assert tuple(rows[0]) == COLUMNS
    assert [(row["row"], row["source"], row["target"], row["seed"]) for row in rows] == [
        *(("ERM", "the others", target, "0") for target in TARGETS),
        *(("AVH loss", "the others", target, seed) for target, seed in (("m0", "0"), ("m0", "1"), ("m60", "0"))),
    ]
    by_run = {job.run: job for job in finished(ran)}
    for row in rows:
        job = by_run[row["row"], row["source"], row["target"], row["seed"]]
        results = results_of(job)
        assert results["target"] == row["target"] and row["digest"] == job.digest and row["steps"] == "4"
        for key, value in [
            ("class_mean", results["final"]["class_mean"]),
            ("overall", results["final"]["overall"]),
            ("validation", results["final"]["validation"]),
            ("validation_choice", results["validation_choice"]["overall"]),
            ("oracle_best", results["oracle_best"]["overall"]),
            ("seconds", results["seconds"]),
        ]:
            assert float(row[key]) == pytest.approx(value, abs=1e-6), key
        assert json.loads(row["per_class"]) == pytest.approx(results["final"]["per_class"], abs=1e-6)
        assert len(json.loads(row["per_class"])) == 10
    assert len({row["overall"] for row in rows}) == len({row["digest"] for row in rows}) == 5


def test_each_choice_has_a_figure_of_its_own(table, tmp_path):
    """In runs as short as those above the last report is the best and chosen too."""
    results = {
        "final": {"overall": 0.5, "validation": 0.7},
        "validation_choice": {"overall": 0.6, "validation": 0.8},
        "oracle_best": {"overall": 0.9},
    }
    (job, *_) = jobs_of(table, tmp_path)
    assert job.figures(results) == {"validation": 0.7, "validation_choice": 0.6, "oracle_best": 0.9}


def test_reports_hold_validation_in_the_place_of_a_validator(table, ran, tmp_path):
    """Two reports of each run, after 2 and 4 steps."""
    collect(table, ran[0], tmp_path)
    reports = read_csv(tmp_path / "turned_reports.csv")
    assert tuple(reports[0]) == (*report_columns("overall"), "validation") and len(reports) == 2 * len(finished(ran))
    rounds = results_of(ran[0][0])["rounds"]
    for report, entry in zip(reports, rounds, strict=False):
        assert int(report["report"]) == entry["round"]
        for key in ("overall", "validation"):
            assert float(report[key]) == pytest.approx(entry[key], abs=1e-6)
    assert rounds[0]["validation"] != rounds[1]["validation"], "the figures of two reports can be told apart"


def test_what_is_finished_or_recorded_is_not_run_again(table, ran, tmp_path):
    run_jobs(finished(ran), Local(1), log=pytest.fail)
    ledger = collect(table, ran[0], tmp_path)
    names = ("turned.csv", "turned_reports.csv")
    before = [(tmp_path / name).read_bytes() for name in names]
    elsewhere = jobs_of(table, tmp_path / "none")
    ledger = collect(table, elsewhere, tmp_path, log=pytest.fail)
    assert [(tmp_path / name).read_bytes() for name in names] == before
    recorded = [job for job in elsewhere if ledger.holds(job.run, job.digest)]
    assert {job.run for job in recorded} == {job.run for job in finished(ran)}
    run_jobs(recorded, Local(1), log=pytest.fail, recorded=ledger)


def test_a_run_of_another_recipe_is_left_out_with_the_key(table, ran, tmp_path):
    row = table.rows[0].model_copy(update={"set": [*table.rows[0].set, "training.holdout=0.3"]})
    changed = table.model_copy(update={"rows": [row, *table.rows[1:]]})
    lines = []
    collect(changed, jobs_of(changed, ran[0][0].runs), tmp_path, log=lines.append)
    assert len(lines) == 2 and all("training.holdout: 0.2 -> 0.3" in line for line in lines)
    assert {record["row"] for record in read_csv(tmp_path / "turned.csv")} == {"AVH loss"}


def test_a_recipe_is_what_decides_the_result():
    base = GeneralizationConfig.load("rotated_digits_erm", ["target=m0"])
    for word, same in [
        ("runtime.workers=3", True),
        ("data.root=/data", True),
        ("training.holdout=0.2", True),
        ("training.holdout=0.3", False),
        ("target=m15", False),
        ("model.loss=avh", False),
        ("seed=1", False),
    ]:
        other = GeneralizationConfig.load("rotated_digits_erm", ["target=m0", word])
        assert (digest(other) == digest(base)) is same, word
    assert recipe(base)["target"] == "m0" and "training.holdout" not in recipe(base)


def test_the_tool_writes_csv_latex_and_document(path, ran, in_folder, monkeypatch, capsys):
    document = in_folder / "page.md"
    document.write_text("".join(f"<!-- table {n} -->\n<!-- end {n} -->\n" for n in ("turned", "turned_validators")))
    words = [str(path), "--collect", "--runs", str(ran[0][0].runs), "--into", "page.md"]
    assert table_tool(words, monkeypatch) == 0, capsys.readouterr().err
    records, reports = (read_csv(in_folder / "results" / f"turned{part}.csv") for part in ("", "_reports"))
    markdown, validators = to_markdown(records, "ERM", "overall"), validator_markdown(reports, "overall")
    more = [
        differences_markdown(records, "ERM", "overall"),
        classes_markdown(records, "overall"),
        validators,
    ]
    assert capsys.readouterr().out == "\n".join([markdown, *more])
    assert markdown in document.read_text() and validators in document.read_text()
    assert "| Method | seeds | m0 | m60 | average |" in markdown and "| AVH loss | 2 |" in markdown
    assert (in_folder / "results" / "turned.tex").read_text() == to_latex(records, "ERM", "overall")


def record(row, target, seed, overall, validation_choice, oracle_best, **figures):
    return {
        **{"row": row, "config": "c", "source": "the others", "target": target, "seed": seed, "steps": 4},
        **{"overall": overall, "validation_choice": validation_choice, "oracle_best": oracle_best, "class_mean": 0.01},
        **figures,
    }


def cells_of(markdown):
    """Cells of each line of a Markdown's last table by title, by the line's first cell."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if "|" in line]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


@pytest.fixture
def recorded(tmp_path):
    """AVH has both domains with seed 0, and with seed 1 art alone."""
    figures = [
        record("ERM", "art", 0, 0.60, 0.62, 0.64),
        record("ERM", "sketch", 0, 0.40, 0.42, 0.46),
        record("ERM", "art", 1, 0.70, 0.70, 0.70),
        record("ERM", "sketch", 1, 0.50, 0.48, 0.50),
        record("AVH", "art", 0, 0.64, 0.66, 0.68, per_class=json.dumps({"dog": 0.7, "house": 0.6})),
        record("AVH", "sketch", 0, 0.48, 0.40, 0.50),
        record("AVH", "art", 1, 0.70, 0.69, 0.71, per_class=json.dumps({"dog": 0.8, "house": 0.5})),
    ]
    path = tmp_path / "made_up.csv"
    path.write_text(to_csv(figures, COLUMNS), encoding="utf-8")
    return read_csv(path)


def test_columns_by_hand(recorded):
    """ERM: art 60, 70; sketch 40, 50; averages 50, 60; at validation's choice 52, 59; at best 55, 60.

    AVH: only seed 0 has both: (64 + 48) / 2, (66 + 40) / 2, (68 + 50) / 2. Minus ERM: +4, +8, 0: mean +4.
    The class mean, .01 everywhere, is in no column.
    """
    rows = cells_of(to_markdown(recorded, "ERM", "overall"))
    assert rows["ERM"] == {
        "Method": "ERM", "seeds": "2", "art": "65.0 ± 7.1", "sketch": "45.0 ± 7.1", "average": "55.0 ± 7.1",
        "average, validation's choice": "55.5 ± 4.9", "average, oracle best": "57.5 ± 3.5", "steps": "4",
        "minus ERM": "",
    }  # fmt: skip
    assert rows["AVH"] == {
        "Method": "AVH", "seeds": "2", "art": "67.0 ± 4.2", "sketch": "48.0", "average": "56.0",
        "average, validation's choice": "53.0", "average, oracle best": "59.0", "steps": "4",
        "minus ERM": "+4.0, n = 3",
    }  # fmt: skip
    assert "minus" not in to_markdown(recorded, None, "overall")


def test_latex_is_by_class_and_unseen_domain_and_then_as_the_markdown(recorded):
    """AVH on art: dog 70, 80; house 60, 50; accuracy 64, 70."""
    latex = to_latex(recorded, "ERM", "overall")
    assert "% art\n" in latex and r"Method & dog & house & accuracy \\" in latex
    assert r"AVH & 75.0 & 55.0 & 67.0 \\" in latex
    last = r"AVH & 2 & 67.0 $\pm$ 4.2 & 48.0 & 56.0 & 53.0 & 59.0 & 4 & +4.0, n = 3 \\"
    assert last in latex and latex.count(r"\begin{tabular}") == 3


def test_how_well_validation_ranks_by_hand(tmp_path):
    """ERM: accuracy 50 60 70, validation .9 .8 .7: rho -1; it chooses 50, loses 20; the last report loses nothing.

    AVH: accuracy 60 80 75, validation .7 .8 .9: ranks 1 3 2 and 1 2 3, rho = 1 - 6 * 2 / 24 = .5; it chooses the last,
    75, and loses 5. Mean rho -.25, mean loss 12.5. Methods: two are too few.
    """
    reached = {"ERM": [(0.5, 0.9), (0.6, 0.8), (0.7, 0.7)], "AVH": [(0.6, 0.7), (0.8, 0.8), (0.75, 0.9)]}
    columns = (*report_columns("overall"), "validation")
    reports = [
        dict(zip(columns, (row, "the others", "art", 0, index, *pair), strict=True))
        for row, pairs in reached.items()
        for index, pair in enumerate(pairs)
    ]
    path = tmp_path / "reports.csv"
    path.write_text(to_csv(reports, columns), encoding="utf-8")
    text = validator_markdown(read_csv(path), "overall")
    ranks, choices = (part.partition("|")[1:] for part in text.split("\n\n") if part.startswith("|"))
    assert "| validation | -0.25, n = 2 | 12.5, n = 2 | n/a | n/a |" in "".join(ranks)
    assert cells_of("".join(choices))["AVH"] == {
        "Method": "AVH", "runs": "1", "last": "75.0", "validation": "75.0", "oracle best": "80.0",
    }  # fmt: skip
    assert cells_of("".join(choices))["ERM"]["validation"] == "50.0"
    assert "Accuracy in % of the last report and of the report that each validator chooses, mean over unseen" in text
    assert "class mean" not in text


def test_a_csv_of_the_other_kind_is_not_lost_silently(table, tmp_path):
    (tmp_path / "turned.csv").write_text("row,source,target,seed,tp_rate\nA,b,c,0,0.4\n")
    with pytest.raises(UserError, match=r"turned\.csv: unknown columns tp_rate"):
        Ledger.read(tmp_path, table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "generalisation"}, r"kind: unknown kind of table 'generalisation', did you mean 'generalization'\?"),
        ({"kind": "adaptation"}, r"wrong\.yaml: pairs: "),
        ({"pairs": [["m0", "m60"]]}, r"wrong\.yaml: pairs: "),
        ({"targets": []}, r"wrong\.yaml: targets: "),
        ({"targets": ["m0", "m0"]}, "targets: a domain is named twice"),
        ({"rows": [*CONTENT["rows"][:2], {**CONTENT["rows"][2], "start": "ERM"}]}, "'AVH loss' has `start`"),
    ],
)
def test_a_wrong_table_is_refused_with_file_and_key(tmp_path, change, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({**CONTENT, **change}))
    with pytest.raises(UserError, match=message):
        load_table(path)


def test_the_variant_of_each_unseen_domain_is_chosen_by_what_is_held_out_of_the_others(tmp_path):
    """art: s = 5 holds .8 and .9 to s = 10's .7 and .95: chosen, though s = 10 is better on art itself. sketch: s = 10.

    AVH: art 50 and 60, sketch 70 and 80: averages 60, 70. ERM: 40 and 40, 60 and 50, so AVH is 10, 20, 10, 30 ahead.
    Seed 2, which s = 10 lacks, would choose otherwise. CORAL is no family, and lacks sketch.
    """

    def run(row, target, seed, validation, overall):
        return record(row, target, seed, overall, overall, overall) | {"validation": validation}

    figures = [
        run("ERM; a", "art", 0, 0.9, 0.4), run("ERM; a", "art", 1, 0.9, 0.4),
        run("ERM; a", "sketch", 0, 0.9, 0.6), run("ERM; a", "sketch", 1, 0.9, 0.5),
        run("ERM; b", "art", 0, 0.8, 0.9), run("ERM; b", "art", 1, 0.8, 0.9),
        run("ERM; b", "sketch", 0, 0.8, 0.9), run("ERM; b", "sketch", 1, 0.8, 0.9),
        run("AVH; s = 5", "art", 0, 0.8, 0.5), run("AVH; s = 5", "art", 1, 0.9, 0.6),
        run("AVH; s = 5", "sketch", 0, 0.5, 0.9), run("AVH; s = 5", "sketch", 1, 0.5, 0.9),
        run("AVH; s = 10", "art", 0, 0.7, 0.9), run("AVH; s = 10", "art", 1, 0.95, 0.9),
        run("AVH; s = 10", "sketch", 0, 0.6, 0.7), run("AVH; s = 10", "sketch", 1, 0.6, 0.8),
        run("AVH; s = 5", "sketch", 2, 0.99, 0.9), run("CORAL", "art", 0, 0.3, 0.3),
    ]  # fmt: skip
    path = tmp_path / "made_up.csv"
    path.write_text(to_csv(figures, COLUMNS), encoding="utf-8")
    lines = variants_markdown(read_csv(path), "ERM; b").splitlines()
    assert lines[2:] == [
        "| Method | art | sketch | average | minus ERM |",
        "|---|---|---|---|---|",
        "| ERM | 40.0 ± 0.0 (a) | 55.0 ± 7.1 (a) | 47.5 ± 3.5 |  |",
        "| AVH | 55.0 ± 7.1 (s = 5) | 75.0 ± 7.1 (s = 10) | 65.0 ± 7.1 | +17.5, n = 4 |",
        "| CORAL | 30.0 |  |  | -10.0, n = 1 |",
    ]
    assert variants_markdown(read_csv(path)[-1:], None) == ""


@pytest.mark.parametrize("option", ["--targets", "--pairs"])
def test_the_domains_of_a_dry_run_are_chosen_by_either_name(path, in_folder, monkeypatch, capsys, option):
    words = [str(path), "--dry-run", "--rows", "ERM", "--seeds", "1", option]
    assert table_tool([*words, "m6*"], monkeypatch) == 0
    assert capsys.readouterr().out.startswith("missing  ERM, m60, seed 1\nruns     1 of the table's 12, 0 recorded")
    assert table_tool([*words, "m61"], monkeypatch) == 2
    assert "error: --pairs/--targets: nothing matches 'm61'" in capsys.readouterr().err
    assert list(in_folder.iterdir()) == []


def test_a_table_runs_on_a_bank_wherever_it_lies(tiny, bank, in_folder, monkeypatch, capsys):
    """A missing bank is said once for every row, with the command. The same bank elsewhere finds its runs done."""
    row = {"name": "ERM", "cfg": str(tiny), "set": ["data.features=banks/mine"]}
    content = {"kind": "generalization", "reference": "ERM", "seeds": [0, 1], "targets": [str(tiny.parent / "clay")]}
    Path("banked.yaml").write_text(yaml.safe_dump({**content, "rows": [row]}))
    assert table_tool(["banked.yaml", "--results", "found"], monkeypatch) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert " seed 0 and 1 other run of this row: " in error and "`uda bank --cfg CONFIG --output banks/mine`" in error
    Path("banks").mkdir()
    Path("banks/mine").symlink_to(bank)
    for job in jobs_of(load_table("banked.yaml"), Path("runs/tables")):
        GeneralizationRun(job.config).execute()
    assert table_tool(["banked.yaml", "--results", "found", "--collect"], monkeypatch) == 0
    before = Path("found/banked.csv").read_bytes()
    assert len(before.splitlines()) == 3
    Path("elsewhere").mkdir()
    Path("banks/mine").rename("elsewhere/theirs")
    Path("banked.yaml").write_text(
        yaml.safe_dump({**content, "rows": [{**row, "set": ["data.features=elsewhere/theirs"]}]})
    )
    capsys.readouterr()
    assert table_tool(["banked.yaml", "--results", "found", "--dry-run"], monkeypatch) == 0
    assert "runs     2 in total, 2 recorded in found/banked.csv, 0 missing" in capsys.readouterr().out
    assert table_tool(["banked.yaml", "--results", "found", "--collect"], monkeypatch) == 0
    assert Path("found/banked.csv").read_bytes() == before
