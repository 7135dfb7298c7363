"""Sweeps that patch one part of a model after another and measure the answer.

Every sweep does three kinds of run:

1. the *donor* run, whose activations are saved;
2. the *base* run, without a patch;
3. for each part, the base run again with that part's activation taken from the donor.

`direction="denoise"` puts clean activations into the corrupted run, `direction="noise"`
puts corrupted activations into the clean run. The scale is the same for both:
0 is the corrupted run, 1 is the clean run.

`patch_layers` describes the arguments that all sweeps share. How they are made fast is in
`helpers.engine`.
"""

import inspect
import operator
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import pandas as pd
import torch
from nnsight import TransformersModel
from tqdm.auto import tqdm

from helpers.engine import SITES, Batches, Cell, Measured, Metric, Part, Sweep, rows_that_fit
from helpers.metrics import logit_diff, recovered
from helpers.prompts import PromptPair, as_list, position_labels, tokenize_pairs

STREAM_SITES = tuple(site for site in SITES if site != "z")
DIRECTIONS = ("denoise", "noise")
SECONDS_BEFORE_PROGRESS_BAR = 5

Positions = int | Sequence[int] | None


def patch_layers(
    model: TransformersModel,
    pairs: PromptPair | Sequence[PromptPair],
    *,
    site: str = "resid_post",
    position: Positions = None,
    direction: str = "denoise",
    metric: Metric = logit_diff,
    normalize: bool = True,
    per_prompt: bool = False,
    batch_size: int | None = None,
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
        metric: `metric(logits, answers, foils, clean_logits)` of the logits at the last
            position, `[pair, vocabulary]`, two vectors of token ids, `[pair]`, and the logits
            of the clean runs, returns one number per pair, `[pair]`. `helpers.metrics` has some.
        normalize: give the result on the scale from 0 (corrupted run) to 1 (clean run)
            instead of in the metric's own unit.
        per_prompt: keep one value per prompt, each on the scale of its own two runs, instead of
            the mean over prompts. The mean is taken before normalizing, so that a prompt with a
            small clean-corrupted difference counts little in it.
        batch_size: how many runs are done at a time, which bounds memory and changes no result;
            None for as many as `helpers.engine.rows_that_fit`. If memory runs out all the same,
            smaller batches are tried.
        progress: show a bar if the sweep takes more than a few seconds.

    Returns:
        A table with rows `layer` and one column, `"recovered"`, or the metric's name if
        `normalize` is False. With `per_prompt`, rows are `prompt`, `layer`.

    Raises:
        ValueError: an argument is unknown or out of range, a pair cannot be patched
            (see `check_pair`), or clean and corrupted are too close to normalize.
    """
    check_choice("site", site, STREAM_SITES)
    layers = range(len(model.blocks))
    cells = [[Part(layer, position=position)] for layer in layers]
    measured = run_cells(model, pairs, cells, site, direction, metric, batch_size, progress)
    rows = pd.Index(layers, name="layer")
    return to_table(measured, rows, None, metric, normalize, per_prompt)


def patch_positions(
    model: TransformersModel,
    pairs: PromptPair | Sequence[PromptPair],
    *,
    site: str = "resid_post",
    direction: str = "denoise",
    metric: Metric = logit_diff,
    normalize: bool = True,
    per_prompt: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Patch one site in one layer at one position at a time, for all layers and positions.

    The arguments are those of `patch_layers`, but all pairs must have equally many tokens.

    Returns:
        A table with rows `layer` (with `per_prompt`, rows `prompt`, `layer`) and columns
        `position`, labelled with index and token of the clean prompt, as `position_labels` does.
    """
    check_choice("site", site, STREAM_SITES)
    columns = pd.Index(position_labels(model.tokenizer, pairs), name="position")
    layers = range(len(model.blocks))
    cells = [[Part(n, position=position)] for n, position in product(layers, range(len(columns)))]
    measured = run_cells(model, pairs, cells, site, direction, metric, batch_size, progress)
    rows = pd.Index(layers, name="layer")
    return to_table(measured, rows, columns, metric, normalize, per_prompt)


def patch_heads(
    model: TransformersModel,
    pairs: PromptPair | Sequence[PromptPair],
    *,
    position: Positions = None,
    direction: str = "denoise",
    metric: Metric = logit_diff,
    normalize: bool = True,
    per_prompt: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Patch the output of one attention head at a time, for all heads of all layers.

    What is patched is `z`, the head's output before the output projection mixes the heads.
    The arguments are those of `patch_layers`.

    Returns:
        A table with rows `layer` (with `per_prompt`, rows `prompt`, `layer`) and columns `head`.
    """
    layers, columns = range(len(model.blocks)), pd.RangeIndex(count_heads(model), name="head")
    cells = [[Part(layer, head, position)] for layer, head in product(layers, columns)]
    measured = run_cells(model, pairs, cells, "z", direction, metric, batch_size, progress)
    rows = pd.Index(layers, name="layer")
    return to_table(measured, rows, columns, metric, normalize, per_prompt)


def patch_heads_by_position(
    model: TransformersModel,
    pairs: PromptPair | Sequence[PromptPair],
    heads: Iterable[tuple[int, int]] | None = None,
    *,
    direction: str = "denoise",
    metric: Metric = logit_diff,
    normalize: bool = True,
    per_prompt: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Patch the output of one attention head at one position at a time.

    Args:
        model: from `load_model`.
        pairs: one pair or several of equally many tokens.
        heads: which heads, each as (layer, head); None for all of them.
        direction: this and the rest as in `patch_layers`.
        metric: see there.
        normalize: see there.
        per_prompt: see there.
        batch_size: see there.
        progress: see there.

    Returns:
        A table with rows `layer`, `head` (with `per_prompt`, rows `prompt`, `layer`, `head`)
        and columns `position`, labelled as `position_labels` does.
    """
    if heads is None:
        heads = product(range(len(model.blocks)), range(count_heads(model)))
    rows = index_of_heads(heads)
    columns = pd.Index(position_labels(model.tokenizer, pairs), name="position")
    cells = [[Part(*head, position)] for head, position in product(rows, range(len(columns)))]
    measured = run_cells(model, pairs, cells, "z", direction, metric, batch_size, progress)
    return to_table(measured, rows, columns, metric, normalize, per_prompt)


def patch_together(
    model: TransformersModel,
    pairs: PromptPair | Sequence[PromptPair],
    sets: Mapping[str, Iterable[Part]],
    *,
    site: str = "z",
    direction: str = "denoise",
    metric: Metric = logit_diff,
    normalize: bool = True,
    per_prompt: bool = False,
    batch_size: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Patch several parts in one run, for each of some sets of parts.

    Args:
        model: from `load_model`.
        pairs: one pair or several.
        sets: under a name of your choice, the parts that are patched at once, for example
            `{"both": [Part(layer=2, head=0), Part(layer=4, head=1)]}`.
        site: as in `patch_layers`, or `"z"` for heads.
        direction: this and the rest as in `patch_layers`.
        metric: see there.
        normalize: see there.
        per_prompt: see there.
        batch_size: see there.
        progress: see there.

    Returns:
        A table with rows `patched`, the names of the sets (with `per_prompt`, rows `prompt`,
        `patched`), and one column as in `patch_layers`.
    """
    check_choice("site", site, SITES)
    cells = [list(parts) for parts in sets.values()]
    if not cells or not all(cells):
        raise ValueError("There is nothing to patch: give at least one set, and no empty ones.")
    measured = run_cells(model, pairs, cells, site, direction, metric, batch_size, progress)
    rows = pd.Index(sets.keys(), name="patched")
    return to_table(measured, rows, None, metric, normalize, per_prompt)


def run_cells(
    model: TransformersModel,
    pairs: PromptPair | Sequence[PromptPair],
    cells: Sequence[Cell],
    site: str,
    direction: str,
    metric: Metric,
    batch_size: int | None,
    progress: bool,
) -> Measured:
    """Patch every cell into every pair; pairs of one length are run together, none is padded."""
    check_choice("direction", direction, DIRECTIONS)
    check_metric(metric)
    pairs = as_list(pairs)
    lengths = [len(model.tokenizer.encode(pair.clean)) for pair in pairs]
    check_lengths(model, lengths)
    batch_size = check_batch_size(model, batch_size, lengths)
    cells = [[resolve(model, part, site, lengths) for part in cell] for cell in cells]
    measured = Measured(
        patched=torch.empty(len(pairs), len(cells)),
        clean=torch.empty(len(pairs)),
        corrupted=torch.empty(len(pairs)),
    )
    row_batches, pair_batches = Batches(batch_size), Batches(batch_size)
    with progress_bar(f"patch {site}", len(pairs) * len(cells), progress) as bar:

        def work(chosen: Sequence[int]) -> None:
            sweep = Sweep(
                model,
                tokenize_pairs(model.tokenizer, [pairs[index] for index in chosen]),
                [[of_pairs(part, chosen) for part in cell] for cell in cells],
                site=site,
                direction=direction,
                metric=metric,
                batches=row_batches,
            )
            sweep.run(tick=bar.update)
            measured.patched[chosen] = sweep.patched
            measured.clean[chosen], measured.corrupted[chosen] = sweep.clean, sweep.corrupted

        for indices in group_by(lengths).values():
            pair_batches.run(indices, work)
    return measured


def resolve(model: TransformersModel, part: Part, site: str, lengths: list[int]) -> Part:
    """Check a part against the model, and give every pair its position, counted from 0."""
    if not isinstance(part, Part):
        raise ValueError(f"{part!r} was given; write Part(layer=..., head=..., position=...).")
    layer = index_from("layer", part.layer, len(model.blocks))
    head = part.head
    if head is not None:
        if site != "z":
            raise ValueError(f"Head {head!r} was given, but only the site 'z' has heads.")
        head = index_from("head", head, count_heads(model))
    if part.position is None:
        return Part(layer, head)
    positions = positions_of_pairs(part.position, len(lengths))
    return Part(layer, head, [*map(position_from, positions, lengths)])


def index_of_heads(heads: Iterable[tuple[int, int]]) -> pd.MultiIndex:
    """Make an index with one entry for each (layer, head)."""
    try:
        numbers = [(whole_number("layer", n), whole_number("head", h)) for n, h in heads]
    except (TypeError, ValueError):
        raise ValueError("Give heads as a list of (layer, head), such as [(2, 0)].") from None
    if not numbers:
        raise ValueError("No heads were given: name at least one, as (layer, head).")
    return pd.MultiIndex.from_tuples(numbers, names=["layer", "head"])


def of_pairs(part: Part, chosen: Sequence[int]) -> Part:
    """Restrict a part's list of positions to some pairs."""
    if part.position is None:
        return part
    return replace(part, position=[part.position[index] for index in chosen])


def index_from(name: str, given: int, count: int) -> int:
    """Check the number of a layer or head; unlike positions, these do not count from the end."""
    index = whole_number(name, given)
    if not 0 <= index < count:
        raise ValueError(f"There is no {name} {index}: the model has {name}s 0 to {count - 1}.")
    return index


def position_from(given: int, length: int) -> int:
    """Check a position in a prompt, and count it from 0."""
    if not -length <= given < length:
        raise ValueError(
            f"Position {given} does not exist: the prompt has {length} tokens, so positions go "
            f"from 0 to {length - 1}, or from -1 back to {-length}."
        )
    return given % length


def positions_of_pairs(position: int | Sequence[int], count: int) -> list[int]:
    """Give every pair its position."""
    try:
        positions = [operator.index(position)] * count
    except TypeError:
        try:
            positions = [operator.index(one) for one in position]
        except TypeError:
            raise ValueError(
                f"position is {position!r}, but must be a whole number, a list of them, or None."
            ) from None
    if len(positions) != count:
        raise ValueError(f"{len(positions)} positions were given for {count} pairs.")
    return positions


def whole_number(name: str, given: int) -> int:
    """Return an int, from whatever stands for one."""
    try:
        return operator.index(given)
    except TypeError:
        raise ValueError(f"{name} is {given!r}, but must be a whole number.") from None


def check_choice(name: str, given: str, known: Iterable[str]) -> None:
    """Raise a `ValueError` that lists what there is unless `given` is among it."""
    if given not in list(known):
        raise ValueError(f"There is no {name} {given!r}; choose one of {', '.join(known)}.")


def check_metric(metric: Metric) -> None:
    """Raise a `ValueError` unless the metric takes what the sweeps give it."""
    try:
        inspect.signature(metric).bind("logits", "answers", "foils", "clean_logits")
    except TypeError as error:
        raise ValueError(
            "A metric must be a function metric(logits, answers, foils, clean_logits), but "
            f"{metric!r} is not ({error})."
        ) from None


def check_lengths(model: TransformersModel, lengths: Sequence[int]) -> None:
    """Raise a `ValueError` if a prompt is longer than the model or its attention reaches."""
    reach = getattr(model.config, "sliding_window", None) or max(lengths)
    limit = min(model.config.max_position_embeddings, reach)
    if max(lengths) > limit:
        raise ValueError(
            f"A prompt has {max(lengths)} tokens, but this model of the family "
            f"{model.config.model_type!r} can be patched in prompts of up to {limit}."
        )


def check_batch_size(
    model: TransformersModel, batch_size: int | None, lengths: Sequence[int]
) -> int:
    """Return the batch size that was given, or one that fits if it is None."""
    if batch_size is None:
        return rows_that_fit(model, max(lengths))
    batch_size = whole_number("batch_size", batch_size)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but must be 1 or more.")
    return batch_size


def count_heads(model: TransformersModel) -> int:
    """Count the attention heads of a layer."""
    return model.config.num_attention_heads


def group_by(keys: Sequence[int]) -> dict[int, list[int]]:
    """List for each key at which indices it stands."""
    groups = defaultdict(list)
    for index, key in enumerate(keys):
        groups[key].append(index)
    return groups


def to_table(
    measured: Measured,
    rows: pd.Index,
    columns: pd.Index | None,
    metric: Metric,
    normalize: bool,
    per_prompt: bool,
) -> pd.DataFrame:
    """Label what was measured; cells are in the order of rows, and within a row of columns.

    Without columns there is one, named after what is measured. `attrs["measure"]` says it, too.
    """
    patched, clean, corrupted = measured.patched, measured.clean, measured.corrupted
    if not per_prompt:
        patched, clean, corrupted = (x.mean(0, keepdim=True) for x in (patched, clean, corrupted))
    if normalize:
        patched = recovered(patched, clean[:, None], corrupted[:, None])
    measure = "recovered" if normalize else getattr(metric, "__name__", "metric")
    columns = pd.Index([measure]) if columns is None else columns
    tables = [
        pd.DataFrame(values.numpy().reshape(len(rows), -1), rows, columns) for values in patched
    ]
    table = (
        pd.concat(tables, keys=range(len(tables)), names=["prompt"]) if per_prompt else tables[0]
    )
    table.attrs["measure"] = measure
    return table


def progress_bar(what: str, total: int, show: bool) -> tqdm:
    """Make a bar that appears only if the work takes more than a few seconds."""
    return tqdm(
        desc=what,
        total=total,
        disable=not show or "TQDM_DISABLE" in os.environ,
        leave=False,
        delay=SECONDS_BEFORE_PROGRESS_BAR,
    )
