"""Every notebook on a model of GPT-2 small's shape: `make gpt2-check`.

Runs the notebooks with `COURSE_MODEL=gpt2` on the stand-in that `gpt2.py` makes of ioi-mini, loaded
the way a user's GPT-2 small is, and prints how long each takes and how much memory. A cell that
fails ends it. Run notebooks are left in a folder, to be read and their figures looked at.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpt2
import nbformat

ROOT = Path(__file__).resolve().parent.parent
RUN = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--log-level", "ERROR"]
# GPT-2 small takes minutes where ioi-mini takes seconds; cells that take longer hang.
RUN += ["--ExecutePreprocessor.timeout=1800", "--ExecutePreprocessor.store_widget_state=False"]


def run_notebook(path, folder, settings):
    """Run a notebook; returns seconds, and the largest resident memory so far in MB."""
    start = time.perf_counter()
    command = [*RUN, str(path), "--output-dir", str(folder)]
    if code := subprocess.run(command, env=settings, check=False).returncode:
        sys.exit(f"{path.name} did not run to its end (exit status {code}).")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return time.perf_counter() - start, peak / (1e6 if sys.platform == "darwin" else 1e3)


def check(path):
    """Fail if a notebook did not run on the stand-in, or left errors or warnings."""
    outputs = [o for c in nbformat.read(path, 4).cells for o in c.get("outputs", [])]
    stray = [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    if stray or "ioi-mini" in str([o.get("text") for o in outputs]):
        sys.exit(f"{path.name} has warnings, or did not run on GPT-2's stand-in: {stray}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where run notebooks go")
    parser.add_argument("chapters", nargs="*", help="such as 03; without any, all")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        gpt2.fill_cache(cache, gpt2.carried_over)
        settings = os.environ | {
            "COURSE_MODEL": "gpt2",
            "HF_HUB_CACHE": cache,
            "HF_HUB_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            "PYTHONPATH": str(ROOT),
        }
        for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
            if given.chapters and path.name[:2] not in given.chapters:
                continue
            seconds, memory = run_notebook(path, given.folder, settings)
            check(given.folder / path.name)
            print(f"{path.stem}: {seconds:.0f} s, {memory:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
