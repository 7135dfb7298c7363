"""Set the address from which notebooks get the course: `make publish REPO=https://github.com/...`.

Writes the address into the first code cell of every notebook, and *Open in Colab* badges into
the notebooks and the README. Outputs stay as they are. It can be run again with another address.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GITHUB = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+?)(?:\.git)?/?")
ADDRESS = re.compile(r'(COURSE_REPO_URL = os\.environ\.get\("COURSE_REPO_URL", )"[^"]*"')
BADGE = re.compile(r" ?\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)")
IMAGE = "https://colab.research.google.com/assets/colab-badge.svg"


def publish(root: Path, address: str) -> list[Path]:
    """Write an address and badges into the course that lies in the folder `root`.

    Returns:
        The files that were written.

    Raises:
        ValueError: the address is not that of a GitHub repository, or a notebook has no place
            for it; then nothing is written.
    """
    owner, name = read_address(address)
    repository = f"{owner}/{name}"
    readme = root / "README.md"
    texts = {readme: with_badges(readme.read_text(encoding="utf-8"), repository)}
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        set_address(notebook, repository, path.name)
        texts[path] = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    return [*texts]


def set_address(notebook: dict[str, Any], repository: str, name: str) -> None:
    """Write the address and the badge into a notebook, as it is stored in its file."""
    title, code = notebook["cells"][0], first_code_cell(notebook)
    title["source"] = in_lines(with_badge("".join(title["source"]), badge(repository, name)))
    source, found = ADDRESS.subn(
        rf'\g<1>"https://github.com/{repository}"', "".join(code["source"])
    )
    if found != 1:
        raise ValueError(
            f"{name}: the first code cell has no line `COURSE_REPO_URL = os.environ.get(...)` for "
            f"the address; restore it with `git checkout -- notebooks/{name}` and try again."
        )
    code["source"] = in_lines(source)


def in_lines(text: str) -> list[str]:
    """Cut a text as notebooks store it."""
    return text.splitlines(keepends=True)


def read_address(address: str) -> tuple[str, str]:
    """Take owner and name out of the address of a repository on GitHub."""
    found = GITHUB.fullmatch(address.strip())
    if not found or found[2] in (".", "..") or found.groups() == ("OWNER", "NAME"):
        raise ValueError(
            f"{address!r} is not the address of a repository on GitHub, from where Colab opens "
            "notebooks: give one like https://github.com/OWNER/NAME."
        )
    return found[1], found[2]


def first_code_cell(notebook: dict[str, Any]) -> dict[str, Any]:
    """Give the cell that gets the course."""
    return next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def badge(repository: str, notebook: str) -> str:
    """Write the badge that opens a notebook of the main branch in Colab."""
    page = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{notebook}"
    return f"[![Open in Colab]({IMAGE})]({page})"


def with_badge(text: str, new: str) -> str:
    """Put a badge below the title, in place of the one that may be there."""
    title, _, rest = text.partition("\n\n")
    return f"{title}\n\n{new}\n\n{BADGE.sub('', rest, count=1).lstrip()}"


def with_badges(readme: str, repository: str) -> str:
    """Put a badge behind each link to a notebook in the table of chapters."""
    link = re.compile(r"(\| \[[^\]]+\]\(notebooks/([\w.]+\.ipynb)\)) \|")
    return link.sub(
        lambda found: f"{found[1]} {badge(repository, found[2])} |", BADGE.sub("", readme)
    )


def main() -> None:
    """Publish the course that this file belongs to."""
    parser = argparse.ArgumentParser(prog="helpers.publish", description=__doc__.split("\n")[0])
    parser.add_argument("address", help="https://github.com/OWNER/NAME")
    address = parser.parse_args().address
    try:
        written = publish(ROOT, address)
    except ValueError as error:
        parser.error(str(error))
    print(
        f"{len(written)} files point to {address} now. Commit and push them; for Colab the "
        "repository must be public, and its branch called main."
    )


if __name__ == "__main__":
    main()
