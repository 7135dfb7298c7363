"""Environments with other versions than those of constraints.txt, and commands run in them."""

import subprocess
import sys

SETTINGS = {
    "COURSE_MODEL": "ioi-mini",
    "COURSE_DEVICE": "cpu",
    # One thread in each worker of the tests.
    "OMP_NUM_THREADS": "1",
    # Otherwise debugpy, of ipykernel, writes to stderr when it meets another Python's files.
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


def run(*command, **options):
    """Run a command, and end with its exit status if it fails."""
    if code := subprocess.run([*map(str, command)], **options).returncode:
        sys.exit(code)


def make_environment(folder, *needed):
    """Make an environment anew with what is needed, and return its interpreter."""
    run(sys.executable, "-m", "venv", "--clear", folder)
    python = folder.resolve() / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--only-binary", ":all:", *needed)
    return python
