"""The picture that a model shows on IOI: `python -m helpers.picture [MODEL]`.

Prints how well a model does the task on fresh prompts, and where patching finds it. The model
card in `data/README.md` holds this output for ioi-mini.
"""

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from nnsight import TransformersModel

from helpers.corpus import NAMES, PAIR_ROLES, choose_held_out_names, make_story
from helpers.engine import Part
from helpers.models import load_model
from helpers.patching import patch_heads, patch_layers, patch_together
from helpers.plots import layer_lines, numbers
from helpers.prompts import PromptPair, differing_positions, load_pairs

STORIES, NAMINGS = 200, 6
PATCHED = 144


@dataclass(frozen=True)
class Picture:
    """What patching shows, as means over prompts.

    Attributes:
        behaviour: for each order of names, the share of prompts in which the answer beats the
            foil, and the mean logit differences of the clean and the corrupted prompts.
        stream: residual stream after each layer, clean into corrupted, at one position: rows
            `layer`, columns `second subject` and `last`.
        heads: each head's output, clean into corrupted, at all positions, the second subject,
            and the last position, over both orders; and for the order ABBA alone what it brings
            back by itself (`enough`) and what is lost without it (`needed`): rows `layer`,
            `head`. All on the scale from 0 (corrupted) to 1 (clean).
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


def take_picture(model: TransformersModel, pairs: list[PromptPair]) -> Picture:
    """Measure swap pairs; the first `PATCHED` of them are patched.

    Means over prompts are taken before normalizing.
    """
    behaviour = measure_behaviour(model, pairs).groupby("order").mean()
    pairs = pairs[:PATCHED]
    subjects = [differing_positions(model.tokenizer, pair)[-1] for pair in pairs]
    abba = [pair for pair in pairs if pair.order == "ABBA"]
    heads = {
        "all": patch_heads(model, pairs),
        "second subject": patch_heads(model, pairs, position=subjects),
        "last": patch_heads(model, pairs, position=-1),
        "enough": patch_heads(model, abba),
        "needed": 1 - patch_heads(model, abba, direction="noise"),
    }
    stream = {
        "second subject": patch_layers(model, pairs, position=subjects),
        "last": patch_layers(model, pairs, position=-1),
    }
    return Picture(
        behaviour=behaviour,
        stream=pd.DataFrame({name: table["recovered"] for name, table in stream.items()}),
        heads=pd.DataFrame({name: table.stack() for name, table in heads.items()}),
    )


def measure_behaviour(model: TransformersModel, pairs: list[PromptPair]) -> pd.DataFrame:
    """Run pairs without a patch; one row per pair.

    Replacing the whole stream in one layer gives the clean run, or with noising the corrupted.
    """
    whole_stream = {"whole stream": [Part(layer=0)]}
    options = {"site": "resid_post", "normalize": False, "per_prompt": True}
    unpatched = {
        name: patch_together(model, pairs, whole_stream, direction=direction, **options)
        for name, direction in (("clean", "denoise"), ("corrupted", "noise"))
    }
    behaviour = pd.DataFrame(
        {name: table["logit_diff"].to_numpy() for name, table in unpatched.items()}
    )
    behaviour.insert(0, "answer beats foil", (behaviour["clean"] > 0).astype(float))
    return behaviour.assign(order=[pair.order for pair in pairs])


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
