"""Attention patterns and direct effects, against plain PyTorch."""

import pytest
import torch
from conftest import RANDOM_MODELS
from reference import activation, part_of

from helpers.heads import attention_patterns, direct_effects
from helpers.patching import patch_heads
from helpers.prompts import load_pairs, token_labels

MODELS = ["ioi-mini", *RANDOM_MODELS]


def test_patterns_are_those_of_queries_and_keys(model, pair):
    """Written out for GPT-2: the softmax of q·k / √width, over positions up to one's own."""
    table = attention_patterns(model, pair.clean)
    labels = token_labels(model.tokenizer, pair.clean)
    ids = model.tokenizer.encode(pair.clean)
    for layer in (0, 3):
        attention = model._module.transformer.h[layer].attn
        hidden = activation(model._module, ids, (attention.c_attn, True))
        query, key, _ = attention.c_attn(hidden)[0].split(128, dim=-1)
        for head in (0, 5):
            columns = slice(16 * head, 16 * head + 16)
            scores = query[:, columns] @ key[:, columns].T / 16**0.5
            later = torch.ones_like(scores, dtype=torch.bool).triu(1)
            expected = scores.masked_fill(later, float("-inf")).softmax(dim=-1).detach().numpy()
            pattern = table.loc[(layer, head)]
            assert pattern.to_numpy() == pytest.approx(expected, abs=1e-5)
            assert (list(pattern), list(pattern.index)) == (labels, labels)


@pytest.mark.parametrize("any_model", MODELS, indirect=True)
def test_patterns_sum_to_one_and_look_back(any_model, pair):
    table = attention_patterns(any_model, pair.clean)
    assert table.sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    for layer in range(len(any_model.blocks)):
        for head in range(any_model.config.num_attention_heads):
            assert (torch.tensor(table.loc[(layer, head)].to_numpy()).triu(1) == 0).all()


def test_asking_for_patterns_changes_nothing(model, pair):
    before = patch_heads(model, pair)
    usual = model.config._attn_implementation
    attention_patterns(model, pair.clean)
    assert model.config._attn_implementation == usual
    assert (patch_heads(model, pair) == before).all(axis=None)
    with pytest.raises(Exception, match=r".+"):
        attention_patterns(model, pair.clean * 30)
    assert model.config._attn_implementation == usual


def rest_of_the_sum(network, ids, direction, scaled):
    """What is not a head's: embeddings, biases of the projections, MLPs, the last bias."""
    parts = [activation(network, ids, part_of(network, 0, "resid_pre"))]
    for layer in range(network.config.num_hidden_layers):
        projection = part_of(network, layer, "z")[0]
        z = activation(network, ids, part_of(network, layer, "z"))
        parts += [
            projection(torch.zeros_like(z)),
            activation(network, ids, part_of(network, layer, "mlp_out")),
        ]
    return sum((scaled(part[0, -1]) @ direction).item() for part in parts)


@pytest.mark.parametrize("any_model", MODELS, indirect=True)
def test_direct_effects_and_the_rest_sum_to_the_logit_difference(any_model, pair):
    network, encode = any_model._module, any_model.tokenizer.encode
    ids, (answer,), (foil,) = encode(pair.clean), encode(pair.answer), encode(pair.foil)
    norm = any_model.final_norm._module
    with torch.no_grad():
        unembedding = network.get_output_embeddings().weight
        direction = unembedding[answer] - unembedding[foil]
        final = activation(network, ids, (norm, True))[0, -1]
        if isinstance(norm, torch.nn.LayerNorm):
            scale = (final.var(correction=0) + norm.eps).sqrt()
            rest = (
                rest_of_the_sum(
                    network, ids, direction, lambda part: (part - part.mean()) / scale * norm.weight
                )
                + (norm.bias @ direction).item()
            )
        else:
            scale = (final.square().mean() + norm.variance_epsilon).sqrt()
            rest = rest_of_the_sum(network, ids, direction, lambda part: part / scale * norm.weight)
        logits = network(torch.tensor([ids])).logits[0, -1]
    total = direct_effects(any_model, pair).to_numpy().sum() + rest
    assert total == pytest.approx((logits[answer] - logits[foil]).item(), abs=1e-3)


def test_direct_effects_are_means_over_pairs(model):
    pairs = load_pairs(kind="swap")[::40]
    table = direct_effects(model, pairs)
    assert (table.index.name, table.columns.name, table.shape) == ("layer", "head", (6, 8))
    mean = sum(direct_effects(model, pair) for pair in pairs) / len(pairs)
    assert table.to_numpy() == pytest.approx(mean.to_numpy(), abs=1e-5)


def test_ioi_mini_has_movers_and_senders(model):
    """What chapter 5 tells: the last layer writes the answer; the lowest write none of it."""
    effects = direct_effects(model, load_pairs(kind="swap")[::10])
    assert effects.loc[5].max() > 1
    assert effects.loc[:1].abs().max(axis=None) < 0.2


def test_bad_pairs(model, pair):
    with pytest.raises(ValueError, match="at least one"):
        direct_effects(model, [])
