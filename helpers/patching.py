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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd
import torch
from nnsight import TransformersModel
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from helpers.engine import (
    SITES,
    Batches,
    Cell,
    Measured,
    Metric,
    Part,
    Sweep,
    rows_that_fit,
    run_and_save,
    run_with,
)
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
    plan = plan_layers(model, site, position)
    return carry_out(
        model, pairs, plan, direction, metric, normalize, per_prompt, batch_size, progress
    )


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
    plan = plan_positions(model, pairs, site)
    return carry_out(
        model, pairs, plan, direction, metric, normalize, per_prompt, batch_size, progress
    )


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
    plan = plan_heads(model, position)
    return carry_out(
        model, pairs, plan, direction, metric, normalize, per_prompt, batch_size, progress
    )


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
    plan = plan_heads_by_position(model, pairs, heads)
    return carry_out(
        model, pairs, plan, direction, metric, normalize, per_prompt, batch_size, progress
    )


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
    plan = plan_together(sets, site)
    return carry_out(
        model, pairs, plan, direction, metric, normalize, per_prompt, batch_size, progress
    )


def predictions(
    model: TransformersModel,
    pair: PromptPair,
    parts: Iterable[Part],
    *,
    site: str = "z",
    direction: str = "denoise",
    count: int = 5,
) -> pd.DataFrame:
    """Compare the likeliest next tokens of the clean, the corrupted, and one patched run.

    Args:
        model: from `load_model`.
        pair: one pair.
        parts: what is patched at once.
        site: as in `patch_layers`, or `"z"` for heads.
        direction: as in `patch_layers`.
        count: how many tokens of each run.

    Returns:
        A table of probabilities with columns `clean`, `corrupted`, `patched`, and rows `token`:
        the `count` likeliest of each run, in the order of their largest probability.
    """
    check_choice("site", site, SITES)
    check_choice("direction", direction, DIRECTIONS)
    tokens = tokenize_pairs(model.tokenizer, pair)
    lengths = [tokens.clean.shape[1]]
    check_lengths(model, lengths)
    parts = [resolve(model, part, site, lengths) for part in parts]
    clean, corrupted = (run_and_save(model, ids, site) for ids in (tokens.clean, tokens.corrupted))
    denoise = direction == "denoise"
    donor, ids = (clean, tokens.corrupted) if denoise else (corrupted, tokens.clean)
    logits = [clean.logits, corrupted.logits, run_with(model, ids, donor, parts, site)]
    return likeliest_tokens(
        model.tokenizer, torch.cat(logits), ["clean", "corrupted", "patched"], count
    )


def likeliest_tokens(
    tokenizer: PreTrainedTokenizerBase, logits: torch.Tensor, runs: Sequence[str], count: int = 5
) -> pd.DataFrame:
    """Compare the likeliest next tokens of some runs.

    Args:
        tokenizer: the model's.
        logits: at the last position, `[run, vocabulary]`.
        runs: their names.
        count: how many tokens of each run.

    Returns:
        A table of probabilities with a column for each run, and rows `token`: the `count`
        likeliest of each run, in the order of their largest probability.
    """
    shares = logits.softmax(dim=-1).cpu()
    likeliest = sorted({int(token) for token in shares.topk(count).indices.flatten()})
    likeliest.sort(key=lambda token: -shares[:, token].max())
    rows = pd.Index([tokenizer.decode([token]) for token in likeliest], name="token")
    table = pd.DataFrame(shares[:, likeliest].T.numpy(), rows, list(runs))
    table.attrs["measure"] = "probability"
    return table


@dataclass(frozen=True)
class Plan:
    """What a sweep patches.

    Attributes:
        site: where in a layer.
        cells: the parts that are patched at once, for one cell of the table after the other.
        rows: the rows of the table.
        columns: its columns; None for one, named after what is measured.
    """

    site: str
    cells: Sequence[Cell]
    rows: pd.Index
    columns: pd.Index | None = None


def plan_layers(model: TransformersModel, site: str, position: Positions = None) -> Plan:
    """Plan what `patch_layers` does."""
    check_choice("site", site, STREAM_SITES)
    layers = pd.RangeIndex(len(model.blocks), name="layer")
    return Plan(site, [[Part(layer, position=position)] for layer in layers], layers)


def plan_positions(
    model: TransformersModel, pairs: PromptPair | Sequence[PromptPair], site: str
) -> Plan:
    """Plan what `patch_positions` does."""
    check_choice("site", site, STREAM_SITES)
    layers = pd.RangeIndex(len(model.blocks), name="layer")
    columns = pd.Index(position_labels(model.tokenizer, pairs), name="position")
    cells = [[Part(n, position=position)] for n, position in product(layers, range(len(columns)))]
    return Plan(site, cells, layers, columns)


def plan_heads(model: TransformersModel, position: Positions = None) -> Plan:
    """Plan what `patch_heads` does."""
    layers = pd.RangeIndex(len(model.blocks), name="layer")
    columns = pd.RangeIndex(count_heads(model), name="head")
    cells = [[Part(layer, head, position)] for layer, head in product(layers, columns)]
    return Plan("z", cells, layers, columns)


def plan_heads_by_position(
    model: TransformersModel,
    pairs: PromptPair | Sequence[PromptPair],
    heads: Iterable[tuple[int, int]] | None = None,
) -> Plan:
    """Plan what `patch_heads_by_position` does."""
    if heads is None:
        heads = product(range(len(model.blocks)), range(count_heads(model)))
    rows = index_of_heads(heads)
    columns = pd.Index(position_labels(model.tokenizer, pairs), name="position")
    cells = [[Part(*head, position)] for head, position in product(rows, range(len(columns)))]
    return Plan("z", cells, rows, columns)


def plan_together(sets: Mapping[str, Iterable[Part]], site: str) -> Plan:
    """Plan what `patch_together` does."""
    check_choice("site", site, SITES)
    cells = [list(parts) for parts in sets.values()]
    if not cells or not all(cells):
        raise ValueError("There is nothing to patch: give at least one set, and no empty ones.")
    return Plan(site, cells, pd.Index(sets.keys(), name="patched"))


class Experiment:
    """A plan on some pairs, which can be run step by step.

    Arguments and errors are those of `patch_layers`.
    """

    def __init__(
        self,
        model: TransformersModel,
        pairs: PromptPair | Sequence[PromptPair],
        plan: Plan,
        *,
        direction: str = "denoise",
        metric: Metric = logit_diff,
        batch_size: int | None = None,
    ) -> None:
        check_choice("direction", direction, DIRECTIONS)
        check_metric(metric)
        check_precision(model)
        self.model, self.pairs, self.plan = model, as_list(pairs), plan
        self.direction, self.metric = direction, metric
        self.lengths = [len(model.tokenizer.encode(pair.clean)) for pair in self.pairs]
        check_lengths(model, self.lengths)
        self.batch_size = check_batch_size(model, batch_size, self.lengths)
        self.cells = [
            [resolve(model, part, plan.site, self.lengths) for part in cell] for cell in plan.cells
        ]
        self.total = len(self.pairs) * len(self.cells)
        self.measured = Measured(
            patched=torch.empty(len(self.pairs), len(self.cells)),
            clean=torch.empty(len(self.pairs)),
            corrupted=torch.empty(len(self.pairs)),
        )

    def run(self) -> Iterator[int]:
        """Do all runs, and yield after each batch how many of the `total` were just done.

        Pairs of one length are run together, none is padded.
        """
        row_batches, pair_batches = Batches(self.batch_size), Batches(self.batch_size)
        measured = self.measured

        def prepare(chosen: Sequence[int]) -> tuple[Sequence[int], Sweep]:
            return chosen, self.sweep(chosen, row_batches)

        for indices in group_by(self.lengths).values():
            for chosen, sweep in pair_batches.run(indices, prepare):
                yield from sweep.run()
                measured.patched[chosen] = sweep.patched
                measured.clean[chosen], measured.corrupted[chosen] = sweep.clean, sweep.corrupted

    def sweep(self, chosen: Sequence[int], batches: Batches) -> Sweep:
        """Set up the sweep over some pairs of one length."""
        return Sweep(
            self.model,
            tokenize_pairs(self.model.tokenizer, [self.pairs[index] for index in chosen]),
            [[of_pairs(part, chosen) for part in cell] for cell in self.cells],
            site=self.plan.site,
            direction=self.direction,
            metric=self.metric,
            batches=batches,
        )

    def table(self, *, normalize: bool = True, per_prompt: bool = False) -> pd.DataFrame:
        """Label what was measured, once all is run."""
        measured = self.measured
        values = (measured.patched, measured.clean, measured.corrupted)
        if not per_prompt:
            values = [x.mean(0, keepdim=True) for x in values]
        patched, clean, corrupted = values
        if normalize:
            patched = recovered(patched, clean[:, None], corrupted[:, None])
        measure = "recovered" if normalize else getattr(self.metric, "__name__", "metric")
        rows, columns = self.plan.rows, self.plan.columns
        columns = pd.Index([measure]) if columns is None else columns
        tables = [
            pd.DataFrame(values.numpy().reshape(len(rows), -1), rows, columns) for values in patched
        ]
        prompts = {"keys": range(len(tables)), "names": ["prompt"]}
        table = pd.concat(tables, **prompts) if per_prompt else tables[0]
        table.attrs["measure"] = measure
        return table


def carry_out(
    model: TransformersModel,
    pairs: PromptPair | Sequence[PromptPair],
    plan: Plan,
    direction: str,
    metric: Metric,
    normalize: bool,
    per_prompt: bool,
    batch_size: int | None,
    progress: bool,
) -> pd.DataFrame:
    """Run an experiment to its end, with a progress bar."""
    experiment = Experiment(
        model, pairs, plan, direction=direction, metric=metric, batch_size=batch_size
    )
    with progress_bar(f"patch {plan.site}", experiment.total, progress) as bar:
        for done in experiment.run():
            bar.update(done)
    return experiment.table(normalize=normalize, per_prompt=per_prompt)


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


def check_precision(model: TransformersModel) -> None:
    """Raise a `ValueError` if a model computes in half precision."""
    if model.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"The model computes in {str(model.dtype).removeprefix('torch.')}, whose rounding is "
            "as large as the effect of many a patch: load it with load_model(), which uses float32."
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


def progress_bar(what: str, total: int, show: bool) -> tqdm:
    """Make a bar that appears only if the work takes more than a few seconds."""
    return tqdm(
        desc=what,
        total=total,
        disable=not show or "TQDM_DISABLE" in os.environ,
        leave=False,
        delay=SECONDS_BEFORE_PROGRESS_BAR,
    )
