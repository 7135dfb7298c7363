"""What attention heads look at, and what they write straight to the prediction."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import nnsight
import pandas as pd
import torch
from nnsight import TransformersModel
from torch import nn

from helpers.prompts import PromptPair, as_list, check_pair, token_labels


def attention_patterns(model: TransformersModel, prompt: str) -> pd.DataFrame:
    """Measure how much each position attends to each, in every head.

    Args:
        model: from `load_model`.
        prompt: the text to run.

    Returns:
        A table with rows `layer`, `head`, `from` and columns `to`, positions labelled as
        `token_labels` does. Each row sums to 1. `table.loc[(2, 0)]` is the pattern of one head.
    """
    labels = token_labels(model.tokenizer, prompt)
    ids = torch.tensor([model.tokenizer.encode(prompt)])
    with attention_that_shows_its_weights(model), torch.no_grad(), model.trace(ids):
        patterns = nnsight.save([block.attention.output[1][0] for block in model.blocks])
    values = torch.stack(patterns).cpu()
    rows = pd.MultiIndex.from_product(
        [range(len(values)), range(values.shape[1]), labels], names=["layer", "head", "from"]
    )
    table = pd.DataFrame(values.flatten(0, 2).numpy(), rows, pd.Index(labels, name="to"))
    table.attrs["measure"] = "attention"
    return table


@contextmanager
def attention_that_shows_its_weights(model: TransformersModel) -> Iterator[None]:
    """Compute attention step by step for a while; the fast kernels keep no weights."""
    usual = model.config._attn_implementation
    model._module.set_attn_implementation("eager")
    try:
        yield
    finally:
        model._module.set_attn_implementation(usual)


def direct_effects(
    model: TransformersModel, pairs: PromptPair | Sequence[PromptPair]
) -> pd.DataFrame:
    """Measure what each head adds straight to the logit difference in the clean run.

    The residual stream is a sum, so the logit difference at the last position is a sum, too,
    once the scale of the final normalization is held at its value in the run: each head adds
    the part of its output that points from the foil's unembedding to the answer's. What a head
    does by way of later layers is not in it. Known as direct logit attribution (Elhage et al.
    2021, https://transformer-circuits.pub/2021/framework/index.html).

    Args:
        model: from `load_model`.
        pairs: one pair or several; of the corrupted prompts only the check makes use.

    Returns:
        A table with rows `layer` and columns `head`, in logits, the mean over pairs.
    """
    pairs = as_list(pairs)
    for pair in pairs:
        check_pair(model.tokenizer, pair)
    effects = torch.stack([direct_effects_of_one(model, pair) for pair in pairs]).mean(dim=0)
    layers, heads = effects.shape
    table = pd.DataFrame(
        effects.numpy(),
        index=pd.RangeIndex(layers, name="layer"),
        columns=pd.RangeIndex(heads, name="head"),
    )
    table.attrs["measure"] = "direct effect in logits"
    return table


def direct_effects_of_one(model: TransformersModel, pair: PromptPair) -> torch.Tensor:
    """Measure one pair; returns `[layer, head]`."""
    encode = model.tokenizer.encode
    with torch.no_grad(), model.trace(torch.tensor([encode(pair.clean)])):
        zs = nnsight.save([block.attention.projection.input[0, -1] for block in model.blocks])
        stream = model.final_norm.input[0, -1].save()
    unembedding = model._module.get_output_embeddings().weight
    answer, foil = (encode(word, add_special_tokens=False)[0] for word in (pair.answer, pair.foil))
    with torch.no_grad():
        direction = unembedding[answer] - unembedding[foil]
        written = torch.stack(
            [
                split_output(block.attention.projection, z, model.config.num_attention_heads)
                for block, z in zip(model.blocks, zs, strict=True)
            ]
        )
        return (normalized_like(written, stream, model.final_norm._module) @ direction).cpu()


def split_output(projection: nn.Module, z: torch.Tensor, heads: int) -> torch.Tensor:
    """Say what each head adds to the stream, `[head, d_model]`; the bias is no head's.

    Args:
        projection: the output projection of a layer.
        z: its input at one position, all heads side by side, `[width]`.
        heads: how many there are.
    """
    one_head_each = torch.block_diag(*z.unflatten(0, (heads, -1)))
    return projection(one_head_each) - projection(torch.zeros_like(one_head_each))


def normalized_like(part: torch.Tensor, whole: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """Normalize a part of a vector with the scale of the whole, without the bias.

    Args:
        part: `[..., d_model]`.
        whole: `[d_model]`.
        norm: a LayerNorm, or an RMSNorm, which does not subtract the mean.
    """
    if isinstance(norm, nn.LayerNorm):
        part, whole = (x - x.mean(dim=-1, keepdim=True) for x in (part, whole))
    eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
    return part / (whole.square().mean() + eps).sqrt() * norm.weight
