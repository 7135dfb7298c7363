"""The files that the course ships, and whether they are as they were committed.

`python -m helpers.shipped FOLDER` writes the sums of a folder anew, after a wanted change.
"""

import argparse
import hashlib
import re
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"
CHECKSUMS = "SHA256SUMS"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_shipped_files(folder: Path, *needed: str) -> None:
    """Compare a folder's shipped files with the sha256 sums committed beside them.

    safetensors notices a truncated file but loads one with a flipped bit, and a missing
    `config.json` is taken for GPT-2 small's, so nothing is loaded before this has passed.

    Args:
        folder: where the files and their sums lie.
        needed: files that must be among them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file has other content, or the sums are not whole.
    """
    restore = (
        "restore it with `git checkout -- data`, or get the course again; if you changed it on "
        f"purpose, run `python -m helpers.shipped {folder}`."
    )
    file_of_sums = folder / CHECKSUMS
    if not file_of_sums.is_file():
        raise FileNotFoundError(f"{file_of_sums} is missing: {restore}")
    sums = read_sums(file_of_sums)
    if not sums or not sums.keys() >= set(needed):
        raise ValueError(f"{file_of_sums} is not the file that ships with the course: {restore}")
    for file, expected in sums.items():
        path = folder / file
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {restore}")
        content = path.read_bytes()
        if content.startswith(LFS_POINTER):
            raise ValueError(f"{path} is a Git LFS pointer, not the file: run `git lfs pull`.")
        if sum_of(content) != expected:
            raise ValueError(f"{path} is not the file that ships with the course: {restore}")


def read_sums(path: Path) -> dict[str, str]:
    """Read the sum of each file; nothing at all unless every line is one."""
    lines = path.read_text(errors="replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64})  (\S+)", line) for line in lines]
    return {match[2]: match[1] for match in found} if all(found) else {}


def sum_of(content: bytes) -> str:
    """Give the sha256 sum of a file's content."""
    return hashlib.sha256(content).hexdigest()


def write_sums(folder: Path) -> None:
    """Write the sums of all data files in a folder; documents and pictures have none."""
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != CHECKSUMS and file.suffix not in (".md", ".png")
    ]
    lines = [f"{sum_of(file.read_bytes())}  {file.name}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="helpers.shipped", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    write_sums(parser.parse_args().folder)
