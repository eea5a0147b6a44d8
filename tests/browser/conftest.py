"""A browser for tests of pages: the chromium of this machine, driven by playwright, started once per session.

`open_page` opens an HTML file as a reader does, from the disk. `check_page` says what must hold for every page. Where
there is no chromium or no playwright, all tests of this folder are skipped. `UDA_CHROMIUM` names the program to use.
"""

import os
import shutil

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu"]
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")


def find_chromium() -> str | None:
    """Path of a chromium, or None."""
    return os.environ.get("UDA_CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None)


@pytest.fixture(scope="session")
def browser():
    """The browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
    program = find_chromium()
    if program is None:
        pytest.skip(f"needs a browser: {', '.join(PROGRAMS)} or the environment variable UDA_CHROMIUM")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """A function that opens an HTML file and returns its page. `page.said` holds what the console and errors said."""
    yield from opener(browser)


@pytest.fixture(scope="module")
def open_shared_page(browser):
    """As `open_page`, for a page that the tests of a module share."""
    yield from opener(browser)


def opener(browser):
    contexts = []

    def opened(path, *, width=1280, scheme="light", script=True, before=None, touch=False):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=scheme,
            java_script_enabled=script,
            has_touch=touch,
            is_mobile=touch,
            offline=True,
        )
        contexts.append(context)
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("dialog", lambda dialog: (page.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        if before:
            page.add_init_script(before)
        load(page, path, script)
        return page

    yield opened
    for context in contexts:
        context.close()


def load(page, path, script=True):
    """Load an HTML file, and wait until its script has built all parts."""
    page.goto(path.as_uri())
    if script:
        page.wait_for_function("document.documentElement.dataset.ready === 'true'")


def too_wide(page) -> str | None:
    """The first element that makes the page wider than the screen, or None."""
    return page.evaluate(
        """() => {
          const width = document.documentElement.clientWidth;
          if (document.documentElement.scrollWidth <= width) return null;
          const tooFar = (each) => each.getBoundingClientRect().right > width + 1 && !each.closest(".scroll, .wide");
          const wide = [...document.body.querySelectorAll("*")].find(tooFar);
          return wide ? wide.outerHTML.slice(0, 200) : "unknown";
        }"""
    )


#: axe-core looks at each element for milliseconds. Of rows, cells and cards that repeat, the first few stand for all.
#: It cannot see what is in a drawing.
ALIKE = "tbody tr:nth-child(n+6), tr > :nth-child(n+9), .gallery li:nth-child(n+4), .classes li:nth-child(n+3), svg > *"
TAKE_OUT = """(alike) => {
  window.takenOut = [...document.querySelectorAll(alike)].map((node) => {
    const place = document.createComment("");
    node.replaceWith(place);
    return [place, node];
  });
}"""
PUT_BACK = "() => window.takenOut.reverse().forEach(([place, node]) => place.replaceWith(node))"


def axe_violations(page, rules: str | None = None, whole: bool = False) -> list[str]:
    """What axe-core finds on the page as it is now: rule, and the first element that breaks it.

    Args:
        page: the page.
        rules: the name of the only rule to look at; None for all.
        whole: look at everything, not only at the first of those that are alike.
    """
    from axe_playwright_python.sync_playwright import Axe

    if not whole:
        page.evaluate(TAKE_OUT, ALIKE)
    options = {"resultTypes": ["violations"], **({"runOnly": [rules]} if rules else {})}
    found = Axe().run(page, options=options).response["violations"]
    if not whole:
        page.evaluate(PUT_BACK)
    return [f"{rule['id']}: {rule['help']}: {rule['nodes'][0]['html'][:200]}" for rule in found]


def check_page(page, schemes=SCHEMES, widths=WIDTHS, whole=False) -> None:
    """Check what must hold for every page: a silent console, no horizontal scrolling, and nothing that axe-core finds.

    The page is looked at in every colour scheme and width, with all its details open. What axe-core finds depends on
    the scheme in one rule only.
    """
    page.evaluate("document.querySelectorAll('details').forEach((details) => (details.open = true))")
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in schemes:
            page.emulate_media(color_scheme=scheme)
            rules = None if scheme == schemes[0] else "color-contrast"
            assert axe_violations(page, rules, whole) == [], f"{scheme}, {width} px"
        assert too_wide(page) is None, f"{width} px"
    assert page.said == []
