"""The course's sweeps on the real GPT-2 small beside published figures: `make reference`.

For people online. Patches the prompts that the figures in `data/gpt2_patching.csv` were made with,
with a beginning-of-text token before them, as was done there, and without one, and prints all
values side by side. A value with the token that is further than `TOLERANCE` from what was
published ends the command with a failure.
"""

import sys
from dataclasses import replace

import pandas as pd
import torch

from helpers.models import load_model
from helpers.patching import patch_heads, patch_positions
from helpers.prompts import PromptPair, differing_positions
from helpers.shipped import DATA, DATA_FILES, check_shipped_files

TOLERANCE = 0.02
BEGINNING = "<|endoftext|>"


def read_pairs():
    """Read the prompts of the published figures."""
    table = pd.read_csv(DATA / "gpt2_prompts.csv")
    return [PromptPair(*row) for row in table.itertuples(index=False)]


def begin_with_token(pair):
    return replace(pair, clean=BEGINNING + pair.clean, corrupted=BEGINNING + pair.corrupted)


def measure(model, pairs, published):
    """Measure what was published, in the same order."""
    positions = {"second subject": differing_positions(model.tokenizer, pairs[0])[0], "last": -1}
    tables = {site: sweep(model, pairs, site) for site in published["site"].unique()}
    values = [
        tables[row.site].iat[
            row.layer, int(row.head) if row.site == "z" else positions[row.position]
        ]
        for row in published.itertuples()
    ]
    return pd.Series(values, published.index)


def sweep(model, pairs, site):
    if site == "z":
        return patch_heads(model, pairs)
    # Of tables with several pairs, columns are named by place, since the words differ.
    return patch_positions(model, pairs, site=site)


def compare(published, measured, without_token):
    """Put published and measured values side by side, with how far they are apart."""
    table = published.rename(columns={"recovered": "published"})
    table["measured"] = measured.round(3)
    table["difference"] = (measured - published["recovered"]).round(3)
    table["without the token"] = without_token.round(3)
    return table


def find_misses(table):
    """Take the rows that are too far from what was published, or could not be measured."""
    return table[~(table["difference"].abs() <= TOLERANCE)]


def main():
    check_shipped_files(DATA, *DATA_FILES)
    published = pd.read_csv(DATA / "gpt2_patching.csv")
    model = load_model("gpt2")
    pairs = read_pairs()
    with torch.no_grad():
        measured = measure(model, [begin_with_token(pair) for pair in pairs], published)
        without_token = measure(model, pairs, published)
    table = compare(published, measured, without_token)
    print(table.to_string(index=False, na_rep=""))
    misses = find_misses(table)
    if len(misses):
        sys.exit(
            f"{len(misses)} of {len(table)} values are further than {TOLERANCE} from published."
        )
    print(f"All {len(table)} values are within {TOLERANCE} of what was published.")


if __name__ == "__main__":
    try:
        main()
    except ConnectionError as error:
        sys.exit(str(error))
