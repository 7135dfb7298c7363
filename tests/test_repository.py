"""The documents and settings agree with one another and with what is there."""

import re
import subprocess
import tomllib

import nbformat
import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "data").glob("*.md")),
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]


def tracked_files():
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("without git or a checkout there is no list of the course's files")
    return [ROOT / name for name in listed.stdout.splitlines()]


def read_prose(path):
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def anchors(path):
    headings = re.findall(r"^#+ (.+)$", read_prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", read_prose(path)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def settings():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def constraints():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_constraints_pin_every_dependency_within_its_bounds():
    pinned = {requirement.name.lower(): requirement for requirement in constraints()}
    assert all(re.fullmatch(r"==[^*,]+", str(r.specifier)) for r in pinned.values())
    needed = settings()["dependencies"] + settings()["optional-dependencies"]["test"]
    for requirement in map(Requirement, needed):
        version = str(pinned[requirement.name.lower()].specifier).removeprefix("==")
        assert requirement.specifier.contains(version), requirement
    assert str(pinned["torch"].specifier) == "==2.13.0"


def test_conda_installs_what_make_installs():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *packages, by_pip = environment["dependencies"]
    assert packages == ["python=3.12", "pip"]
    install = re.search(r"pip install (.+)", (ROOT / "Makefile").read_text())[1]
    arguments = install.replace('"', "").replace("$(CONSTRAINTS)", "constraints.txt").split()
    options = {"--quiet", "--disable-pip-version-check"}
    assert [a for a in arguments if a not in options] == " ".join(by_pip["pip"]).split()


def test_commands_in_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9 -]+):", makefile, re.MULTILINE))
    targets = {target for names in targets for target in names.split()}
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / name).read_text()
        named = set(re.findall(r"(?:^|`|=\w+ )make ([a-z0-9-]+)", text, re.MULTILINE))
        assert named <= targets
        assert {"lab", "test"} <= named


def test_ci_calls_the_test_command():
    ci = (ROOT / ".ci" / "run").read_text()
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    pinned, elsewhere = workflow["jobs"]["pinned"], workflow["jobs"]["elsewhere"]
    assert "make test" in ci
    assert "make test" in [step.get("run") for step in pinned["steps"]]
    for run in elsewhere["strategy"]["matrix"]["include"]:
        assert f"make {run['target']}" in ci


def read_table(path, heading):
    """Read the table below a heading as a list of rows."""
    section = path.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row] for row in rows]


def test_table_of_versions_says_what_the_checks_install():
    header, _, *rows = read_table(ROOT / "CONTRIBUTING.md", "Versions")
    assert header[1:] == ["make test", "make oldest", "make newest", "make colab-check"]
    pinned = {r.name: str(r.specifier) for r in constraints()}
    lowest = {r.name: str(r.specifier) for r in map(Requirement, settings()["dependencies"])}
    lines = (ROOT / "tests" / "colab.txt").read_text().splitlines()
    on_colab = [Requirement(line) for line in lines if line and not line.startswith("#")]
    on_colab = {r.name: str(r.specifier) for r in on_colab if "<" not in str(r.marker)}
    for name, now, oldest, _, colab in rows[1:]:
        assert pinned[name] == f"=={now}"
        assert f">={oldest}" in lowest[name].split(",")
        assert on_colab.get(name, pinned[name] if name == "nnsight" else "==none") == f"=={colab}"


def test_readme_lists_the_chapters():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 100
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"(notebooks/{path.name})" in readme


def test_version_is_the_same_everywhere():
    version = settings()["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_nothing_is_unpickled_and_no_remote_code_is_run():
    suffixes = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
    assert not [path for path in tracked_files() if path.suffix in suffixes]
    forbidden = ("trust_remote_code", "torch" + ".load(", "import pickle")
    for path in (ROOT / "helpers").glob("*.py"):
        assert not [word for word in forbidden if word in path.read_text()]
