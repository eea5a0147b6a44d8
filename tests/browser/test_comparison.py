"""The page that compares runs, in a browser: for every reader, with its curves, tables and pictures."""

import pytest

from tests.browser.conftest import check_page
from tests.report.runs import adaptation_run
from uda.run_pages import compare

NAMES = ("</script><img src=x onerror=alert(1)>", "מטוס " + "x" * 80)
#: Predictions of the first and the second group.
ANSWERS = ((0, 0, 1, 1), (0, 1, 1, 0))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page of two groups with two seeds each."""
    folder = tmp_path_factory.mktemp("comparison")
    runs = [
        adaptation_run(
            folder / f"{selector}{seed}",
            seed,
            finals=(0.3, 0.5 + seed / 10),
            per_class={NAMES[0]: 0.4, NAMES[1]: 0.9 if selector == "avc" else 0.5},
            classes=NAMES,
            predictions=answers,
            truth=(0, 0, 1, -1),
            self_training={"selector": selector},
        )
        for selector, answers in zip(("avc", "softmax"), ANSWERS, strict=True)
        for seed in (0, 1)
    ]
    compare(runs, folder / "comparison.html")
    return folder / "comparison.html"


def test_for_every_reader(open_page, written):
    check_page(open_page(written))


def test_curves_are_drawn_with_a_legend_that_hides_a_group_with_its_runs(open_page, written):
    page = open_page(written)
    assert page.locator("[data-part=curves] .fallback:visible").count() == 0
    figure = page.locator("[data-curve=class-mean]")
    assert "A selector avc: 30 at round 0, 55 at round 1" in figure.get_by_role("img").get_attribute("aria-label")
    coloured = """(canvas) => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let count = 0;
      for (let at = 0; at < data.length; at += 4) {
        const [red, green, blue, alpha] = data.slice(at, at + 4);
        if (alpha > 40 && Math.max(red, green, blue) - Math.min(red, green, blue) > 60) count += 1;
      }
      return count;
    }"""
    canvas = figure.locator("canvas")
    assert canvas.evaluate(coloured) > 0
    for name in ("A selector avc", "B selector softmax"):
        figure.get_by_role("button", name=name).click()
    assert canvas.evaluate(coloured) == 0
    figure.get_by_role("button", name="A selector avc").click()
    assert canvas.evaluate(coloured) > 0


def test_classes_can_be_sorted_and_searched(open_page, written):
    page = open_page(written)
    rows = page.locator("[data-part=class-table] tbody tr")
    assert rows.first.locator("th").get_attribute("title") == NAMES[1]  # the largest difference
    page.get_by_label("Search classes").fill("onerror")
    assert [row.is_visible() for row in rows.all()] == [False, True]
    page.locator("[data-part=class-table] th button").last.click()
    assert rows.first.locator("th").get_attribute("title") == NAMES[0]


def test_pictures_tell_who_is_right(open_page, written):
    """Of two images on which they differ, one is of the first class; the other has no label."""
    page = open_page(written)
    pictures = page.locator(".gallery li")
    assert pictures.count() == 2
    assert pictures.nth(0).locator(".answer.right .badge").all_inner_texts() == ["A"]
    assert pictures.nth(0).locator(".answer.wrong .badge").all_inner_texts() == ["B"]
    assert pictures.nth(1).locator(".verdict").count() == 0


def test_without_script_and_on_paper_it_is_read(open_page, written):
    page = open_page(written, script=False)
    assert page.locator(".fallback:visible svg").count() == page.locator("[data-curve]").count() > 3
    page = open_page(written, scheme="dark")
    page.emulate_media(media="print")
    assert page.locator(".controls:visible").count() == 0
    assert page.locator("#groups").is_visible()
