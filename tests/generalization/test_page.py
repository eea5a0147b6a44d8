"""The page of a run and the summary of a study: every number on them is one of the records', or follows by hand."""

import contextlib
import html
import io
import json
import re

import numpy as np
import pytest

from tests.adaptation.test_page import Document, text_of
from tests.in_process import generalize
from uda.cli.commands.generalize import LISTS
from uda.core.errors import UserError
from uda.data.domains import Source, Target, TargetLabels
from uda.data.images import ImageArray
from uda.evaluation.accuracy import HARDNESS_BINS, Accuracy
from uda.generalization.config import GeneralizationConfig
from uda.generalization.domains import Seen, SeenAndUnseen
from uda.generalization.methods import GENERALIZATION_METHODS
from uda.generalization.page import hardness_seen, seen_per_class
from uda.generalization.report import DomainResult, GeneralizationReport
from uda.generalization.summary import finished_runs, runs_lines, runs_of, summary_file, write_summary
from uda.report import figures
from uda.training.records import Records

CLASSES = ("ape", "b<e", "cat")
DOMAINS = ("clay", "drawn", "photo")

#: Right ones of ten images per class on the unseen domain, by config and unseen domain, at each of three reports.
RIGHT = {
    "dg_plain": {
        "clay": ([1, 1, 1], [9, 6, 6], [6, 3, 3]),
        "drawn": ([2, 2, 2], [3, 3, 3], [9, 9, 9]),
        "photo": ([5, 1, 0], [0, 0, 0], [1, 2, 3]),
    },
    "dg_angular": {
        "clay": ([0, 0, 3], [0, 0, 6], [0, 0, 9]),
        "drawn": ([3, 3, 3], [6, 6, 6], [9, 9, 9]),
        "photo": ([2, 2, 2], [3, 3, 3], [4, 4, 4]),
    },
}
WITH_PAGE = ("dg_plain/clay", "dg_plain/drawn", "dg_angular/clay")
#: The same of each seen domain's held-out images: the second report is the best.
HELD_OUT = ([2, 2, 2], [8, 7, 9], [5, 5, 5])


def result(name, right, mean, first_bin):
    """Ten images per class; the wrong ones are taken for the next class. All AVH lies in two neighbouring bins."""
    confusion = np.zeros((3, 3), np.int64)
    for label, count in enumerate(right):
        confusion[label, label], confusion[label, (label + 1) % 3] = count, 10 - count
    shares = [count / 10 for count in right]
    reached = Accuracy(
        class_mean=float(np.mean(shares)) + 0.001,  # to be told from overall
        overall=sum(right) / 30,
        per_class=dict(zip(CLASSES, shares, strict=True)),
        confusion=confusion,
        ece=0.05,
        nll=1.0,
    )
    histogram = [0] * HARDNESS_BINS
    histogram[first_bin : first_bin + 2] = [20, 10]
    return DomainResult(name, reached, {"mean": mean, "histogram": histogram})


def config_of(folder, name, target=None, **report):
    return GeneralizationConfig.model_validate(
        {
            "name": name,
            "target": target,
            "output": f"{folder}/{{name}}/{{target}}",
            "data": {"domains": list(DOMAINS)},
            "model": {"loss": "avh", "loss_options": {"scale": 12.5}} if name == "dg_angular" else {},
            "report": {"loggers": [], **report},
        }
    )


def make_run(config):
    """A run's folder from reports with numbers known by hand; returns the results."""
    images = ImageArray(np.zeros((30, 1, 4, 4), np.uint8), [f"{index}.png" for index in range(30)])
    labels = np.repeat(np.arange(3), 10)
    rows = np.arange(30)
    others = [name for name in DOMAINS if name != config.target]
    seen = tuple(Seen(name, Source(images, labels), rows[:24], rows[24:]) for name in others)
    domains = SeenAndUnseen(seen, config.target, Target(images), TargetLabels(labels), CLASSES)
    config.folder.mkdir(parents=True)
    (config.folder / "config.yaml").write_text(config.to_yaml())
    report = GeneralizationReport(Records(config.folder), config, domains, log=lambda line: None)
    for index, right in enumerate(RIGHT[config.name][config.target]):
        held = HELD_OUT[index]
        results = [result(name, held, 0.5 + place, 10) for place, name in enumerate(others)]
        results.append(result(config.target, right, 1.25 - index / 8, 20))
        report.interval(index, 0, 100 * (index + 1), {"loss": 2.5 - index}, results, 61.0)
    return report.finish(200.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder of a study of two configs with three runs each, three of these with a page, and its summary."""
    folder = tmp_path_factory.mktemp("study")
    configs = [config_of(folder, name) for name in RIGHT]
    for run in runs_of(configs):
        make_run(config_of(folder, run.name, run.target, page=f"{run.name}/{run.target}" in WITH_PAGE))
    assert write_summary(configs, log=lambda line: None) == folder / "dg_plain_and_angular_seed0.json"
    return folder


@pytest.fixture(scope="module")
def page(made):
    return (made / "dg_plain" / "clay" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def summary_page(made):
    return (made / "dg_plain_and_angular_seed0.html").read_text(encoding="utf-8")


def table_of(page, label):
    """The cells of a table's body, row by row."""
    body = re.search(rf'aria-label="{re.escape(label)}".*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


@pytest.mark.parametrize("name", ["page", "summary_page"])
def test_pages_are_well_formed_and_hold_all_they_show(name, request):
    page = request.getfixturevalue(name)
    document = Document(page)
    assert document.open == []
    assert not re.search(r"https?:|//[a-z]", re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", page))
    assert not document.all("script") and not document.all("link") and not document.all("img")
    ids = [attributes["id"] for _, attributes in document.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert all(drawing["aria-label"] for drawing in document.all("svg"))
    assert "b<e" not in page and "b&lt;e" in page, "names are escaped"


def test_the_cards_are_the_three_figures_under_their_own_names(page):
    """Right of 30: 3, 21 and 12. The held-out images like the second report best, and so do the unseen labels."""
    text = text_of(page)
    assert "on the unseen domain clay is 40.00 % after 300 steps" in text
    assert "On the held-out images of the seen domains it is 50.00 %, as the mean of 2 domains" in text
    cards = re.findall(
        r'<div class="card.*?<div>(.*?)</div>\n<div class="value">(.*?) %</div>\n(.*?)</div>', page, re.DOTALL
    )
    found = {title.split(" <abbr")[0]: (value, note) for title, value, note in cards}
    assert {title: value for title, (value, _) in found.items()} == {
        "Final": "40.00",
        "Validation choice": "70.00",
        "Oracle best": "70.00",
    }
    assert "report 1" in found["Validation choice"][1] and "held-out" in found["Validation choice"][1]
    assert "a bound, not a result" in found["Oracle best"][1]
    assert "class mean 70.10" in found["Oracle best"][1]
    assert "After report 1, accuracy on the unseen domain fell by 30.0 points" in text


def test_validation_and_oracle_may_pick_different_reports(made):
    """On drawn the unseen labels like the last report best, the held-out images the second."""
    page = (made / "dg_plain" / "drawn" / "report.html").read_text(encoding="utf-8")
    rows = table_of(page, "Table of the reports")
    assert [row[9] for row in rows] == ["", "validation", "oracle"]
    assert [row[4] for row in rows] == ["20.00", "30.00", "90.00"]
    assert "accuracy on the unseen domain fell" not in page


def test_the_tables_are_the_records(page):
    """Held out: 6, 24 and 15 of 30, in either domain; mean AVH of the seen 0.5 and 1.5."""
    assert table_of(page, "Table of the reports") == [
        ["0", "100", "2.500", "20.00", "10.00", "10.10", "0.050", "1.000", "1.250", "", "1 min 01 s"],
        ["1", "200", "1.500", "80.00", "70.00", "70.10", "0.050", "1.000", "1.125", "validation, oracle", "1 min 01 s"],
        ["2", "300", "0.500", "50.00", "40.00", "40.10", "0.050", "1.000", "1.000", "", "1 min 01 s"],
    ]
    assert table_of(page, "Table of the seen domains")[1] == ["1", "80.00", "80.00", "80.00"]
    assert table_of(page, "Table of the classes") == [
        ["ape", "50.00", "60.00", "+10.00"],
        ["b<e", "50.00", "30.00", "-20.00"],
        ["cat", "50.00", "30.00", "-20.00"],
    ]


def test_the_figures_are_described_by_their_numbers(page):
    labels = [drawing["aria-label"] for drawing in Document(page).all("svg")]
    assert "Held-out images of each seen domain by step: drawn from 20 to 50; photo from 20 to 50." in labels
    assert "The unseen domain (oracle) by step: accuracy from 10 to 40; class mean from 10.1 to 40.1." in labels
    assert "Histograms of AVH: mean 1.000 on held-out images, 1.000 on the unseen domain." in labels
    assert len(labels) == 7


def test_what_needs_the_unseen_labels_is_marked(page, summary_page):
    for title in ("Final", "Validation choice", "Oracle best"):
        assert re.search(rf'{title} <abbr class="oracle"', page), title
        assert re.search(rf'<h3>{title} <abbr class="oracle"', summary_page), title
    for title in ("unseen, %", "class mean, %", "ECE", "AVH, unseen", "Confusion on the unseen domain"):
        assert re.search(rf'{title} <abbr class="oracle"', page), title
    assert re.search(r'<td>unseen <abbr class="oracle"', summary_page)
    assert re.search(r'By class <abbr class="oracle"', summary_page)
    assert not re.search(r'held out(, %)? <abbr class="oracle"', page + summary_page), "seen images' labels are known"


def test_what_was_run_names_loss_and_images(made, page):
    facts = text_of(page).split("What was run")[1]
    assert "drawn (24 + 6), photo (24 + 6)" in facts
    assert "Loss cross_entropy" in facts
    other = text_of((made / "dg_angular" / "clay" / "report.html").read_text(encoding="utf-8"))
    assert "Loss avh, scale 12.5" in other


def test_hardness_of_several_domains_is_weighted_by_their_images():
    """(3 * 0.5 + 1 * 1.0) / 4 = 0.625."""
    record = {
        "seen": {
            "a": {"hardness": {"mean": 0.5, "histogram": [2, 1, 0]}},
            "b": {"hardness": {"mean": 1.0, "histogram": [0, 0, 1]}},
        }
    }
    assert hardness_seen(record) == {"mean": 0.625, "histogram": [2, 1, 1]}


def test_accuracy_by_class_of_several_domains_counts_images():
    """(1 + 3) of (2 + 3) are right; no image is a dog."""
    record = {
        "seen": {
            "a": {"accuracy": {"confusion": [[1, 1], [0, 0]]}},
            "b": {"accuracy": {"confusion": [[3, 0], [0, 0]]}},
        },
        "accuracy": {"per_class": {"cat": 0.1, "dog": None}},
    }
    assert seen_per_class(record) == {"cat": 0.8, "dog": None}


def test_a_histogram_shows_shares_and_leaves_out_what_is_empty():
    """3 of 4 images lie in [0.5, 1), 1 in [1, 1.5): 75 and 25 per cent; the five panels share their axes."""
    panels = {str(number): {"seen": [0, 3, 1, 0], "unseen": [0, 1, 1, 0]} for number in range(5)}
    figure = figures.hardness_figure(panels)
    drawn = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in drawn] == ["0", "1", "2", "3", "4"]
    for axes in drawn:
        assert axes.get_xlim() == (0.5, 1.5)
        seen, unseen = axes.patches
        np.testing.assert_allclose(seen.get_data().values, [0, 75, 25, 0])
        np.testing.assert_allclose(unseen.get_data().values, [0, 50, 50, 0])


def test_a_curve_for_each_of_many_domains():
    figure = figures.curves_figure([1, 2], {f"d{number}": [number, number] for number in range(9)}, "%")
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == list(range(9))


#: By hand from RIGHT: accuracy on clay, drawn, photo, and the average.
WANTED = {
    "final": {"dg_plain": [0.4, 0.9, 0.2, 0.5], "dg_angular": [0.3, 0.9, 0.4, 1.6 / 3]},
    "validation_choice": {"dg_plain": [0.7, 0.3, 0.0, 1 / 3], "dg_angular": [0.2, 0.6, 0.3, 1.1 / 3]},
    "oracle_best": {"dg_plain": [0.7, 0.9, 0.2, 0.6], "dg_angular": [0.3, 0.9, 0.4, 1.6 / 3]},
}
TITLES = {"final": "Final", "validation_choice": "Validation choice", "oracle_best": "Oracle best"}


def test_the_summary_has_each_average_by_hand(made):
    summary = json.loads((made / "dg_plain_and_angular_seed0.json").read_text())
    assert summary["targets"] == list(DOMAINS)
    for choice, rows in WANTED.items():
        for row in summary["rows"]:
            found = [*row[choice]["by_target"].values(), row[choice]["average"]]
            assert found == pytest.approx(rows[row["config"]])
    angular = summary["rows"][1]
    assert (angular["loss"], angular["loss_options"]) == ("avh", {"scale": 12.5})
    assert angular["per_class"]["clay"] == {"ape": 0.0, "b<e": 0.0, "cat": 0.9}
    assert angular["hardness"]["photo"]["seen"]["mean"] == 1.0
    assert angular["hardness"]["photo"]["seen"]["histogram"][10:12] == [40, 20]
    assert angular["hardness"]["photo"]["unseen"]["histogram"][20:22] == [20, 10]


def test_the_summary_page_puts_configs_side_by_side(summary_page):
    for choice, rows in WANTED.items():
        shown = [[name, *(f"{100 * share:.2f}" for share in shares)] for name, shares in rows.items()]
        assert table_of(summary_page, f"{TITLES[choice]}, methods by unseen domain") == shown
    assert table_of(summary_page, "Accuracy by class of dg_angular")[2] == ["cat", "90.00", "90.00", "40.00"]
    assert table_of(summary_page, "Mean AVH by unseen domain")[3] == ["dg_angular", "unseen oracle", *["1.000"] * 3]
    assert len(Document(summary_page).all("svg")) == 2
    assert "loss avh, scale 12.5" in text_of(summary_page)


def test_the_summary_leads_to_the_pages_of_the_runs(made, summary_page):
    """Where a run has a page, each of the three tables leads to it."""
    links = [attributes["href"] for attributes in Document(summary_page).all("a")]
    assert sorted(links) == sorted([f"{run}/report.html" for run in WITH_PAGE] * 3)
    assert all((made / link).is_file() for link in links)


def test_the_terminal_has_the_same_table(made):
    summary = json.loads((made / "dg_plain_and_angular_seed0.json").read_text())
    lines = list(runs_lines(summary))
    assert lines[0].endswith("(oracle):")
    rows = {TITLES[choice]: WANTED[choice] for choice in WANTED}
    for title, wanted in rows.items():
        start = next(index for index, line in enumerate(lines) if line.startswith(title))
        assert lines[start + 1].split() == [*DOMAINS, "average"]
        for offset, (name, shares) in enumerate(wanted.items(), start=2):
            assert lines[start + offset].split() == [name, *(f"{100 * share:.2f}" for share in shares)]


def test_commands_for_one_target_each_add_up_to_one_summary(tmp_path):
    """The first leaves none; the second two figures without an average; runs of another config do not count."""
    clay, drawn, photo = (config_of(tmp_path, "dg_plain", name, page=False) for name in DOMAINS)
    make_run(clay)
    assert write_summary([clay], log=lambda line: None) is None
    make_run(drawn)
    make_run(photo.model_copy(update={"seed": 5}))
    path = write_summary([config_of(tmp_path, "dg_plain", "drawn")], log=lambda line: None)
    assert path == tmp_path / "dg_plain" / "summary_seed0.json"
    final = json.loads(path.read_text())["rows"][0]["final"]
    assert final == {"by_target": {"clay": 0.4, "drawn": 0.9, "photo": None}, "average": None}
    page = path.with_suffix(".html").read_text(encoding="utf-8")
    assert "no finished run yet for: photo" in page
    assert table_of(page, "Final, methods by unseen domain") == [["dg_plain", "40.00", "90.00", "-", "-"]]
    assert Document(page).open == []


def test_without_pages_there_are_figures_for_programs_alone(tmp_path):
    config = config_of(tmp_path, "dg_plain", page=False)
    for run in runs_of([config]):
        make_run(run)
        assert not (run.folder / "report.html").exists()
    path = write_summary([config], log=lambda line: None)
    assert path.is_file() and not path.with_suffix(".html").exists()


def test_a_run_that_is_not_finished_does_not_count(tmp_path):
    config = config_of(tmp_path, "dg_plain", page=False)
    for run in runs_of([config]):
        make_run(run)
    (tmp_path / "dg_plain" / "drawn" / "results.json").unlink()
    assert list(finished_runs(config)) == ["clay", "photo"]


@pytest.mark.parametrize("name", ["results.json", "rounds/00/report.json"])
def test_a_broken_run_is_not_left_out_in_silence(tmp_path, name):
    config = config_of(tmp_path, "dg_plain", page=False)
    for run in runs_of([config]):
        make_run(run)
    (tmp_path / "dg_plain" / "photo" / name).write_text("{")
    with pytest.raises(UserError, match=f"photo/{name} is broken; give the command of dg_plain with target=photo"):
        finished_runs(config)


def test_where_summaries_lie():
    def named(name, seed=0):
        return GeneralizationConfig(name=name, seed=seed, data={"domains": ["a", "b"]})

    def file_of(*names, seed=0):
        return summary_file([named(name, seed) for name in names]).relative_to(folder).as_posix()

    folder = summary_file([named("x")]).parents[2]
    assert file_of("pacs_erm", seed=3) == "runs/pacs_erm/summary_seed3"
    assert file_of("pacs_erm", "pacs_avh_loss") == "runs/pacs_erm_and_avh_loss_seed0"
    assert file_of("pacs", "pacs_avh") == "runs/pacs_and_pacs_avh_seed0"
    assert file_of("mine", "yours") == "runs/mine_and_yours_seed0"
    many = [f"pacs_{'long' * 9}_{number}" for number in range(5)]
    assert len(file_of(*many)) < 150
    assert file_of(*many) != file_of(*reversed(many))


def test_runs_that_would_share_a_folder_are_refused():
    def named(name, output, domains=("a", "b")):
        return GeneralizationConfig(name=name, output=output, data={"domains": list(domains)})

    assert len(runs_of([named("x", "o/{name}/{target}"), named("y", "o/{name}/{target}")])) == 4
    with pytest.raises(UserError, match=r"share the folder o; put \{target\}"):
        runs_of([named("x", "o")])
    with pytest.raises(UserError, match=r"share the folder o/a; put \{name\}"):
        runs_of([named("x", "o/{target}"), named("y", "o/{target}")])
    with pytest.raises(UserError, match="different domains"):
        runs_of([named("x", None), named("y", None, "bc")])


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Two configs on two angles by the command line: the exit code, what it printed, the folder, the command."""
    folder = tmp_path_factory.mktemp("played")
    words = ["--cfg", "rotated_digits_erm.yaml", "data.domains=[m0,m30]", "--cfg", "rotated_digits_avh_loss"]
    words += ["training.steps=4", "training.evaluate_every=2", "training.batch_size=4", "report.loggers=[]"]
    words += [f"output={folder}/{{name}}/{{target}}", "runtime.device=cpu"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = generalize(words)
    return code, printed.getvalue(), folder, words


def test_two_configs_by_the_command_line(played):
    code, printed, folder, _ = played
    assert code == 0
    file = folder / "rotated_digits_erm_and_avh_loss_seed0"
    rows = json.loads(file.with_suffix(".json").read_text())["rows"]
    page = file.with_suffix(".html").read_text(encoding="utf-8")
    for row, shown in zip(rows, table_of(page, "Final, methods by unseen domain"), strict=True):
        results = [json.loads((folder / row["config"] / name / "results.json").read_text()) for name in row["folders"]]
        reached = [result["final"]["overall"] for result in results]
        assert shown == [row["config"], *(f"{100 * share:.2f}" for share in [*reached, sum(reached) / 2])]
        assert f"  {' '.join(shown)}" in re.sub(" +", " ", printed).replace("\n ", "\n  ")
        for result in results:
            own = (folder / row["config"] / result["target"] / "report.html").read_text(encoding="utf-8")
            assert len(table_of(own, "Table of the reports")) == 2
            assert f"is {100 * result['final']['overall']:.2f} % after 4 steps" in text_of(own)


def test_a_study_that_is_finished_says_the_same_again(played, capsys):
    _, _, folder, words = played
    file = folder / "rotated_digits_erm_and_avh_loss_seed0.html"
    before = file.read_text()
    file.unlink()
    assert generalize(words) == 0
    assert capsys.readouterr().out.count("is finished") == 4
    assert file.read_text() == before


def test_a_dry_run_says_plan_and_cost_and_writes_nothing(in_folder, capsys):
    """MetaReg has two stages, of half the steps each: 8 reports on 5 x 170 held-out images and 833 unseen ones."""
    words = ["target=m30", "training.steps=8", "training.evaluate_every=1", "training.batch_size=4"]
    assert generalize(["--cfg", "rotated_digits_metareg.yaml", "--dry-run", *words]) == 0
    printed = capsys.readouterr().out
    assert "unseen   m30" in printed and "trains   8 steps" in printed and "nothing was written" in printed
    assert f"cost     8 training steps, {8 * (5 * 170 + 833):,} images predicted: about" in printed
    assert [line.split()[1] for line in printed.split("\n") if line.startswith("pace")] == ["stage", "stage", "predict"]
    assert list(in_folder.iterdir()) == []


def test_mistakes_in_all_configs_are_said_once_each(capsys):
    words = ["--cfg", "rotated_digits_erm.yaml", "--cfg", "rotated_digits_avh_loss.yaml", "--cfg", "rotated_digits_avg"]
    assert generalize([*words, "traning.steps=4"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "did you mean 'training'" in errors[0] and "no such config" in errors[1]


@pytest.mark.parametrize("what", LISTS)
def test_lists(what, capsys):
    assert generalize(["--list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines if not line.startswith(" ")]  # a long line continues on an indented line
    if what == "methods":
        assert names == [name for name, _ in GENERALIZATION_METHODS.describe()]
    if what == "configs":
        assert "rotated_digits_erm.yaml" in names and "digits_avh.yaml" not in names
    assert {"losses": "avh", "datasets": "rotated_digits", "backbones": "digits_cnn"}.get(what, names[0]) in names
