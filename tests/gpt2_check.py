"""Every notebook on a model of GPT-2 small's shape: `make gpt2-check`.

Runs the notebooks with `COURSE_MODEL=gpt2` on the stand-ins of `gpt2.py`, loaded the way a user's
GPT-2 small is. On the one made of ioi-mini every notebook must run to its end without warnings; how
long each takes and how much memory is printed, and the notebooks are left in a folder, to be read
and their figures looked at. On the one with random weights, which cannot do the task, notebooks
must stop, and say why in a sentence.
"""

import argparse
import os
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import gpt2
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
# GPT-2 small takes minutes where ioi-mini takes seconds; cells that take longer hang.
SECONDS_FOR_A_CELL = 1800
# Chapter 6 stops as well, but only after sweeps that take minutes.
STOPPING = ("01", "02", "03", "04", "05", "07")
REASONS = re.compile(
    r"^(AssertionError: this model does not do the task: choose another"
    r"|ValueError: (There is nothing to draw: )?The clean and corrupted runs differ by only 0\.0\d+"
    r", .*Choose pairs, or a model, with a larger difference)"
)


def run_notebook(path, settings):
    """Run a notebook; returns it, what stopped it or None, and the seconds."""
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=SECONDS_FOR_A_CELL, resources=place)
    start, stopped = time.perf_counter(), None
    try:
        client.execute(env=settings)
    except CellExecutionError as error:
        stopped = f"{error.ename}: {error.evalue}"
    return notebook, stopped, time.perf_counter() - start


def check_complete(path, settings, folder):
    """Fail unless a notebook ran to its end, on the stand-in, and without warnings."""
    notebook, stopped, seconds = run_notebook(path, settings)
    nbformat.write(notebook, folder / path.name)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    stray = [o for o in outputs if o.get("name") == "stderr"]
    if stopped or stray or "ioi-mini" in str([o.get("text") for o in outputs]):
        sys.exit(f"{path.stem} stopped, has warnings, or used ioi-mini: {stopped or stray}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    megabytes = peak / (1e6 if sys.platform == "darwin" else 1e3)
    print(f"{path.stem}: {seconds:.0f} s, {megabytes:.0f} MB", flush=True)


def check_stopped(path, settings):
    """Fail unless a notebook stopped, for a reason that a reader understands."""
    _, stopped, _ = run_notebook(path, settings)
    if not REASONS.match(stopped or ""):
        sys.exit(f"{path.stem} should have stopped for want of a difference: {stopped}")
    print(f"{path.stem} stops: {stopped}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where run notebooks go")
    parser.add_argument("chapters", nargs="*", help="such as 03; without any, all")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    paths = [
        path
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        if not given.chapters or path.name[:2] in given.chapters
    ]
    for make in (gpt2.carried_over, gpt2.random):
        with tempfile.TemporaryDirectory() as cache:
            gpt2.fill_cache(cache, make)
            settings = os.environ | {
                "COURSE_MODEL": "gpt2",
                "HF_HUB_CACHE": cache,
                "HF_HUB_OFFLINE": "1",
                "TQDM_DISABLE": "1",
                "PYTHONPATH": str(ROOT),
            }
            for path in paths:
                if make is gpt2.carried_over:
                    check_complete(path, settings, given.folder)
                elif path.name[:2] in STOPPING:
                    check_stopped(path, settings)


if __name__ == "__main__":
    main()
