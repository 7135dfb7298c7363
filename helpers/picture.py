"""The picture that a model shows on IOI: `python -m helpers.picture [MODEL]`.

Prints how well a model does the task on fresh prompts, and where patching finds it. The model
card in `data/README.md` holds this output for ioi-mini.
"""

import argparse
import random
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import nnsight
import pandas as pd
import torch
from nnsight import TransformersModel

from helpers.corpus import PAIR_ROLES, choose_held_out_names, make_story
from helpers.metrics import logit_diff, recovered
from helpers.models import load_model
from helpers.patching import patch_layers
from helpers.plots import layer_lines, numbers
from helpers.prompts import (
    PromptPair,
    TokenizedPairs,
    differing_positions,
    load_pairs,
    tokenize_pairs,
)

STORIES, NAMINGS = 24, 6


@dataclass(frozen=True)
class Picture:
    """What patching shows, as means over prompts.

    Attributes:
        behaviour: for each order of names, the share of prompts in which the answer beats the
            foil, and the mean logit differences of the clean and the corrupted prompts.
        stream: residual stream after each layer, clean into corrupted, at one position: rows
            `layer`, columns `second subject` and `last`.
        heads: each head's output, clean into corrupted, at all positions, the second subject,
            and the last position; and what is lost when it is corrupted in the clean run, at
            all positions: rows `layer`, `head`, columns `all`, `second subject`, `last`,
            `lost by noising`. All on the scale from 0 (corrupted) to 1 (clean).
    """

    behaviour: pd.DataFrame
    stream: pd.DataFrame
    heads: pd.DataFrame

    def to_text(self, smallest: float = 0.02) -> str:
        """Write three small tables; heads below `smallest` in every column are left out."""
        strong = self.heads[(self.heads.abs() >= smallest).any(axis=1)]
        tables = (self.behaviour, self.stream, strong)
        return "\n\n".join(numbers(table).to_string(float_format="%.2f") for table in tables)


def fresh_pairs(seed: int = 1) -> list[PromptPair]:
    """Make swap pairs from random stories, with names that never meet in a training story.

    Each story comes with several pairs of names, half of them in each order.
    """
    rng = random.Random(seed)
    pairs: list[PromptPair] = []
    while len(pairs) < STORIES * NAMINGS:
        story = make_story(rng)
        if story.slots != "AB":
            continue
        for naming in range(NAMINGS):
            names = choose_held_out_names(rng)
            role, other = PAIR_ROLES if naming % 2 else reversed(PAIR_ROLES)
            pairs.append(
                PromptPair(
                    clean=story.render(names, role),
                    corrupted=story.render(names, other),
                    answer=f" {names[role.answer]}",
                    foil=f" {names[role.subjects]}",
                    kind="swap",
                    order="ABBA" if role.answer == "A" else "BABA",
                    template=story.text,
                )
            )
    return pairs


@dataclass(frozen=True)
class Run:
    """An unpatched run.

    Attributes:
        metric: logit differences, `[pair]`.
        stream: the residual stream after each layer, `[pair, position, width]`.
        z: the heads' outputs before the projection, side by side, of the same shape.
    """

    metric: torch.Tensor
    stream: list[torch.Tensor]
    z: list[torch.Tensor]


def take_picture(model: TransformersModel, pairs: list[PromptPair]) -> Picture:
    """Measure swap pairs; neighbours of one template are run together.

    The mean over prompts is taken before normalizing, as in `patch_layers`.
    """
    measured = [
        measure_template(model, list(group)) for _, group in groupby(pairs, lambda p: p.template)
    ]
    behaviour, stream, heads = (pd.concat(tables) for tables in zip(*measured, strict=True))
    clean, corrupted = (torch.tensor(behaviour[name].mean()) for name in ("clean", "corrupted"))

    def scale(table: pd.DataFrame) -> pd.DataFrame:
        return table.apply(
            lambda column: recovered(torch.tensor(column.to_numpy()), clean, corrupted).numpy()
        )

    heads = scale(heads.groupby(["layer", "head"]).mean())
    heads["lost by noising"] = 1 - heads.pop("noised")
    return Picture(
        behaviour=behaviour.groupby("order").mean(),
        stream=scale(stream.groupby("layer").mean()),
        heads=heads,
    )


def measure_template(
    model: TransformersModel, pairs: list[PromptPair]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Measure pairs whose second subject stands at one position, one row per pair and part.

    Returns:
        Behaviour, and logit differences with the stream or a head patched.
    """
    tokens = tokenize_pairs(model.tokenizer, pairs)
    subject = differing_positions(model.tokenizer, pairs[0])[-1]
    clean, corrupted = run(model, tokens, tokens.clean), run(model, tokens, tokens.corrupted)
    behaviour = pd.DataFrame(
        {
            "order": [pair.order for pair in pairs],
            "answer beats foil": (clean.metric > 0).float(),
            "clean": clean.metric,
            "corrupted": corrupted.metric,
        }
    )
    layers = range(model.config.n_layer)
    places = {"second subject": subject, "last": -1}
    stream = {
        name: [patch_stream(model, tokens, clean, layer, position) for layer in layers]
        for name, position in places.items()
    }
    heads = {
        name: [
            patch_heads(model, tokens, tokens.corrupted, clean, layer, where) for layer in layers
        ]
        for name, where in {"all": slice(None), **places}.items()
    }
    heads["noised"] = [
        patch_heads(model, tokens, tokens.clean, corrupted, layer, slice(None)) for layer in layers
    ]
    return behaviour, to_frame(stream, ["layer"]), to_frame(heads, ["layer", "head"])


def run(model: TransformersModel, tokens: TokenizedPairs, ids: torch.Tensor) -> Run:
    """Run the clean or the corrupted ids, `[pair, position]`, and keep what is patched later."""
    blocks = model.transformer.h
    with torch.no_grad(), model.trace(ids, logits_to_keep=1):
        z = nnsight.save([])
        stream = nnsight.save([])
        for block in blocks:
            z.append(block.attn.c_proj.input)
            stream.append(block.output)
        logits = model.lm_head.output[:, -1].save()
    return Run(logit_diff(logits, tokens.answers, tokens.foils).cpu(), stream, z)


def patch_stream(
    model: TransformersModel, tokens: TokenizedPairs, donor: Run, layer: int, position: int
) -> torch.Tensor:
    """Patch the stream after a layer into the corrupted run; returns the metric, `[pair]`."""
    with torch.no_grad(), model.trace(tokens.corrupted, logits_to_keep=1):
        model.transformer.h[layer].output[:, position] = donor.stream[layer][:, position]
        logits = model.lm_head.output[:, -1].save()
    return logit_diff(logits, tokens.answers, tokens.foils).cpu()


def patch_heads(
    model: TransformersModel,
    tokens: TokenizedPairs,
    base: torch.Tensor,
    donor: Run,
    layer: int,
    where: int | slice,
) -> torch.Tensor:
    """Patch each head of a layer into its own copy of the base prompts, `[pair, position]`.

    Returns:
        The metric, `[head, pair]`.
    """
    pairs, heads = len(base), model.config.n_head
    width = model.config.n_embd // heads
    with torch.no_grad(), model.trace(base.repeat(heads, 1), logits_to_keep=1):
        z = model.transformer.h[layer].attn.c_proj.input
        for head in range(heads):
            rows, cut = (
                slice(head * pairs, (head + 1) * pairs),
                slice(head * width, (head + 1) * width),
            )
            z[rows, where, cut] = donor.z[layer][:, where, cut]
        logits = model.lm_head.output[:, -1].save()
    words = tokens.answers.repeat(heads), tokens.foils.repeat(heads)
    return logit_diff(logits, *words).cpu().unflatten(0, (heads, pairs))


def to_frame(columns: dict[str, list[torch.Tensor]], levels: list[str]) -> pd.DataFrame:
    """Turn a list over layers of `[pair]` or `[head, pair]` into one row per part and pair."""
    values = {name: torch.stack(layers) for name, layers in columns.items()}
    shape = next(iter(values.values())).shape
    index = pd.MultiIndex.from_product(map(range, shape), names=[*levels, "pair"])
    return pd.DataFrame({name: value.flatten() for name, value in values.items()}, index=index)


def draw_handover(model: TransformersModel, file: Path) -> None:
    """Draw the figure of the README: where the clue of the course's swap pairs is, by layer."""
    pairs = load_pairs(kind="swap")
    subjects = [differing_positions(model.tokenizer, pair)[-1] for pair in pairs]
    ax = layer_lines(
        {
            "second subject": patch_layers(model, pairs, position=subjects, per_prompt=True),
            "last position": patch_layers(model, pairs, position=-1, per_prompt=True),
        }
    )
    ax.set_title("Residual stream of the clean run, put into the corrupted run")
    ax.figure.savefig(file, dpi=120, bbox_inches="tight", metadata={"Software": None})


def main() -> None:
    """Print a model's picture, or draw the figure of the README."""
    parser = argparse.ArgumentParser(prog="python -m helpers.picture", description=__doc__)
    parser.add_argument("model", nargs="?", help="name or folder, as load_model takes it")
    parser.add_argument("--figure", type=Path, help="draw the figure of the README instead")
    given = parser.parse_args()
    model = load_model(given.model)
    if given.figure:
        draw_handover(model, given.figure)
    else:
        print(take_picture(model, fresh_pairs()).to_text())


if __name__ == "__main__":
    main()
