"""The engine against plain hooks, on models, prompts and patches that hypothesis makes up."""

import functools

import pytest
from conftest import make_random_network
from hypothesis import given, settings
from hypothesis import strategies as st
from nnsight import TransformersModel
from reference import measure
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig

from helpers.engine import SITES, Part
from helpers.models import NAMES_OF_PARTS
from helpers.patching import patch_together
from helpers.prompts import PromptPair

WORDS = [" John", " Mary", " Anna", " store", " gave", " the", " a", " to", " and", " book"]


@functools.cache
def make_model(family, layers, heads, key_value_heads, seed):
    width = 8 * heads
    if family == "gpt2":
        options = {"n_layer": layers, "n_head": heads, "n_embd": width, "n_positions": 32}
        network, tokenizer = make_random_network(GPT2Config, options, seed)
    else:
        shape = {"hidden_size": width, "intermediate_size": 2 * width}
        shape |= {"num_hidden_layers": layers, "num_attention_heads": heads}
        if family == "llama":
            shape |= {"num_key_value_heads": key_value_heads}
        config = LlamaConfig if family == "llama" else GPTNeoXConfig
        network, tokenizer = make_random_network(config, shape, seed)
    return TransformersModel(network, tokenizer=tokenizer, rename=NAMES_OF_PARTS)


@st.composite
def models(draw):
    heads = draw(st.sampled_from([1, 2, 4]))
    key_value_heads = draw(st.sampled_from([n for n in (1, 2, 4) if n <= heads]))
    family = draw(st.sampled_from(["gpt2", "gpt_neox", "llama"]))
    return make_model(
        family, draw(st.integers(1, 4)), heads, key_value_heads, draw(st.integers(0, 3))
    )


@st.composite
def pairs_of_one_length(draw):
    length = draw(st.integers(1, 9))
    prompts = st.lists(st.sampled_from(WORDS), min_size=length, max_size=length)
    two_prompts = st.tuples(prompts, prompts).filter(lambda both: both[0] != both[1])
    two_words = st.lists(st.sampled_from(WORDS), min_size=2, max_size=2, unique=True)
    return [
        PromptPair(*("".join(["After", *words]) for words in draw(two_prompts)), *draw(two_words))
        for _ in range(draw(st.integers(1, 3)))
    ]


@st.composite
def parts(draw, model, site, length):
    head = st.integers(0, model.config.num_attention_heads - 1)
    return Part(
        layer=draw(st.integers(0, len(model.blocks) - 1)),
        head=draw(st.none() | head) if site == "z" else None,
        position=draw(st.none() | st.integers(-length, length - 1)),
    )


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_patch_on_any_model_equals_plain_hooks(data):
    model, pairs = data.draw(models()), data.draw(pairs_of_one_length())
    site, direction = (
        data.draw(st.sampled_from([*SITES])),
        data.draw(st.sampled_from(["denoise", "noise"])),
    )
    length = len(model.tokenizer.encode(pairs[0].clean))
    one_set = st.lists(parts(model, site, length), min_size=1, max_size=3)
    sets = data.draw(st.lists(one_set, min_size=1, max_size=5).map(enumerate).map(dict))
    table = patch_together(
        model,
        pairs,
        sets,
        site=site,
        direction=direction,
        normalize=False,
        per_prompt=True,
        batch_size=data.draw(st.integers(1, 6)),
    )
    for (prompt, name), value in table["logit_diff"].items():
        plain = [(part.layer, part.head, part.position) for part in sets[name]]
        *_, expected = measure(
            model._module, model.tokenizer, pairs[prompt], site, plain, direction
        )
        assert value == pytest.approx(expected, abs=1e-4)
