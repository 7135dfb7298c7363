"""The prompt file, and what is said about pairs that cannot be patched."""

import csv
import random
import shutil

import gpt2
import pytest
from transformers import AutoTokenizer

from helpers import prompts
from helpers.corpus import (
    COLUMNS,
    NAMES,
    SEED_TEXT,
    choose_names,
    is_held_out,
    make_prompts,
    make_story,
    vocabulary,
)
from helpers.prompts import (
    PROMPT_FILE,
    PromptPair,
    check_pair,
    differing_positions,
    load_pairs,
    name_positions,
    position_labels,
    token_labels,
    tokenize_pairs,
)
from helpers.shipped import DATA, write_sums

CLEAN = "After John and Mary went to the store, Mary gave a bottle of milk to"
CORRUPTED = CLEAN.replace("Mary gave", "John gave")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(DATA / "ioi-mini")


@pytest.fixture(scope="module")
def gpt2_tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(gpt2.save_tokenizer(tmp_path_factory.mktemp("gpt2")))


def test_file_holds_both_kinds_and_both_orders():
    assert len(load_pairs(kind="swap")) >= 100
    assert len(load_pairs(kind="abc")) >= 100
    for kind in ("swap", "abc"):
        assert len(load_pairs(kind=kind, order="ABBA")) == len(load_pairs(kind=kind, order="BABA"))


def test_a_changed_file_is_not_read(tmp_path, monkeypatch):
    for file in PROMPT_FILE.parent.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    monkeypatch.setattr(prompts, "PROMPT_FILE", tmp_path / "prompts.csv")
    assert len(load_pairs()) == 240
    content = (tmp_path / "prompts.csv").read_bytes()
    for damaged in (content[:-100], content.replace(b"Mary", b"Marie", 1), b""):
        (tmp_path / "prompts.csv").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"prompts\.csv is not the file that ships.*restore"):
            load_pairs()
    (tmp_path / "prompts.csv").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid 0\n")
    with pytest.raises(ValueError, match=r"prompts\.csv is a Git LFS pointer.*git lfs pull"):
        load_pairs()
    (tmp_path / "prompts.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"prompts\.csv is missing"):
        load_pairs()


def test_a_wanted_change_gets_new_sums(tmp_path, monkeypatch):
    for file in PROMPT_FILE.parent.glob("*.csv"):
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(prompts, "PROMPT_FILE", tmp_path / "prompts.csv")
    lines = PROMPT_FILE.read_text().splitlines(keepends=True)
    (tmp_path / "prompts.csv").write_text("".join(lines[:11]))
    write_sums(tmp_path)
    assert len(load_pairs()) == 10


def test_file_is_what_the_script_makes():
    with PROMPT_FILE.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames) == COLUMNS
        assert list(reader) == make_prompts()


def test_first_swap_pair_is_the_seed_pair():
    assert load_pairs(kind="swap", count=1)[0] == PromptPair(
        CLEAN, CORRUPTED, " John", " Mary", "swap", "ABBA", "after_went"
    )
    assert SEED_TEXT.replace("[A]", "John").replace("[B]", "Mary").replace("[S]", "Mary") == CLEAN


@pytest.mark.parametrize("name", ["tokenizer", "gpt2_tokenizer"])
def test_pairs_are_aligned(name, request):
    tokenizer = request.getfixturevalue(name)
    for pair in load_pairs():
        check_pair(tokenizer, pair)
        assert len(differing_positions(tokenizer, pair)) == {"swap": 1, "abc": 3}[pair.kind]


def test_orders_are_as_labelled():
    for pair in load_pairs():
        first = min((pair.answer, pair.foil), key=pair.clean.index)
        assert (first == pair.answer) == (pair.order == "ABBA")
        assert pair.clean.count(pair.foil) == 2
        assert pair.clean.count(pair.answer) == 1


def test_abc_uses_unrelated_names():
    for pair in load_pairs(kind="abc"):
        words = pair.corrupted.replace(",", " ").replace(".", " ").split()
        names = [word for word in words if word in NAMES]
        assert len(set(names)) == 3
        assert not {pair.answer.strip(), pair.foil.strip()} & set(names)


def test_no_names_of_the_file_meet_in_a_training_story():
    for pair in load_pairs():
        assert is_held_out(pair.answer.strip(), pair.foil.strip())
    rng = random.Random(0)
    for _ in range(5000):
        names = list(choose_names(rng, make_story(rng).slots, NAMES).values())
        assert not any(is_held_out(a, b) for a in names for b in names if a != b)


def test_vocabulary_is_one_token_each(tokenizer):
    assert len(NAMES) >= 50
    assert {" John", " gave", " store", " to", "After"} <= set(vocabulary())
    assert all(len(tokenizer.encode(word)) == 1 for word in vocabulary())


@pytest.mark.parametrize("text", ["Ünïcode 你好 😀", "tab\tand\nline  end ", "don't (x+y)=3.14"])
def test_any_other_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_labels_tell_equal_tokens_apart(tokenizer):
    labels = token_labels(tokenizer, CLEAN)
    assert labels[3] == "3 Mary"
    assert labels[9] == "9 Mary"
    assert len(set(labels)) == len(labels)


def test_filters():
    pairs = load_pairs(kind="abc", order="BABA", template="lunch", count=2)
    assert {(p.kind, p.order, p.template) for p in pairs} == {("abc", "BABA", "lunch")}
    assert len(pairs) == 2


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"kind": "swop"}, "No pairs of kind 'swop'; there are abc, swap"),
        ({"order": "AABB"}, "No pairs of order 'AABB'; there are ABBA, BABA"),
        ({"template": "nowhere"}, "No pairs of template 'nowhere'; there are after_went"),
        ({"count": 10_000}, "count is 10000, but there are 240"),
        ({"count": 2.5}, "count is 2.5"),
        ({"count": 0}, "count is 0"),
        ({"count": -1}, "count is -1"),
    ],
)
def test_bad_filters(filters, message):
    with pytest.raises(ValueError, match=message):
        load_pairs(**filters)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clean": ""}, "empty or ends with a space"),
        ({"corrupted": CORRUPTED + " "}, "empty or ends with a space"),
        ({"answer": "John"}, "begin it with a space, ' John'"),
        ({"foil": " Bartholomew"}, "The foil ' Bartholomew' does not follow.* as one token"),
        ({"answer": ""}, "The answer '' does not follow"),
        ({"foil": " John"}, "Answer and foil are both ' John'"),
        ({"corrupted": CLEAN}, "are the same"),
        ({"corrupted": CLEAN.replace("Mary gave", "the man gave")}, "16 tokens and the corrupted"),
    ],
)
def test_bad_pairs(tokenizer, change, message):
    good = {"clean": CLEAN, "corrupted": CORRUPTED, "answer": " John", "foil": " Mary"}
    check_pair(tokenizer, PromptPair(**good))
    with pytest.raises(ValueError, match=message):
        check_pair(tokenizer, PromptPair(**good | change))


def test_tokenizing_several(tokenizer):
    pairs = load_pairs(kind="swap", template="after_went")
    tokens = tokenize_pairs(tokenizer, pairs)
    assert tokens.clean.shape == tokens.corrupted.shape == (len(pairs), 16)
    assert tokenizer.decode(tokens.clean[0]) == CLEAN
    assert tokenizer.decode(tokens.corrupted[0]) == CORRUPTED
    assert tokenizer.decode(tokens.answers[:1]) == " John"
    assert tokenizer.decode(tokens.foils[:1]) == " Mary"
    with pytest.raises(ValueError, match="different numbers of tokens"):
        tokenize_pairs(tokenizer, load_pairs())
    with pytest.raises(ValueError, match="at least one"):
        tokenize_pairs(tokenizer, [])


def test_names_are_found_where_they_stand(model, pair):
    assert name_positions(model.tokenizer, pair) == {"IO": 1, "S1": 3, "S2": 9, "END": 15}
    for other in load_pairs():
        labels = token_labels(model.tokenizer, other.clean)
        where = name_positions(model.tokenizer, other)
        assert labels[where["IO"]].split()[1] == other.answer.strip()
        assert (
            labels[where["S1"]].split()[1] == labels[where["S2"]].split()[1] == other.foil.strip()
        )
        assert where["S1"] < where["S2"] < where["END"]


def test_names_must_be_there_as_in_the_task(model):
    pair = PromptPair(
        "Then Mary saw Mary and John. John", "Then Mary saw Mary and John. Mary", " John", " Mary"
    )
    with pytest.raises(ValueError, match="2 times and the foil ' Mary' 2 times, instead of once"):
        name_positions(model.tokenizer, pair)


def test_positions_are_labelled_together(model):
    pairs = load_pairs(kind="swap", template="after_went", order="ABBA")
    assert position_labels(model.tokenizer, pairs[0])[:3] == ["0 After", "1 John", "2 and"]
    assert position_labels(model.tokenizer, pairs)[:3] == ["0 After", "1 …", "2 and"]
