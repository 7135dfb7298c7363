"""What nbval does not look at: that notebooks were run, their anatomy, and their links."""

import ast
import itertools
import re
import statistics

import nbformat
import pytest
from conftest import ROOT

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MARKS_THAT_KEEP_CELLS_FROM_CHECKING = ("NBVAL_SKIP", "NBVAL_IGNORE_OUTPUT", "nbval-skip")


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def count_lines(cell):
    return sum(bool(line.strip()) for line in cell.source.splitlines())


def test_chapters_are_numbered_without_gaps():
    assert len(PATHS) >= 3
    assert [path.name[:2] for path in PATHS] == [f"{n:02d}" for n in range(1, len(PATHS) + 1)]


def test_is_valid(path, notebook):
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    assert notebook.metadata.kernelspec.name == "python3"
    assert all("state" in stored for stored in notebook.metadata.get("widgets", {}).values())


def test_every_cell_was_run_once_and_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_stores_no_errors_warnings_times_or_paths(notebook):
    for cell in code_cells(notebook):
        assert "execution" not in cell.metadata
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert not re.search(r"/(home|root|tmp|Users|work)/", str(output))


def test_no_cell_is_kept_from_checking(notebook):
    for cell in notebook.cells:
        text = cell.source + str(cell.metadata)
        assert not any(mark in text for mark in MARKS_THAT_KEEP_CELLS_FROM_CHECKING)


def test_no_cell_ends_with_a_semicolon(notebook):
    """It would hide a result in JupyterLab, but not from nbval, which then sees a difference."""
    assert not [cell.source for cell in code_cells(notebook) if cell.source.rstrip().endswith(";")]


def test_cells_are_short(notebook):
    lines = sorted(count_lines(cell) for cell in code_cells(notebook))
    assert statistics.median(lines) <= 4
    assert lines[int(0.9 * len(lines))] <= 10
    assert lines[-1] <= 20


def test_has_the_parts_of_a_chapter(path, notebook):
    first = notebook.cells[0].source
    assert first.startswith(f"# {int(path.name[:2])}. ")
    for part in ("**What you will do.**", "**Afterwards you can**", "**You need**", "**Time:**"):
        assert part in first
    headings = re.findall(r"^## (.+)$", prose(notebook), re.MULTILINE)
    assert headings[-3:] == ["In your own words", "Try next", "Read more"]
    assert prose(notebook).count("**Predict:**") >= 3
    assert any("assert" in cell.source for cell in code_cells(notebook))


def test_headings_go_down_one_step_at_a_time(notebook):
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose(notebook), re.MULTILINE)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(below - above <= 1 for above, below in itertools.pairwise(levels))


def shows_numbers(output):
    text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
    return "image/png" not in output.get("data", {}) and re.search(r"\d", text)


def test_figures_are_followed_by_their_numbers(notebook):
    cells = code_cells(notebook)
    for number, cell in enumerate(cells):
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            assert any(map(shows_numbers, cells[number + 1].outputs))


def names_in_code(notebook):
    trees = (ast.parse(cell.source) for cell in code_cells(notebook))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in nodes if isinstance(node, ast.keyword)}
    names |= {alias.name for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}
    names |= {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return names


def test_functions_named_in_the_prose_exist(notebook):
    source = "\n".join(path.read_text() for path in (ROOT / "helpers").glob("*.py"))
    known = names_in_code(notebook) | set(re.findall(r"\w+", source))
    old_code = re.compile(r"## When you read older code.*?(?=\n## |\Z)", re.DOTALL)
    without_old_code = old_code.sub("", prose(notebook))
    for name in re.findall(r"`(\w+_\w+)`", without_old_code):
        assert name in known, name
