"""The course with the oldest or the newest allowed versions: `make oldest`, `make newest`.

Makes an environment and runs every notebook and all tests in it. The oldest versions are the lower
bounds of pyproject.toml; what these need in turn is as new as it can be. Torch for Linux brings
CUDA, some gigabytes.
"""

import argparse
import os
import re
import tomllib
from pathlib import Path

from environments import SETTINGS, make_environment, run

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (
    "nnsight",
    "torch",
    "transformers",
    "numpy",
    "pandas",
    "jupyterlab",
    "ipywidgets",
    "ipython",
    "ipykernel",
)
# The style is that of one version of ruff.
LEFT_OUT = ("ruff",)


def requirements():
    """List what the course and its tests need, as pyproject.toml says it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["test"]
    return [r for r in needed if re.match(r"[\w-]+", r)[0] not in LEFT_OUT]


def at_lower_bound(requirement):
    """Turn `name>=1.2,<2` into `name==1.2`."""
    name, version = re.match(r"([\w-]+)>=([\w.]+)", requirement).groups()
    return f"{name}=={version}"


def show_versions(python):
    code = f"import importlib.metadata as m; print(*(n + ' ' + m.version(n) for n in {SHOWN}))"
    run(python, "-c", f"import sys; print('Python', sys.version.split()[0]); {code}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("age", choices=["oldest", "newest"])
    parser.add_argument("environment", type=Path, help="folder of the environment, made anew")
    given = parser.parse_args()
    needed = requirements()
    if given.age == "oldest":
        needed = [at_lower_bound(requirement) for requirement in needed]
    python = make_environment(given.environment, *needed)
    show_versions(python)
    settings = os.environ | SETTINGS | {"PYTHONPATH": str(ROOT)}
    pytest = [python, "-m", "pytest", "-q", "-n", "auto", "-p", "no:cacheprovider"]
    run(*pytest, cwd=ROOT, env=settings)


if __name__ == "__main__":
    main()
