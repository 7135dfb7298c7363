"""The course as a reader on Colab gets it: `make colab-check`.

An environment with Colab's packages is made. Each notebook is copied alone into an empty folder
and run there: its first cell clones the course from an address, a repository on this machine made
of this working tree, and installs nnsight. Every value is compared with what is stored. Then the
explorers are operated in process, with Colab's ipywidgets. Needs what installing packages needs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from environments import SETTINGS, make_environment, run

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ROOT / "tests" / "colab.txt"
TOOLS = ["nbval", "nbformat", "pytest", "pytest-xdist"]
TESTS_IN_PROCESS = ["test_widgets.py", "test_written_out.py", "test_plots.py"]


def list_packages(python):
    command = [str(python), "-m", "pip", "list", "--disable-pip-version-check", "--format=json"]
    listed = json.loads(subprocess.check_output(command, text=True))
    return {package["name"]: package["version"] for package in listed}


def make_repository(folder):
    """Commit the files of this working tree to a new repository."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0")[:-1]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    author = ["-c", "user.name=course", "-c", "user.email=course@example.org"]
    run("git", "init", "--quiet", "--initial-branch=main", cwd=folder)
    run("git", "add", "--all", cwd=folder)
    run("git", *author, "commit", "--quiet", "--message", "The course", cwd=folder)


def copy_notebooks(folder):
    """Copy each notebook into a folder of its own; returns the copies."""
    copies = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        alone = folder / path.stem
        alone.mkdir(parents=True)
        copies.append(Path(shutil.copy2(path, alone)))
    return copies


def run_notebooks(python, paths, folder, settings):
    """Run notebooks and compare their outputs with what is stored in them."""
    nbval = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=600", "--dist=loadfile"]
    workers = ["-n", min(len(paths), os.cpu_count())]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder]
    run(*pytest, *nbval, *workers, *paths, cwd=folder, env=settings)


def report_added(before, after):
    """Say what the first notebook installed, and fail if it replaced anything."""
    added = sorted(set(after) - set(before))
    print("The first cell installed:", ", ".join(f"{name} {after[name]}" for name in added))
    replaced = {name for name in before if after.get(name) != before[name]}
    if replaced or "nnsight" not in added:
        sys.exit(f"It replaced {sorted(replaced)}; it may add nnsight and what that needs.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("environment", type=Path, help="folder of the environment, made anew")
    python = make_environment(parser.parse_args().environment, "-r", PACKAGES, *TOOLS)
    before = list_packages(python)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        course = folder / "repository" / "course"
        course.mkdir(parents=True)
        make_repository(course)
        settings = os.environ | SETTINGS | {"COURSE_REPO_URL": course.as_uri()}
        first, *others = copy_notebooks(folder / "alone")
        run_notebooks(python, [first], folder / "alone", settings)
        report_added(before, list_packages(python))
        run_notebooks(python, others, folder / "alone", settings)
        tests = [course / "tests" / name for name in TESTS_IN_PROCESS]
        settings |= {"PYTHONPATH": str(course)}
        pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts="]
        run(*pytest, "-n", os.cpu_count(), *tests, cwd=course, env=settings)


if __name__ == "__main__":
    main()
