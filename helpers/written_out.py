"""Write a patching experiment out as plain nnsight, to be pasted, read and changed."""

import json
from collections.abc import Iterable
from dataclasses import asdict

from nnsight import TransformersModel

from helpers.engine import SITES, Part
from helpers.patching import DIRECTIONS, check_choice, count_heads, resolve
from helpers.prompts import PromptPair, check_pair

EVERYWHERE = "everywhere"
CODE = """\
import nnsight
import torch

# `model` is what load_model() gives, or a TransformersModel of the family {family}.
clean = {clean}
corrupted = {corrupted}
answer, foil = (model.tokenizer.encode(word)[-1] for word in ({answer}, {foil}))

def logit_diff(logits):
    return (logits[0, -1, answer] - logits[0, -1, foil]).item()

with torch.no_grad(), model.trace({donor}):
    saved = nnsight.save([{site} for block in {blocks}])
    {donor}_logits = model.output.logits.save()
with torch.no_grad(), model.trace({base}):
    {base}_logits = model.output.logits.save()

{settings}
with torch.no_grad(), model.trace({base}):
{patch}
    patched_logits = model.output.logits.save()

low, high = logit_diff(corrupted_logits), logit_diff(clean_logits)
recovered = (logit_diff(patched_logits) - low) / (high - low)
print(f"{{recovered:.2f}} recovered")
"""
PATCH_STREAM = """\
    for layer, position in parts:
        block = {blocks}[layer]
        {site}[:, position] = saved[layer][:, position]"""
PATCH_HEADS = """\
    for layer, head, position in parts:
        block, cut = {blocks}[layer], slice(head * width, (head + 1) * width)
        {site}[:, position, cut] = saved[layer][:, position, cut]"""


def write_code(
    model: TransformersModel,
    pair: PromptPair,
    parts: Iterable[Part],
    *,
    site: str = "z",
    direction: str = "denoise",
) -> str:
    """Write the lines of plain nnsight that patch some parts at once in one run of a pair.

    They need `model`, and nothing of this course: parts have the names that the model's family
    gives them. They leave the result in `recovered`, and print it.

    Args:
        model: from `load_model`.
        pair: one pair.
        parts: what is patched at once.
        site: as in `patch_layers`, or `"z"` for heads.
        direction: as in `patch_layers`.

    Raises:
        ValueError: an argument is unknown or out of range, or the pair cannot be patched.
    """
    check_choice("site", site, SITES)
    check_choice("direction", direction, DIRECTIONS)
    check_pair(model.tokenizer, pair)
    lengths = [len(model.tokenizer.encode(pair.clean))]
    parts = sorted((resolve(model, part, site, lengths) for part in parts), key=place_of)
    if not parts:
        raise ValueError("There is nothing to patch: give at least one part.")
    donor, base = ("clean", "corrupted") if direction == "denoise" else ("corrupted", "clean")
    names = {"blocks": model.blocks.path, "site": site_in_code(model, site)}
    return CODE.format(
        family=model.config.model_type,
        **{name: json.dumps(text, ensure_ascii=False) for name, text in asdict(pair).items()},
        donor=donor,
        base=base,
        settings="\n".join(settings(model, parts, site)),
        patch=(PATCH_HEADS if site == "z" else PATCH_STREAM).format(**names),
        **names,
    )


def place_of(part: Part) -> tuple[int, int, list[int]]:
    """Say where a part comes among others, in the order in which a model reaches them."""
    return part.layer, -1 if part.head is None else part.head, part.position or []


def site_in_code(model: TransformersModel, site: str) -> str:
    """Write the activation of a `block`, with the names that the model's family gives its parts."""
    block = model.blocks[0]

    def name(part: object) -> str:
        return "block" + part.path.removeprefix(block.path)

    return {
        "resid_pre": "block.input",
        "resid_post": "block.output",
        "attn_out": f"{name(block.attention)}.output[0]",
        "mlp_out": f"{name(block.mlp)}.output",
        "z": f"{name(block.attention.projection)}.input",
    }[site]


def settings(model: TransformersModel, parts: list[Part], site: str) -> list[str]:
    """Write the lines that say what is patched."""
    lines = []
    if any(part.position is None for part in parts):
        lines.append(f"{EVERYWHERE} = slice(None)")
    if site == "z":
        lines.append(f"width = saved[0].shape[-1] // {count_heads(model)}")
        items = [item for part in parts for item in heads_of(model, part)]
    else:
        items = [f"({part.layer}, {position_of(part)})" for part in parts]
    return [*lines, f"parts = [{', '.join(items)}]"]


def heads_of(model: TransformersModel, part: Part) -> list[str]:
    """Write the heads of a part."""
    heads = range(count_heads(model)) if part.head is None else [part.head]
    return [f"({part.layer}, {head}, {position_of(part)})" for head in heads]


def position_of(part: Part) -> str:
    """Write the position of a part in the one pair that there is."""
    return EVERYWHERE if part.position is None else str(part.position[0])
