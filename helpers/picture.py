"""The picture that a model shows on IOI: `python -m helpers.picture [MODEL]`.

Prints how well a model does the task on fresh prompts, and where patching finds it. The model
card in `data/README.md` holds this output for ioi-mini.
"""

import argparse
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import nnsight
import pandas as pd
import torch
from nnsight import TransformersModel

from helpers.corpus import NAMES, PAIR_ROLES, choose_held_out_names, make_story
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

    def to_text(self, smallest: float = 0.04) -> str:
        """Write three small tables; heads below `smallest` in every column are left out."""
        strong = self.heads[(self.heads.abs() >= smallest).any(axis=1)]
        tables = (self.behaviour, self.stream, strong)
        return "\n\n".join(numbers(table).to_string(float_format="%.2f") for table in tables)


def fresh_pairs(seed: int = 1) -> list[PromptPair]:
    """Make swap pairs from random stories, with names that never meet in a training story.

    Each story comes with several pairs of names, half of them in each order; a third person,
    where there is one, has any other name. Stories with two subjects have no swap twin and are
    left out.
    """
    rng = random.Random(seed)
    pairs: list[PromptPair] = []
    while len(pairs) < STORIES * NAMINGS:
        story = make_story(rng)
        if story.roles != PAIR_ROLES:
            continue
        for naming in range(NAMINGS):
            names = choose_held_out_names(rng)
            names["C"] = rng.choice([name for name in NAMES if name not in names.values()])
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
        z: the heads' outputs before the projection, side by side, for each layer
            `[pair, position, width]`.
    """

    metric: torch.Tensor
    z: list[torch.Tensor]


def take_picture(model: TransformersModel, pairs: list[PromptPair]) -> Picture:
    """Measure swap pairs.

    The mean over prompts is taken before normalizing, as in `patch_layers`.
    """
    subjects = [differing_positions(model.tokenizer, pair)[-1] for pair in pairs]
    alike = defaultdict(list)
    for pair, subject in zip(pairs, subjects, strict=True):
        alike[len(model.tokenizer.encode(pair.clean)), subject].append(pair)
    measured = [measure_heads(model, group, subject) for (_, subject), group in alike.items()]
    behaviour, heads = (pd.concat(tables) for tables in zip(*measured, strict=True))
    clean, corrupted = (torch.tensor(behaviour[name].mean()) for name in ("clean", "corrupted"))
    heads = heads.groupby(["layer", "head"]).mean()
    heads = heads.apply(lambda x: recovered(torch.tensor(x.to_numpy()), clean, corrupted).numpy())
    heads["lost by noising"] = 1 - heads.pop("noised")
    return Picture(
        behaviour=behaviour.groupby("order").mean(),
        stream=pd.DataFrame(
            {
                "second subject": patch_layers(model, pairs, position=subjects)["recovered"],
                "last": patch_layers(model, pairs, position=-1)["recovered"],
            }
        ),
        heads=heads,
    )


def measure_heads(
    model: TransformersModel, pairs: list[PromptPair], subject: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure pairs of one length, with the second subject at one position.

    Returns:
        One row per pair, its behaviour; and one row per layer, head and pair, the logit
        difference with the head patched.
    """
    tokens = tokenize_pairs(model.tokenizer, pairs)
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
    places = {"all": slice(None), "second subject": subject, "last": -1}
    heads = {
        name: [patch_each_head(model, tokens, tokens.corrupted, clean, n, where) for n in layers]
        for name, where in places.items()
    }
    heads["noised"] = [
        patch_each_head(model, tokens, tokens.clean, corrupted, n, slice(None)) for n in layers
    ]
    return behaviour, to_frame(heads)


def run(model: TransformersModel, tokens: TokenizedPairs, ids: torch.Tensor) -> Run:
    """Run the clean or the corrupted ids, `[pair, position]`, and keep what is patched later."""
    with torch.no_grad(), model.trace(ids, logits_to_keep=1):
        z = nnsight.save([block.attn.c_proj.input for block in model.transformer.h])
        logits = model.lm_head.output[:, -1].save()
    return Run(logit_diff(logits, tokens.answers, tokens.foils).cpu(), z)


def patch_each_head(
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


def to_frame(columns: dict[str, list[torch.Tensor]]) -> pd.DataFrame:
    """Turn a list over layers of `[head, pair]` into one row per layer, head and pair."""
    values = {name: torch.stack(layers) for name, layers in columns.items()}
    shape = next(iter(values.values())).shape
    index = pd.MultiIndex.from_product(map(range, shape), names=["layer", "head", "pair"])
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
