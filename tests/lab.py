"""JupyterLab as `make lab` starts it, and a browser to look at it with."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from packaging.version import Version

ARTEFACTS = ROOT / "artifacts" / "browser"
BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)
# Chromium as root in a container needs the first two; the rest keep it from calling home.
BROWSER_OPTIONS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SECONDS_TO_START = 90


@dataclass
class Lab:
    """A running server, on a copy of the course whose notebooks have no outputs."""

    folder: Path
    url: str
    token: str


def find_browser():
    """Find Chromium or Chrome; without one, skip, or fail where a run has to be complete."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found and shutil.which("make"):
        return found
    reason = f"needs `make` and a browser, one of {', '.join(BROWSERS)}"
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


def copy_course(folder):
    """Copy what `make lab` needs, and clear the notebooks, so that what is there was run."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, folder)
    for name in ("notebooks", "data"):
        (folder / name).mkdir()
    shutil.copy2(ROOT / "data" / "README.md", folder / "data")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, folder / "notebooks" / path.name)


def settings(folder):
    """Give the server a home of its own, in which nobody is asked about news."""
    home = {
        name: str(folder / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        )
    }
    news = Path(home["JUPYTERLAB_SETTINGS_DIR"], "@jupyterlab", "apputils-extension")
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    if Version(version("jupyterlab")) < Version("4.6"):
        # Older ones take cells that are far off out of the page, where nothing can look at them.
        cells = news.parent / "notebook-extension"
        cells.mkdir()
        (cells / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    return home | {"BROWSER": "true"}


@contextlib.contextmanager
def start_lab(folder):
    """Run `make lab` in a copy of the course, with the environment that runs the tests."""
    course = folder / "course"
    course.mkdir()
    copy_course(course)
    home = settings(folder)
    command = ["make", "-o", f"{sys.prefix}/.installed", "lab", f"VENV={sys.prefix}"]
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    with (
        (ARTEFACTS / "lab.log").open("w") as log,
        subprocess.Popen(
            command,
            cwd=course,
            env=os.environ | home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            server = wait_for_server(Path(home["JUPYTER_RUNTIME_DIR"]), process)
            yield Lab(course, server["url"], server["token"])
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_server(runtime, process):
    """Wait for the file in which a server says where it is."""
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and process.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            with contextlib.suppress(json.JSONDecodeError):
                return json.loads(path.read_text())
        time.sleep(0.2)
    pytest.fail("`make lab` did not start a server; see artifacts/browser/lab.log")


class Chapter:
    """A notebook in an open page, and its explorer."""

    def __init__(self, lab, page, name):
        self.lab, self.page, self.name = lab, page, name
        self.errors = []
        page.on("console", lambda m: m.type == "error" and self.errors.append(m.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(f"{lab.url}lab/tree/notebooks/{name}.ipynb?token={lab.token}&reset")
        self.wait_for_kernel()

    @property
    def explorer(self):
        return self.page.locator(".patching-explorer")

    @property
    def picture(self):
        return self.explorer.locator(".patching-result").screenshot()

    @property
    def status(self):
        return self.explorer.locator("[role=status]").inner_text()

    def wait_for_kernel(self):
        """Wait until the page talks to a kernel; the page's own sign says idle before that."""
        while not any(
            kernel["connections"] and kernel["execution_state"] == "idle"
            for kernel in self.page.request.get(self.api("kernels")).json()
        ):
            self.page.wait_for_timeout(100)
        self.wait_until_idle()

    def wait_until_idle(self):
        self.page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")

    def api(self, path):
        return f"{self.lab.url}api/{path}?token={self.lab.token}"

    def choose_from_menu(self, *labels):
        """Open one menu after the other."""
        menu, *rest = labels
        self.page.locator(".lm-MenuBar-item", has_text=menu).click()
        for label in rest:
            self.page.locator(".lm-Menu-item").get_by_text(label, exact=True).click()

    def run_all(self):
        self.choose_from_menu("Run", "Run All Cells")
        self.page.wait_for_function(
            # The first cell is collapsed, and shows no number.
            """() => [...document.querySelectorAll(
              '.jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)'
            )].every(prompt => /\\d/.test(prompt.textContent))""",
            timeout=200_000,
        )
        self.wait_until_idle()
        self.explorer.scroll_into_view_if_needed()

    def close(self):
        """Close the page and shut down the kernel, to free its memory."""
        for kernel in self.page.request.get(self.api("kernels")).json():
            assert self.page.request.delete(self.api(f"kernels/{kernel['id']}")).ok
        self.page.close()

    def save(self):
        """Save the notebook, and read what was saved once the server has answered."""
        name = f"{self.name}.ipynb"

        def is_saved(response):
            return response.request.method == "PUT" and name in response.url

        with self.page.expect_response(is_saved) as saved:
            self.choose_from_menu("File", "Save Notebook")
        assert saved.value.ok
        return nbformat.read(self.lab.folder / "notebooks" / name, as_version=4)

    def time(self, act):
        """Act, wait for what it leads to, and give the milliseconds from last press to status."""
        status = self.explorer.locator("[role=status]")
        status.evaluate(START_CLOCK)
        act()
        return self.page.wait_for_function("() => window.courseClock.end", timeout=20_000) and (
            self.page.evaluate("() => window.courseClock.end - window.courseClock.start")
        )


# The clock starts with the last press of a key or button (the presses that open a list do not
# count) and stops when the status says what is shown.
START_CLOCK = """status => {
  const clock = window.courseClock = {};
  const start = event => { if (!clock.end) clock.start = event.timeStamp };
  for (const kind of ['pointerdown', 'keydown']) addEventListener(kind, start, {capture: true});
  const explorer = status.closest('.patching-explorer'), before = status.textContent;
  const observer = new MutationObserver(() => {
    const text = explorer.querySelector('[role=status]')?.textContent ?? before;
    if (text !== before && !text.startsWith('Patching')) {
      clock.end = performance.now();
      observer.disconnect();
    }
  });
  observer.observe(explorer, {subtree: true, childList: true, characterData: true});
}"""
