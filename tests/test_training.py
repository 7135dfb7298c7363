"""The training script: what it makes, and that the exchange does what it says."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.corpus import NAMES
from helpers.shipped import check_shipped_files
from helpers.training import (
    READ_IN,
    SUBJECT_READY_AFTER,
    VERSIONS,
    HeadDropout,
    Interchange,
    Recipe,
    batches,
    build_model,
    build_tokenizer,
    learning_rate,
    names_in_play,
    save,
    train,
)

TINY = Recipe(
    layers=5, heads=2, width=16, steps=6,
    stories=4, warmup=2, exchange_from=1, mixed_from=4,
    full_text_from=2, more_names_from=1, all_names_from=3, readout_until=4, drop_heads_from=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def batch(tokenizer):
    return list(batches(TINY, tokenizer))[-1]


def test_tokenizer_is_the_shipped_one(tokenizer, model):
    assert tokenizer.get_vocab() == model.tokenizer.get_vocab()
    text = "When Ünïcode John and Mary got a snack at the blorf, Mary decided to give it to"
    assert tokenizer.encode(text) == model.tokenizer.encode(text)


def test_a_model_is_trained_written_and_loads(tokenizer, tmp_path):
    network = build_model(TINY, tokenizer)
    before = network.lm_head.weight.clone()
    train(network, tokenizer, TINY)
    assert not network.training
    assert not torch.equal(network.lm_head.weight, before)
    save(network, tokenizer, tmp_path)
    check_shipped_files(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("John and Mary", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, network(ids).logits, atol=1e-5)


def test_seed_decides(tokenizer):
    def trained(seed):
        recipe = replace(TINY, seed=seed)
        network = build_model(recipe, tokenizer)
        train(network, tokenizer, recipe)
        return network.lm_head.weight

    first = trained(0)
    assert torch.equal(first, trained(0))
    assert not torch.equal(first, trained(1))


def test_nothing_is_overwritten_unasked(tmp_path):
    (tmp_path / "kept").touch()
    command = [sys.executable, "-m", "helpers.training", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "choose another folder, or add --overwrite" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_batch_holds_each_story_in_four_versions(batch, tokenizer):
    name_ids = {tokenizer.encode(space + name)[0] for name in NAMES for space in ("", " ")}
    is_name = torch.tensor([[token in name_ids for token in row] for row in batch.ids.tolist()])
    rows = range(len(batch.ids))
    for row, twin in enumerate(batch.twin.tolist()):
        for version in range(row - row % VERSIONS, row - row % VERSIONS + VERSIONS):
            assert torch.equal(batch.ids[row][~is_name[row]], batch.ids[version][~is_name[row]])
        assert (
            batch.ids[row, batch.subject_position[row]]
            != (batch.ids[twin, batch.subject_position[row]])
        )
        assert batch.subject_slot[row] == batch.subject_slot[twin]
        assert batch.weights[row, batch.answer_position[row] - 1] == TINY.answer_weight
        answer = batch.ids[row, batch.answer_position[row]]
        assert answer in batch.ids[row, : batch.answer_position[row]]
        assert answer != batch.ids[row, batch.subject_position[row]]
    assert is_name[rows, batch.subject_position].all()
    assert is_name[rows, batch.answer_position].all()
    assert not (batch.subject & batch.later).any()


@pytest.mark.parametrize("read_in", READ_IN)
def test_exchange_moves_what_it_says_and_nothing_else(batch, tokenizer, read_in):
    network = build_model(TINY, tokenizer).eval()
    interchange = Interchange(network)
    interchange.batch = replace(batch, read_in=read_in)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*batch.subject.shape, TINY.width, generator=generator)
    for layer in range(TINY.layers):
        exchanged = interchange.exchange(layer, None, (), hidden)
        for row in range(len(hidden)):
            first = row - row % VERSIONS
            mean = hidden[first : first + VERSIONS].mean(dim=0)
            expected = hidden[row].clone()
            if layer == SUBJECT_READY_AFTER:
                expected[batch.subject[row]] = hidden[batch.twin[row], batch.subject[row]]
            if layer == read_in - 1:
                expected[batch.later[row]] = mean[batch.later[row]]
            if layer == read_in:
                expected[batch.subject[row]] = mean[batch.subject[row]]
            assert torch.allclose(exchanged[row], expected, atol=1e-6)
    interchange.batch = None
    assert interchange.exchange(SUBJECT_READY_AFTER, None, (), hidden) is hidden


def test_head_dropout_silences_whole_heads(tokenizer):
    dropout = HeadDropout(build_model(TINY, tokenizer), TINY)
    inputs = (torch.ones(50, 3, TINY.width),)
    assert dropout.silence(0.5, None, inputs) is inputs
    dropout.on = True
    heads = dropout.silence(0.5, None, inputs)[0].unflatten(-1, (TINY.heads, -1))
    silenced = (heads == 0).all(dim=(1, 3))
    assert torch.equal(silenced, (heads == 0).any(dim=(1, 3)))
    assert 0.3 < silenced.float().mean() < 0.7


def test_schedules():
    recipe = Recipe()
    assert len(names_in_play(recipe, 0)) == recipe.first_names
    assert names_in_play(recipe, recipe.all_names_from) == NAMES
    assert learning_rate(recipe, 0) < learning_rate(recipe, recipe.warmup)
    assert learning_rate(recipe, recipe.steps - 1) == pytest.approx(0.02)
