"""Stand-ins for GPT-2 small, whose weights cannot be had offline: its shape and its tokenizer.

`carried_over` has ioi-mini's weights in the places of GPT-2 small's, so that on the course's
prompts it answers what ioi-mini answers, with 12 layers, 12 heads and 50,257 tokens. It shows
that nothing in the course assumes ioi-mini's size or vocabulary, and that what is measured
on such a model is right, as ioi-mini's own measurements must come out at other places. It cannot
show what the real GPT-2 small does: `make reference` compares that with published figures.

`random` has GPT-2 small's initialisation. It tells clean from corrupted no better than chance,
and shows what readers see when there is nothing to divide by.
"""

import json
from pathlib import Path

import torch
from torch.nn.functional import pad
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from helpers.models import DATA, GPT2_REPOSITORY, GPT2_REVISION

# OpenAI's, MIT License, https://github.com/openai/gpt-2; the vocabulary follows from them.
MERGES = Path(__file__).parent / "gpt2-merges.txt"
END = "<|endoftext|>"
SHAPE = GPT2Config(bos_token_id=50256, eos_token_id=50256)
# ioi-mini's layer n is the stand-in's layer 2n; the layers between add nothing.
EVERY = 2


def vocabulary():
    """List GPT-2's tokens in order: the bytes, what is merged, and the end of a text."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [*map(chr, printable), *(chr(256 + n) for n in range(len(others)))]
    merges = MERGES.read_text(encoding="utf-8").splitlines()[1:]
    return [*letters, *(merge.replace(" ", "") for merge in merges), END]


def save_tokenizer(folder):
    """Write the files that GPT-2's repository has for its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {token: number for number, token in enumerate(vocabulary())}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_bytes(MERGES.read_bytes())
    special = {"bos_token": END, "eos_token": END, "unk_token": END}
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def random():
    torch.manual_seed(0)
    return GPT2LMHeadModel(SHAPE).eval()


@torch.no_grad()
def carried_over(tokenizer):
    """Put ioi-mini into GPT-2 small's shape without changing what it computes.

    The residual stream holds ioi-mini's several times over, side by side: then layer norms, which
    divide by the spread over all of it, give what they gave. What reads from the stream takes the
    mean of the copies; what writes into it writes to all. Added heads and neurons are zero.
    """
    small = GPT2LMHeadModel.from_pretrained(DATA / "ioi-mini")
    large = GPT2LMHeadModel(SHAPE)
    for weight in large.parameters():
        weight.zero_()
    copies = SHAPE.n_embd // small.config.n_embd
    words = GPT2Tokenizer.from_pretrained(DATA / "ioi-mini").get_vocab()
    embedding = small.transformer.wte.weight
    # Words that ioi-mini does not have get the row of one that it never answers.
    rows = [words.get(token, words[END]) for token in tokenizer.convert_ids_to_tokens(range(50257))]
    large.transformer.wte.weight.copy_(embedding[rows].tile(copies))
    positions = small.transformer.wpe.weight
    large.transformer.wpe.weight[: len(positions)] = positions.tile(copies)
    for name in ("weight", "bias"):
        norm = getattr(small.transformer.ln_f, name)
        # The unembedding sums over the copies.
        getattr(large.transformer.ln_f, name).copy_(norm.tile(copies) / copies)
    for number, block in enumerate(small.transformer.h):
        carry_block(block, large.transformer.h[EVERY * number], copies)
    return large.eval()


def carry_block(small, large, copies):
    for norm in ("ln_1", "ln_2"):
        for name in ("weight", "bias"):
            getattr(getattr(large, norm), name).copy_(
                getattr(getattr(small, norm), name).tile(copies)
            )
    read(small.mlp.c_fc, large.mlp.c_fc, copies)
    write(small.mlp.c_proj, large.mlp.c_proj, copies)
    carry_heads(small.attn, large.attn, copies)


def read(small, large, copies):
    """Carry weights, of shape [in, out], that read from the stream."""
    wide = large.bias.shape[0] - small.bias.shape[0]
    large.weight.copy_(pad(small.weight.tile(copies, 1) / copies, (0, wide)))
    large.bias.copy_(pad(small.bias, (0, wide)))


def write(small, large, copies):
    """Carry weights, of shape [in, out], that write into the stream."""
    high = large.weight.shape[0] - small.weight.shape[0]
    large.weight.copy_(pad(small.weight.tile(1, copies), (0, 0, 0, high)))
    large.bias.copy_(small.bias.tile(copies))


def carry_heads(small, large, copies):
    heads, more_heads = small.num_heads, large.num_heads - small.num_heads
    wider = large.head_dim - small.head_dim
    # Scores are divided by the root of a head's width, which has grown.
    grown = (large.head_dim / small.head_dim) ** 0.5
    weights, biases = [], []
    for part, factor in zip(range(3), (grown, 1, 1), strict=True):
        cut = slice(part * heads * small.head_dim, (part + 1) * heads * small.head_dim)
        weight = small.c_attn.weight[:, cut].tile(copies, 1) * factor / copies
        weight = weight.reshape(len(weight), heads, small.head_dim)
        bias = (small.c_attn.bias[cut] * factor).reshape(heads, small.head_dim)
        weights.append(pad(weight, (0, wider, 0, more_heads)).flatten(1))
        biases.append(pad(bias, (0, wider, 0, more_heads)).flatten())
    large.c_attn.weight.copy_(torch.cat(weights, 1))
    large.c_attn.bias.copy_(torch.cat(biases))
    out = small.c_proj.weight.reshape(heads, small.head_dim, -1).tile(1, 1, copies)
    large.c_proj.weight.copy_(pad(out, (0, 0, 0, wider, 0, more_heads)).flatten(0, 1))
    large.c_proj.bias.copy_(small.c_proj.bias.tile(copies))


def fill_cache(cache, make):
    """Lay a stand-in out as the hub's cache does, where `load_model("gpt2")` looks for it.

    Args:
        cache: the folder that the environment variable `HF_HUB_CACHE` names.
        make: `random`, or `carried_over`.
    """
    home = Path(cache) / ("models--" + GPT2_REPOSITORY.replace("/", "--"))
    folder = save_tokenizer(home / "snapshots" / GPT2_REVISION)
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    network = make(tokenizer) if make is carried_over else make()
    network.save_pretrained(folder)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(GPT2_REVISION)
    return folder
