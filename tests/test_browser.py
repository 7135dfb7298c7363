"""Every chapter in JupyterLab, its explorer operated by mouse and by keyboard."""

import statistics

import pytest
from conftest import ROOT
from lab import ARTEFACTS, BROWSER_OPTIONS, Chapter, find_browser, start_lab
from playwright.sync_api import sync_playwright

CHAPTERS = [path.stem for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
PROJECTOR = {"width": 1280, "height": 720}
NAMELESS = """explorer => [...explorer.querySelectorAll('button, input, select, textarea')].filter(
  control => control.offsetParent && !(
    control.textContent.trim() || control.title || control.ariaLabel
    || [...control.labels ?? []].some(label => label.textContent.trim() && label.offsetParent)
  )).map(control => control.outerHTML)"""
# Text whose contrast with its background is below 4.5 : 1, the limit of WCAG 2.2, 1.4.3.
FAINT = """explorer => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = ([red, green, blue]) => [red, green, blue].map(
    part => (part /= 255) <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4
  ).reduce((sum, part, n) => sum + part * [0.2126, 0.7152, 0.0722][n], 0);
  const background = element => {
    const colour = numbers(getComputedStyle(element).backgroundColor);
    return colour[3] === 0 ? background(element.parentElement) : colour;
  };
  return [...explorer.querySelectorAll('*')].filter(element => element.checkVisibility()
    && !element.disabled && element.tagName !== 'STYLE'
    && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()))
    .map(element => {
      const [a, b] = [numbers(getComputedStyle(element).color), background(element)].map(light);
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.outerHTML];
    }).filter(([contrast]) => contrast < 4.5);
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    find_browser()
    with start_lab(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="module")
def browser():
    path = find_browser()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", params=CHAPTERS)
def chapter(request, lab, browser):
    """A chapter that was run with *Run All*; its kernel is shut down afterwards."""
    page = browser.new_page(viewport=PROJECTOR)
    chapter = Chapter(lab, page, request.param)
    chapter.run_all()
    yield chapter
    chapter.close()


def test_runs_without_an_error(chapter):
    notebook = chapter.save()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"]


def test_a_chapter_is_what_the_server_opens_first(lab, browser):
    page = browser.new_page(viewport=PROJECTOR)
    page.goto(f"{lab.url}?token={lab.token}")
    page.wait_for_url(f"**/{CHAPTERS[0]}.ipynb*")
    page.get_by_role("heading", name="1. Set up a task").wait_for()
    page.close()


def test_links_to_files_of_the_course_can_be_followed(lab, browser):
    page = browser.new_page(viewport=PROJECTOR)
    answer = page.request.get(f"{lab.url}api/contents/data/README.md?token={lab.token}")
    page.close()
    assert answer.ok


# Mouse and keyboard


def click(name):
    return lambda explorer: explorer.get_by_role("button", name=name, exact=True).click()


def click_cell(number):
    return lambda explorer: explorer.locator("button.patching-cell").nth(number).click()


def press(label, *keys):
    """Press keys in a control that has this label."""

    def act(explorer):
        control = explorer.get_by_label(label, exact=True)
        control.focus()
        for key in keys:
            control.press(key)

    return act


def choose(label, key):
    """Choose another entry of a list.

    It has to be opened first: while it is closed, JupyterLab takes the arrow keys to go to
    another cell (jupyter-widgets/ipywidgets#3912).
    """
    return press(label, "Space", key, "Enter")


def write(label, text):
    """Write with the keyboard into the field that has this label."""

    def act(explorer):
        press(label, "ControlOrMeta+a")(explorer)
        explorer.page.keyboard.insert_text(text)
        explorer.page.keyboard.press("Tab")

    return act


OTHER_PROMPT = choose("prompt", "ArrowDown")
MOUSE = {
    "03": [click(name) for name in ("9 Mary", "3 Mary", "all positions", "14 milk", "12 bottle")],
    "04": [click_cell(number) for number in range(25, 33)],
    "05": [click_cell(number) for number in range(9, 17)],
    "07": [click_cell(number) for number in range(9, 17)],
}
KEYBOARD = {
    "03": [press("layer", "ArrowUp"), choose("site", "ArrowUp"), OTHER_PROMPT],
    "04": [press("layer", "ArrowUp"), press("position", "ArrowUp"), choose("site", "ArrowUp")],
    "05": [press("layer", "ArrowUp"), press("head", "ArrowUp"), choose("direction", "ArrowDown")],
    "06": [
        choose("site", "ArrowUp"),
        choose("order", "ArrowDown"),
        choose("corruption", "ArrowDown"),
    ],
    "07": [write("patched together", "5.3 5.7"), choose("direction", "ArrowDown"), OTHER_PROMPT],
}


def operate(chapter, actions, record_property, what):
    """Do one thing after another; each must change the status and the picture."""
    milliseconds = []
    for act in actions:
        status, picture = chapter.status, chapter.picture
        milliseconds.append(chapter.time(lambda act=act: act(chapter.explorer)))
        assert chapter.status != status
        assert chapter.picture != picture
    record_property(
        "latency",
        f"{chapter.name}, {what}: median {statistics.median(milliseconds):.0f} ms, "
        f"longest {max(milliseconds):.0f} ms of {len(milliseconds)}",
    )


def test_operated_by_mouse(chapter, record_property):
    number = chapter.name[:2]
    if number in MOUSE:
        operate(chapter, MOUSE[number], record_property, "mouse")


def test_operated_by_keyboard(chapter, record_property):
    actions = KEYBOARD.get(chapter.name[:2], [OTHER_PROMPT, choose("order", "ArrowDown")])
    operate(chapter, actions, record_property, "keyboard")


def test_what_is_written_is_checked_and_shown(chapter):
    write("corrupted", "After John and")(chapter.explorer)
    chapter.explorer.get_by_text("positions do not correspond").first.wait_for()
    chapter.explorer.locator(".patching-result").wait_for(state="hidden")
    choose("template", "ArrowDown")(chapter.explorer)
    chapter.explorer.locator(".patching-result").wait_for(state="visible")


def test_tab_reaches_every_control(chapter):
    controls = chapter.explorer.locator(
        "button:enabled:visible, input:visible, select:visible, textarea:visible"
    )
    controls.first.focus()
    reached = 1
    while reached < controls.count():
        chapter.page.keyboard.press("Tab")
        assert controls.nth(reached).evaluate("control => control === document.activeElement")
        reached += 1


# What it looks like


def test_every_control_has_a_name_and_every_field_a_visible_label(chapter):
    assert chapter.explorer.evaluate(NAMELESS) == []


def test_fits_on_a_projector(chapter):
    wide = chapter.explorer.evaluate("element => element.scrollWidth - element.clientWidth")
    assert wide <= 0


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_is_legible(chapter, theme):
    chapter.choose_from_menu("Settings", "Theme", f"JupyterLab {theme}")
    chapter.page.locator(f"[data-jp-theme-name='JupyterLab {theme}']").wait_for(state="attached")
    chapter.page.locator("#jupyterlab-splash").wait_for(state="detached")
    chapter.page.set_viewport_size({"width": 1280, "height": 2600})
    chapter.explorer.screenshot(path=ARTEFACTS / f"{chapter.name}-{theme.lower()}.png")
    chapter.page.set_viewport_size(PROJECTOR)
    chapter.explorer.locator(".patching-result").scroll_into_view_if_needed()
    chapter.page.screenshot(path=ARTEFACTS / f"{chapter.name}-{theme.lower()}-projector.png")
    assert chapter.explorer.evaluate(FAINT) == []


def test_leaves_no_errors_in_the_console(chapter):
    assert chapter.errors == []
