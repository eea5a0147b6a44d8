"""Pages of domain generalisation and of the study of hardness in a browser: for every reader, in every width."""

import pytest

from tests.browser.conftest import check_page
from tests.generalization.test_page import config_of, make_run
from tests.hardness.dynamics.test_page import epoch_record
from tests.searches.test_page import page_of
from uda.generalization.summary import runs_of, write_summary
from uda.hardness.dynamics.page import supervised_page
from uda.report.figures import new_axes, styled
from uda.report.findings import Findings
from uda.report.run_record import RunRecord

SHORT = {"schemes": ["light"]}


@pytest.mark.slow
def test_pages_of_domain_generalisation(open_page, tmp_path):
    configs = [config_of(tmp_path, name, gallery=12) for name in ("dg_plain", "dg_angular")]
    for run in runs_of(configs):
        make_run(run)
    page = open_page(tmp_path / "dg_plain" / "clay" / "report.html")
    check_page(page)
    page.locator("[data-part=confusion] td[data-truth]").nth(1).click()
    assert " of 4 shown" in page.locator("[data-part=gallery] .count").first.inner_text(), "apes taken for b<e"
    assert page.locator("[data-part=map] .legend").inner_text().split("\n")[-2:] == ["seen", "unseen"]
    summary = write_summary(configs, log=lambda line: None).with_suffix(".html")
    page = open_page(summary)
    check_page(page)
    table = page.get_by_role("region", name="Final, methods by unseen domain")
    table.get_by_role("button", name="photo").click()
    assert table.locator("tbody th").all_inner_texts() == ["dg_angular", "dg_plain"], "40 and 20 per cent"


@pytest.mark.slow
def test_pages_of_the_study_of_hardness(open_page, tmp_path):
    records = [epoch_record(number, {"ape": 0.5, "b<e": 0.1 * number}) for number in range(3)]
    path = tmp_path / "report.html"
    path.write_text(supervised_page(RunRecord(tmp_path, {"name": "mine"}, reports=records), None).render())
    check_page(open_page(path), **SHORT)

    findings = Findings(tmp_path / "study", "The study")
    rows = [{"model": f"{'long_name_' * 6}{number}", "text": "word " * 90, "n": number} for number in range(30)]
    findings.table("claims", "First", rows, first=True)
    findings.section("A part")
    for name, width in (("narrow", 4), ("wide", 12)):
        findings.figure(name, styled(new_axes)(width, 2).figure, name, "A figure.", [{"x": 1}])
    findings.figure("photo", styled(new_axes)(12, 2).figure, "photo", "Pixels.", [{"x": 1}], raster=True)
    findings.table("numbers", "Second", rows)
    check_page(open_page(findings.write()))


@pytest.mark.slow
def test_the_page_of_a_search(open_page, tmp_path):
    state, _, _ = page_of(tmp_path)
    page = open_page(tmp_path / "search.html")
    check_page(page)
    table = page.get_by_role("region", name="Table of the trials")
    table.locator("button.sort").nth(1).click()
    scores = [trial.score for trial in state.trials if trial.score is not None]
    shown = [float(text) for text in table.locator("tbody td:nth-child(2)").all_inner_texts() if text != "-"]
    assert shown in ([round(s, 4) for s in sorted(scores)], [round(s, 4) for s in sorted(scores, reverse=True)])
