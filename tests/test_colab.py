"""The first cell, the address it gets the course from, and what it installs.

`make colab-check` runs the whole way in an environment like Colab's; here are its parts.
"""

import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys

import nbformat
import numpy
import pytest
from conftest import ROOT

from helpers import colab
from helpers.publish import ADDRESS as DEFAULT
from helpers.publish import first_code_cell, publish

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDRESS = "https://github.com/some-teacher/patching.course"


def first_cell():
    """Read the first cell as it is while no address is set; in a fork one may be."""
    source = first_code_cell(nbformat.read(PATHS[0], as_version=4)).source
    return DEFAULT.sub(r'\1""', source)


def test_all_notebooks_begin_with_the_same_cell():
    cells = {first_code_cell(nbformat.read(path, as_version=4)).source for path in PATHS}
    assert len(cells) == 1
    assert not any(first_code_cell(nbformat.read(path, as_version=4)).outputs for path in PATHS)


@pytest.fixture
def run_first_cell(monkeypatch, tmp_path):
    """Run the first cell as if no course could be imported; returns what it did."""
    prepared = []
    monkeypatch.delenv("COURSE_REPO_URL", raising=False)
    monkeypatch.setattr(colab, "prepare", lambda: prepared.append(True))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    def run(folder):
        monkeypatch.chdir(folder)
        before = sys.path[0]
        exec(compile(first_cell(), "first cell", "exec"), {})
        return None if sys.path[0] == before else sys.path[0], bool(prepared)

    return run


def make_course(folder):
    (folder / "helpers").mkdir(parents=True)
    (folder / "helpers" / "__init__.py").touch()
    (folder / "helpers" / "colab.py").touch()
    (folder / "notebooks").mkdir()
    return folder


def test_does_nothing_where_the_course_is_installed(tmp_path, monkeypatch, run_first_cell):
    installed = importlib.machinery.ModuleSpec("helpers", None, origin="helpers/__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed)
    assert run_first_cell(tmp_path) == (None, False)


def test_finds_the_course_around_the_notebook(tmp_path, run_first_cell):
    course = make_course(tmp_path / "course")
    assert run_first_cell(course / "notebooks") == (str(course), True)


def test_finds_an_unpacked_course_beside_the_notebook(tmp_path, run_first_cell):
    course = make_course(tmp_path / "course-main")
    assert run_first_cell(tmp_path) == (str(course), True)


def test_another_folder_of_that_name_is_not_the_course(tmp_path, monkeypatch, run_first_cell):
    (tmp_path / "helpers").mkdir()
    (tmp_path / "other" / "helpers").mkdir(parents=True)
    course = make_course(tmp_path / "unpacked")
    folder = importlib.machinery.ModuleSpec("helpers", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: folder)
    assert run_first_cell(tmp_path) == (str(course), True)


def test_clones_the_course_once(tmp_path, monkeypatch, run_first_cell):
    original = make_course(tmp_path / "original" / "course")
    for command in (
        ["init", "--quiet"],
        ["add", "-A"],
        ["-c", "user.name=x", "-c", "user.email=x@example.org", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *command], cwd=original, check=True)
    monkeypatch.setenv("COURSE_REPO_URL", original.as_uri())
    alone = tmp_path / "alone"
    alone.mkdir()
    assert run_first_cell(alone) == (str(alone / "course"), True)
    monkeypatch.setenv("COURSE_REPO_URL", "file:///nowhere")
    assert run_first_cell(alone)[1]
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(FileNotFoundError, match="neither here nor at file:///nowhere"):
        run_first_cell(other)


def test_without_an_address_it_says_what_to_do(tmp_path, run_first_cell):
    with pytest.raises(FileNotFoundError, match=r"neither here nor at an address.*%env COURSE_REP"):
        run_first_cell(tmp_path)


# What is installed


def test_only_nnsight_is_installed_and_what_is_there_is_kept(monkeypatch):
    commands = []

    def note(command, **_):
        kept = command[command.index("-c") + 1]
        with open(kept) as file:  # noqa: PTH123
            commands.append((command[-1], file.read().split()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", note)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    colab.prepare()
    [(requirement, kept)] = commands
    assert requirement == colab.pinned("nnsight")
    assert requirement.startswith("nnsight==")
    assert f"numpy=={numpy.__version__}" in kept
    assert any(line.startswith("torch==2") for line in kept)


def test_nothing_is_installed_where_nnsight_is(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.chdir(tmp_path)
    colab.prepare()


def test_nothing_is_installed_where_the_course_lies_around_the_notebook(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.chdir(ROOT / "notebooks")
    colab.prepare()


def test_a_failed_install_says_why(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no such release")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match=r"nnsight==1 could not.*no such release"):
        colab.install("nnsight==1")


def test_another_numpy_than_the_installed_one_asks_for_a_restart(monkeypatch):
    monkeypatch.setattr(numpy, "__version__", "1.0")
    with pytest.raises(RuntimeError, match=r"numpy 1\.0 is loaded.*restart the session"):
        colab.prepare()


# The address


@pytest.fixture
def course(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def read_all(course):
    paths = [course / "README.md", *sorted((course / "notebooks").glob("*.ipynb"))]
    return {path.name: path.read_text() for path in paths}


def test_publishing_sets_address_and_badges(course):
    publish(course, ADDRESS)
    for name, text in read_all(course).items():
        assert "Open in Colab" in text
        if name != "README.md":
            notebook = nbformat.reads(text, as_version=4)
            page = f"github/some-teacher/patching.course/blob/main/notebooks/{name})"
            assert page in notebook.cells[0].source
            assert f'"COURSE_REPO_URL", "{ADDRESS}")' in first_code_cell(notebook).source
            assert page in (course / "README.md").read_text()


def test_a_first_cell_that_was_changed_by_hand_is_not_passed_over(course):
    path = course / "notebooks" / PATHS[1].name
    path.write_text(path.read_text().replace("os.environ.get(", "str("))
    before = read_all(course)
    with pytest.raises(ValueError, match=rf"{PATHS[1].name}: .*no line `COURSE_REPO_URL = os"):
        publish(course, ADDRESS)
    assert read_all(course) == before


def test_publishing_twice_is_publishing_once(course):
    publish(course, ADDRESS)
    once = read_all(course)
    publish(course, ADDRESS + ".git")
    assert read_all(course) == once
    publish(course, "https://github.com/another/name/")
    assert "some-teacher" not in "".join(read_all(course).values())
    publish(course, ADDRESS)
    assert read_all(course) == once


def test_publishing_leaves_all_else_alone(course):
    publish(course, ADDRESS)
    for path in PATHS:
        before = nbformat.read(path, as_version=4)
        after = nbformat.read(course / "notebooks" / path.name, as_version=4)
        nbformat.validate(after)
        changed = [a for b, a in zip(before.cells, after.cells, strict=True) if a != b]
        assert changed == [after.cells[0], first_code_cell(after)]
        assert first_code_cell(after).outputs == first_code_cell(before).outputs
        assert after.metadata == before.metadata


@pytest.mark.parametrize(
    "address",
    [
        "",
        "github.com/a/b",
        "https://example.org/a/b",
        "https://github.com/a",
        "https://github.com/a/..",
        "https://github.com/OWNER/NAME",
    ],
)
def test_only_addresses_that_colab_can_open_are_taken(course, address):
    before = read_all(course)
    with pytest.raises(ValueError, match=r"give one like https://github\.com/OWNER/NAME"):
        publish(course, address)
    assert read_all(course) == before
