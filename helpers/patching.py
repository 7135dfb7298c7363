"""Sweeps that patch one part of a model after another and measure the answer.

Every sweep does three kinds of run:

1. the *donor* run, whose activations are saved;
2. the *base* run, without a patch;
3. for each part, the base run again with that part's activation taken from the donor.

`direction="denoise"` puts clean activations into the corrupted run, `direction="noise"`
puts corrupted activations into the clean run. The scale is the same for both:
0 is the corrupted run, 1 is the clean run.
"""

import operator
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import nnsight
import pandas as pd
import torch
from nnsight import TransformersModel
from tqdm.auto import tqdm

from helpers.metrics import logit_diff, recovered
from helpers.prompts import PromptPair, TokenizedPairs, as_list, tokenize_pairs

Metric = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

SITES = {
    "resid_pre": lambda block: block.input,
    "resid_post": lambda block: block.output,
    "attn_out": lambda block: block.attn.output[0],
    "mlp_out": lambda block: block.mlp.output,
}
DIRECTIONS = ("denoise", "noise")
SECONDS_BEFORE_PROGRESS_BAR = 5


def patch_layers(
    model: TransformersModel,
    pairs: PromptPair | Sequence[PromptPair],
    *,
    site: str = "resid_post",
    position: int | Sequence[int] | None = None,
    direction: str = "denoise",
    metric: Metric = logit_diff,
    normalize: bool = True,
    per_prompt: bool = False,
    batch_size: int = 128,
    progress: bool = True,
) -> pd.DataFrame:
    """Patch one site of one layer at a time, for every layer.

    Args:
        model: from `load_model`.
        pairs: one pair or several, which may differ in length from pair to pair.
        site: `"resid_pre"` or `"resid_post"`, the residual stream before or after the block;
            `"attn_out"` or `"mlp_out"`, what attention or MLP add to it.
        position: where to patch: one position for all pairs (-1 is the last), a list with one
            position per pair, or None for all positions at once.
        direction: `"denoise"` (clean into corrupted) or `"noise"` (corrupted into clean).
        metric: `metric(logits, answers, foils)` of the logits at the last position,
            `[pair, vocabulary]`, and two vectors of token ids, `[pair]`, returns `[pair]`.
        normalize: give the result on the scale from 0 (corrupted run) to 1 (clean run)
            instead of in the metric's own unit.
        per_prompt: keep one value per prompt, each on the scale of its own two runs, instead of
            the mean over prompts. The mean is taken before normalizing, so that a prompt with a
            small clean-corrupted difference counts little in it.
        batch_size: pairs that are run together; it bounds memory and changes no result.
        progress: show a bar if the sweep takes more than a few seconds.

    Returns:
        A table with rows `layer` (with `per_prompt`, rows `prompt`, `layer`) and one column,
        `"recovered"`, or the metric's name if `normalize` is False.

    Raises:
        ValueError: an argument is unknown or out of range, a pair cannot be patched
            (see `check_pair`), or clean and corrupted are too close to normalize.
    """
    check_choice("site", site, SITES)
    check_choice("direction", direction, DIRECTIONS)
    pairs = as_list(pairs)
    positions = positions_of_pairs(position, len(pairs))
    batches = batches_of_one_length(model, pairs, batch_size)
    layers = range(len(model.transformer.h))
    patched = torch.empty(len(pairs), len(layers))
    clean, corrupted = torch.empty(len(pairs)), torch.empty(len(pairs))
    with progress_bar(f"patch {site}", len(batches) * len(layers), progress) as bar:
        for rows, tokens in batches:
            sweep = Sweep(model, tokens, site, direction, metric)
            clean[rows], corrupted[rows] = sweep.clean, sweep.corrupted
            where = where_to_patch(tokens, positions and [positions[row] for row in rows])
            for layer in layers:
                patched[rows, layer] = sweep.patch(layer, where)
                bar.update()
    if not per_prompt:
        patched, clean, corrupted = (
            x.mean(dim=0, keepdim=True) for x in (patched, clean, corrupted)
        )
    if normalize:
        patched = recovered(patched, clean[:, None], corrupted[:, None])
    column = "recovered" if normalize else getattr(metric, "__name__", "metric")
    return to_table(patched, column) if per_prompt else to_table(patched, column).loc[0]


class Sweep:
    """One batch of pairs of one length: its donor and base runs, done once, and patched runs.

    Attributes:
        donor: activations of the donor run at the site, one `[pair, position, d_model]` a layer.
        clean: the metric of the clean runs, `[pair]`.
        corrupted: the metric of the corrupted runs, `[pair]`.
    """

    def __init__(
        self,
        model: TransformersModel,
        tokens: TokenizedPairs,
        site: str,
        direction: str,
        metric: Metric,
    ) -> None:
        self.model, self.tokens, self.site, self.metric = model, tokens, site, metric
        clean_logits, clean_activations = run_and_save(model, tokens.clean, site)
        corrupted_logits, corrupted_activations = run_and_save(model, tokens.corrupted, site)
        denoise = direction == "denoise"
        self.donor = clean_activations if denoise else corrupted_activations
        self.base = tokens.corrupted if denoise else tokens.clean
        self.clean, self.corrupted = self.measure(clean_logits), self.measure(corrupted_logits)

    def measure(self, logits: torch.Tensor) -> torch.Tensor:
        """Apply the metric to logits `[pair, vocabulary]`, checking what it returns."""
        result = self.metric(logits, self.tokens.answers, self.tokens.foils)
        if not isinstance(result, torch.Tensor) or result.shape != (len(logits),):
            raise ValueError(
                f"The metric must return one number per pair, a tensor of shape ({len(logits)},), "
                f"but returned {getattr(result, 'shape', result)}."
            )
        if not result.isfinite().all():
            raise ValueError(f"The metric returned values that are not finite numbers: {result}.")
        return result.cpu()

    def patch(self, layer: int, where: tuple) -> torch.Tensor:
        """Run the base prompts with the donor's activation in one layer; metric `[pair]`."""
        donor = self.donor[layer][where]
        with torch.no_grad(), self.model.trace(self.base, logits_to_keep=1):
            SITES[self.site](self.model.transformer.h[layer])[where] = donor
            logits = self.model.lm_head.output[:, -1].save()
        return self.measure(logits)


def run_and_save(
    model: TransformersModel, ids: torch.Tensor, site: str
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run prompts `[pair, position]` without a patch.

    Returns:
        The logits at the last position, `[pair, vocabulary]`, and the activations at the
        site, for each layer `[pair, position, d_model]`.
    """
    with torch.no_grad(), model.trace(ids, logits_to_keep=1):
        activations = nnsight.save([SITES[site](block) for block in model.transformer.h])
        logits = model.lm_head.output[:, -1].save()
    return logits, activations


def batches_of_one_length(
    model: TransformersModel, pairs: list[PromptPair], batch_size: int
) -> list[tuple[list[int], TokenizedPairs]]:
    """Split pairs into batches of prompts with equally many tokens, so that none is padded.

    Returns:
        For each batch the indices of its pairs, and its token ids.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number from 1 up.")
    rows_of_length = defaultdict(list)
    for row, pair in enumerate(pairs):
        rows_of_length[len(model.tokenizer.encode(pair.clean))].append(row)
    longest, limit = max(rows_of_length), model.config.max_position_embeddings
    if longest > limit:
        raise ValueError(f"A prompt has {longest} tokens, but the model takes at most {limit}.")
    chunks = (
        rows[start : start + batch_size]
        for rows in rows_of_length.values()
        for start in range(0, len(rows), batch_size)
    )
    return [(rows, tokenize_pairs(model.tokenizer, [pairs[r] for r in rows])) for rows in chunks]


def positions_of_pairs(position: int | Sequence[int] | None, count: int) -> list[int] | None:
    """Give every pair its position; None stands for all positions."""
    if position is None:
        return None
    try:
        positions = [operator.index(position)] * count
    except TypeError:
        positions = whole_numbers(position)
    if len(positions) != count:
        raise ValueError(f"{len(positions)} positions were given for {count} pairs.")
    return positions


def whole_numbers(positions: Sequence[int]) -> list[int]:
    """Make a list of whole numbers, from whatever holds some."""
    try:
        return [operator.index(position) for position in positions]
    except TypeError:
        raise ValueError(
            f"position is {positions!r}, but must be a whole number, a list of them, or None."
        ) from None


def where_to_patch(tokens: TokenizedPairs, positions: list[int] | None) -> tuple:
    """Index an activation `[pair, position, d_model]` at one position per pair, or at all."""
    if positions is None:
        return (slice(None), slice(None))
    length = tokens.clean.shape[1]
    for position in positions:
        if not -length <= position < length:
            raise ValueError(
                f"Position {position!r} does not exist: the prompt has {length} tokens, so "
                f"positions go from 0 to {length - 1}, or from -1 back to {-length}."
            )
    return (torch.arange(len(positions)), torch.tensor(positions))


def to_table(values: torch.Tensor, column: str) -> pd.DataFrame:
    """Turn values `[prompt, layer]` into a table with one named row for each."""
    index = pd.MultiIndex.from_product(map(range, values.shape), names=["prompt", "layer"])
    return pd.DataFrame({column: values.flatten().tolist()}, index=index)


def check_choice(name: str, given: str, known: Iterable[str]) -> None:
    """Raise a `ValueError` that lists what there is unless `given` is among it."""
    if given not in list(known):
        raise ValueError(f"There is no {name} {given!r}; choose one of {', '.join(known)}.")


def progress_bar(what: str, total: int, show: bool) -> tqdm:
    """Make a bar that appears only if the work takes more than a few seconds."""
    return tqdm(
        desc=what,
        total=total,
        disable=not show or "TQDM_DISABLE" in os.environ,
        leave=False,
        delay=SECONDS_BEFORE_PROGRESS_BAR,
    )
