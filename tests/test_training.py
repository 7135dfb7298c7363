"""The training script: what it makes, and that the exchange does what it says."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.corpus import NAMES
from helpers.models import check_shipped_files
from helpers.training import (
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
    layers=5, heads=2, width=16, steps=6, stories=4, warmup=2, exchange_from=1, mixed_from=4,
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
    command = [sys.executable, "-m", "helpers.training", str(tmp_path), "--steps", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "choose another folder, or add --overwrite" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]


def test_batch_holds_each_story_in_four_versions(batch, tokenizer):
    name_ids = {tokenizer.encode(space + name)[0] for name in NAMES for space in ("", " ")}
    is_name = torch.tensor([[token in name_ids for token in row] for row in batch.ids.tolist()])
    rows = range(len(batch.ids))
    for row, twin, stranger in zip(rows, batch.twin, batch.stranger, strict=True):
        for other in (twin, stranger):
            assert torch.equal(batch.ids[row][~is_name[row]], batch.ids[other][~is_name[row]])
        assert batch.subject_slot[row] == batch.subject_slot[twin]
        assert batch.weights[row, batch.answer_position[row] - 1] == TINY.answer_weight
        answer = batch.ids[row, batch.answer_position[row]]
        assert answer in batch.ids[row, : batch.answer_position[row]]
        assert answer != batch.ids[row, batch.subject_position[row]]
    assert is_name[rows, batch.subject_position].all()
    assert is_name[rows, batch.answer_position].all()
    assert not (batch.subject & batch.later).any()


def test_exchange_moves_what_it_says_and_nothing_else(batch, tokenizer):
    network = build_model(TINY, tokenizer).eval()
    interchange = Interchange(network)
    streams = []
    network.transformer.h[batch.exchange_after + 1].register_forward_pre_hook(
        lambda block, inputs: streams.append(inputs[0])
    )
    with torch.no_grad():
        network(batch.ids[:, :-1])
        interchange.batch = batch
        network(batch.ids[:, :-1])
    plain, exchanged = streams
    for row in range(len(batch.ids)):
        for position in range(plain.shape[1]):
            source = row
            if batch.subject[row, position]:
                source = batch.twin[row]
            elif batch.later[row, position]:
                source = batch.stranger[row]
            assert torch.equal(exchanged[row, position], plain[source, position])


def test_head_dropout_silences_whole_heads(tokenizer):
    network = build_model(TINY, tokenizer).eval()
    dropout = HeadDropout(network)
    inputs = (torch.ones(50, 3, TINY.width),)
    assert dropout.silence(None, inputs) is inputs
    dropout.share = 0.5
    heads = dropout.silence(None, inputs)[0].unflatten(-1, (TINY.heads, -1))
    silenced = (heads == 0).all(dim=(1, 3))
    assert torch.equal(silenced, (heads == 0).any(dim=(1, 3)))
    assert 0.3 < silenced.float().mean() < 0.7


def test_schedules():
    recipe = Recipe()
    assert len(names_in_play(recipe, 0)) == recipe.first_names
    assert names_in_play(recipe, recipe.all_names_from) == NAMES
    assert learning_rate(recipe, 0) < learning_rate(recipe, recipe.warmup)
    assert learning_rate(recipe, recipe.steps - 1) == pytest.approx(0.02)
