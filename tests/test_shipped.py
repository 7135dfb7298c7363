"""Shipped files that were changed are named, with the remedy, and nothing runs on them."""

import shutil

import pytest

from helpers import models, prompts
from helpers.models import load_model
from helpers.prompts import load_pairs
from helpers.shipped import DATA, check_shipped_files, write_sums

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5575888\n"


@pytest.fixture
def data(tmp_path):
    return shutil.copytree(DATA, tmp_path / "data")


@pytest.fixture
def folder(data):
    return data / "ioi-mini"


@pytest.fixture
def load(data, monkeypatch):
    """Load ioi-mini from the copy."""
    monkeypatch.setattr(models, "DATA", data)
    return lambda: load_model("ioi-mini", device="cpu")


@pytest.mark.parametrize("folder", [DATA, DATA / "ioi-mini"], ids=["data", "ioi-mini"])
def test_every_data_file_has_a_sum_and_they_are_right(folder):
    check_shipped_files(folder)
    listed = {line.split()[1] for line in (folder / "SHA256SUMS").open()}
    without = {"SHA256SUMS", "README.md", "handover.png"}
    assert listed == {file.name for file in folder.iterdir() if file.is_file()} - without


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_of_the_model_is_named(folder, file, load):
    path = folder / file
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (flipped, content[:middle], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file} is not the file.*checkout -- {file}`"):
            load()
    path.write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{file} is a Git LFS pointer.*git lfs pull"):
        load()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{file} is missing: restore it"):
        load()


def test_without_sums_nothing_is_loaded(folder, load):
    sums = folder / "SHA256SUMS"
    lines = sums.read_bytes().splitlines(keepends=True)
    without_one = [b"".join(line for line in lines if line != left_out) for left_out in lines]
    for damaged in (b"", b"\n", POINTER, b"".join(lines)[:-30], *without_one):
        sums.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"SHA256SUMS is not the file that ships.*restore"):
            load()
    sums.unlink()
    with pytest.raises(FileNotFoundError, match="SHA256SUMS is missing: restore it"):
        load()


def test_a_list_of_data_files_that_was_cut_is_not_trusted(data, monkeypatch):
    monkeypatch.setattr(prompts, "PROMPT_FILE", data / "prompts.csv")
    sums = data / "SHA256SUMS"
    lines = sums.read_bytes().splitlines(keepends=True)
    for left_out in lines:
        sums.write_bytes(b"".join(line for line in lines if line != left_out))
        with pytest.raises(ValueError, match=r"SHA256SUMS is not the file that ships.*restore"):
            load_pairs()


def test_a_folder_with_sums_is_checked_when_it_is_loaded_by_its_path(folder, load):
    load()
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ValueError, match=r"config\.json is not the file"):
        load_model(str(folder))
    # Without its sums, the shipped model is none.
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(FileNotFoundError, match="SHA256SUMS is missing"):
        load_model(str(folder))


def test_a_wanted_change_gets_new_sums(folder, load):
    config = folder / "generation_config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ValueError, match=rf"run `python -m helpers\.shipped {folder}`"):
        load()
    (folder / ".hidden").touch()
    assert ".hidden" not in write_sums(folder)
    assert load().config.n_layer == 6
