"""Make a notebook service such as Colab ready for the course: it has everything but nnsight.

Colab brings versions of torch, numpy, transformers and the Jupyter packages that fit each other
and its GPUs. So nnsight alone is installed, and nothing that is there is replaced.
"""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
KEPT = (
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "pandas",
    "matplotlib",
    "seaborn",
    "ipykernel",
    "ipython",
    "ipywidgets",
    "jupyterlab",
    "notebook",
)


def prepare() -> None:
    """Install nnsight if it is not there, and make sure that what is loaded is what is installed.

    Where the notebook lies in the course's folder, whoever put it there sees to what is
    installed, and nothing is done.

    Raises:
        RuntimeError: nnsight could not be installed, or the session has to be restarted.
    """
    if ROOT in Path.cwd().parents:
        return
    if importlib.util.find_spec("nnsight") is None:
        install(pinned("nnsight"))
    check_loaded("numpy")


def pinned(name: str) -> str:
    """Give the requirement, such as `nnsight==0.8.1`, that the course was tested with."""
    return re.search(rf"^{name}==\S+$", CONSTRAINTS.read_text(), re.MULTILINE)[0]


def install(requirement: str) -> None:
    """Install a package and what it needs, except for what is there already.

    Raises:
        RuntimeError: pip did not succeed.
    """
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder, "kept.txt")
        kept.write_text("\n".join(f"{name}=={version(name)}" for name in KEPT if version(name)))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(kept), requirement]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"{requirement} could not be installed without changing what is there; go online, "
            f"or choose a newer runtime. pip said: {done.stderr.strip()}"
        )
    importlib.invalidate_caches()


def version(name: str) -> str | None:
    """Give the version of a package that is installed, and None if there is none."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_loaded(name: str) -> None:
    """Raise a `RuntimeError` if a package was loaded before another version was installed."""
    loaded = getattr(sys.modules.get(name), "__version__", None)
    if loaded and loaded != version(name):
        raise RuntimeError(
            f"{name} {loaded} is loaded, but {version(name)} is installed: restart the session "
            "(Runtime, Restart session) and run the notebook from the top."
        )
