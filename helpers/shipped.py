"""The files that the course ships, and whether they are as they were committed.

`python -m helpers.shipped FOLDER` writes the sums of a folder anew, after a wanted change.
"""

import argparse
import hashlib
import re
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "data"
CHECKSUMS = "SHA256SUMS"
DATA_FILES = ("prompts.csv", "gpt2_patching.csv", "gpt2_prompts.csv", "gpt2_head_classes.csv")
MINI_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)
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
    file_of_sums = folder / CHECKSUMS
    if not file_of_sums.is_file():
        raise FileNotFoundError(f"{file_of_sums} is missing: {how_to_restore(file_of_sums)}")
    sums = read_sums(file_of_sums)
    if not sums or not sums.keys() >= set(needed):
        raise ValueError(
            f"{file_of_sums} is not the file that ships with the course: "
            f"{how_to_restore(file_of_sums)}"
        )
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: {how_to_restore(path)}")
        content = path.read_bytes()
        if content.startswith(LFS_POINTER):
            raise ValueError(
                f"{path} is a Git LFS pointer, not the file: run `git lfs pull`, or get the course "
                "again."
            )
        if sum_of(content) != expected:
            raise ValueError(
                f"{path} is not the file that ships with the course: {how_to_restore(path)} If you "
                f"changed it on purpose, run `python -m helpers.shipped {folder}`."
            )


def how_to_restore(path: Path) -> str:
    """Say how to get a file back, wherever the reader is."""
    return (
        f"restore it with `git -C {path.parent} checkout -- {path.name}`, or get the course again."
    )


def read_sums(path: Path) -> dict[str, str]:
    """Read the sum of each file; nothing at all unless every line is one."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    return {match[2]: match[1] for match in found} if all(found) else {}


def sum_of(content: bytes) -> str:
    """Give the sha256 sum of a file's content."""
    return hashlib.sha256(content).hexdigest()


def write_sums(folder: Path) -> list[str]:
    """Write the sums of all data files in a folder; documents and pictures have none.

    Returns:
        The names of the files.
    """
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file()
        and file.name != CHECKSUMS
        and not file.name.startswith(".")
        and file.suffix not in (".md", ".png")
    ]
    lines = [f"{sum_of(file.read_bytes())}  {file.name}\n" for file in files]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")
    return [file.name for file in files]


def main() -> None:
    """Write the sums of a folder of the course."""
    parser = argparse.ArgumentParser(prog="helpers.shipped", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if folder.resolve() not in (DATA, DATA / "ioi-mini"):
        parser.error(f"{folder} has no sums: give {DATA} or {DATA / 'ioi-mini'}.")
    print(f"{folder / CHECKSUMS} has the sums of {', '.join(write_sums(folder))}.")


if __name__ == "__main__":
    main()
