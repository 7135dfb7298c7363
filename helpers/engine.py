"""Run many patched runs quickly; `helpers.patching` gives the sweeps that are built on it.

Written out, patching is a loop: one run of the whole model for each thing that is patched.
The same comes out of less work, and each step says at its place why nothing is lost:

- What cannot change the run is not run: it has the result of the base run (`find_changes`).
- Runs whose patches begin in the same layer are rows of one batch (`run`).
- Blocks below the patch are skipped, and positions before it are not run again (`run_patched`).
- Only the last position is unembedded, for many rows at once (`measure_waiting`).
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import nnsight
import numpy as np
import torch
from nnsight import TransformersModel
from transformers import Cache, DynamicCache, GPT2LMHeadModel

from helpers.prompts import TokenizedPairs

Result = TypeVar("Result")

MEMORY_FOR_BATCHES = 200_000_000
# What models call keys and values that are given to them: `cache` from transformers 5.24 on.
TAKES_CACHE = "cache" in inspect.signature(GPT2LMHeadModel.forward).parameters
CACHE = "cache" if TAKES_CACHE else "past_key_values"

Metric = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

SITES = {
    "resid_pre": lambda block: block.input,
    "resid_post": lambda block: block.output,
    "attn_out": lambda block: block.attention.output[0],
    "mlp_out": lambda block: block.mlp.output,
    "z": lambda block: block.attention.projection.input,
}


@dataclass(frozen=True)
class Part:
    """One part of a model that is patched: a site in one layer, or one head there.

    Attributes:
        layer: which layer.
        head: which head, where the site is `z`; None for all of them.
        position: one position for all pairs, one per pair, or None for all positions.
    """

    layer: int
    head: int | None = None
    position: int | Sequence[int] | None = None

    def where(self, pair: int) -> tuple[int | slice, int | slice]:
        """Index an array `[position, head]` of one pair."""
        position = self.position if np.ndim(self.position) == 0 else self.position[pair]
        return tuple(slice(None) if index is None else index for index in (position, self.head))


Cell = Sequence[Part]


@dataclass(frozen=True)
class Run:
    """A run without a patch.

    Attributes:
        logits: at the last position, `[pair, vocabulary]`.
        resume: where a run that is patched in a layer can resume, one `[pair, position, d_model]`
            a layer: the residual stream before the block, or after it if that is patched.
        site: the activations that are patched, one `[pair, position, width]` a layer.
        cache: keys and values of every layer.
    """

    logits: torch.Tensor
    resume: list[torch.Tensor]
    site: list[torch.Tensor]
    cache: Cache


@dataclass(frozen=True)
class Row:
    """One patched run.

    Attributes:
        cell: index of what is patched.
        pair: index of the pair that it is patched into.
        masks: for each layer in which the patch changes something: what is patched,
            `[position, head]`.
    """

    cell: int
    pair: int
    masks: dict[int, np.ndarray]

    @property
    def layer(self) -> int:
        """The lowest layer that the patch changes."""
        return min(self.masks)

    @property
    def start(self) -> int:
        """The first position that the patch changes, in any layer."""
        return min(int(mask.any(axis=1).argmax()) for mask in self.masks.values())


@dataclass(frozen=True)
class Measured:
    """The metric of all runs, in its own unit: `patched[pair, cell]`, `clean[pair]`, ..."""

    patched: torch.Tensor
    clean: torch.Tensor
    corrupted: torch.Tensor


class Batches:
    """Does work in batches, and in smaller ones once memory has run out.

    Attributes:
        size: how many items are worked on at a time.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def run(self, items: Sequence, work: Callable[[Sequence], Result]) -> Iterator[Result]:
        """Yield `work(batch)` for one batch after the other; where one does not fit, by halves."""
        done = 0
        while done < len(items):
            batch = items[done : done + self.size]
            try:
                result = work(batch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    error.add_note("Not even one run at a time fits: shorten the prompt.")
                    raise
                self.size = len(batch) // 2
            else:
                done += len(batch)
                yield result


def rows_that_fit(model: TransformersModel, length: int) -> int:
    """Choose how many runs of `length` tokens are done at a time.

    Estimated are, for each run: keys and values of all layers, twice, as the attention copies
    them to append to them; at the widest place, in an MLP, six arrays of four times the model's
    width; and the logits at one position, twice.
    """
    config = model.config
    numbers = length * config.hidden_size * (4 * len(model.blocks) + 24) + 2 * config.vocab_size
    return max(1, memory_for_batches(model.device) // (numbers * model.dtype.itemsize))


def memory_for_batches(device: torch.device) -> int:
    """Give the bytes that a batch may take: of a GPU, a quarter of what is free."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return MEMORY_FOR_BATCHES


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether memory ran out, for which CUDA has an error class and others a message."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


class Sweep:
    """Patches each cell into each of some equally long pairs, each in a run of its own.

    Attributes:
        clean: the metric of the clean runs, `[pair]`.
        corrupted: the metric of the corrupted runs, `[pair]`.
        patched: the metric of the patched runs, `[pair, cell]`.
    """

    def __init__(
        self,
        model: TransformersModel,
        tokens: TokenizedPairs,
        cells: Sequence[Cell],
        *,
        site: str,
        direction: str,
        metric: Metric,
        batches: Batches,
    ) -> None:
        self.model, self.tokens, self.cells, self.metric = model, tokens, cells, metric
        self.site, self.batches = SITES[site], batches
        self.patches_output = site == "resid_post"
        self.heads = model.config.num_attention_heads if site == "z" else 1
        self.waiting: list[tuple[Sequence[Row], torch.Tensor]] = []
        clean, corrupted = (
            run_and_save(model, ids, site) for ids in (tokens.clean, tokens.corrupted)
        )
        denoise = direction == "denoise"
        self.donor, self.base = (clean, corrupted) if denoise else (corrupted, clean)
        self.ids = tokens.corrupted if denoise else tokens.clean
        self.clean_logits = clean.logits
        everything = torch.arange(len(tokens.clean))
        self.clean = self.measure(clean.logits, everything)
        self.corrupted = self.measure(corrupted.logits, everything)
        unpatched = self.corrupted if denoise else self.clean
        self.patched = unpatched[:, None].repeat(1, len(cells))

    def run(self) -> Iterator[int]:
        """Do all patched runs, and yield after each batch the number of those just done."""
        rows = self.find_rows()
        yield self.patched.numel() - len(rows)
        for _, group in itertools.groupby(rows, key=lambda row: row.layer):
            yield from self.batches.run(list(group), self.run_patched)
        self.measure_waiting()

    def find_rows(self) -> list[Row]:
        """List the runs in which the patch changes something, alike ones next to each other."""
        changed = [*map(self.find_changes, self.donor.site, self.base.site)]
        rows = []
        for pair, (number, cell) in itertools.product(range(len(self.ids)), enumerate(self.cells)):
            masks = {}
            for part in cell:
                mask = masks.setdefault(part.layer, np.zeros_like(changed[part.layer][pair]))
                where = part.where(pair)
                mask[where] = changed[part.layer][pair][where]
            masks = {layer: mask for layer, mask in masks.items() if mask.any()}
            if masks:
                rows.append(Row(number, pair, masks))
        return sorted(rows, key=lambda row: (row.layer, row.start))

    def find_changes(self, donor: torch.Tensor, base: torch.Tensor) -> np.ndarray:
        """Tell which vectors of a layer differ between the two runs, `[pair, position, head]`.

        Before the first token that differs none do, as attention only looks back. That is
        told from the tokens: computed twice, a vector may differ in its last digits.
        """
        differ = (donor != base).unflatten(-1, (self.heads, -1)).any(dim=-1).cpu()
        reached = (self.tokens.clean != self.tokens.corrupted).cumsum(dim=1) > 0
        return (differ & reached[..., None]).numpy()

    def run_patched(self, rows: Sequence[Row]) -> int:
        """Run rows that begin in the same layer, up to the unembedding; returns how many.

        Below that layer a patched run is the base run, so those blocks are skipped, and where
        a block's output is what is patched, that block, too. And at positions before its first
        patch a run is the base run in every layer, so later positions can read the base run's
        keys and values there.
        """
        pairs = torch.tensor([row.pair for row in rows])
        lowest, start = rows[0].layer, min(row.start for row in rows)
        hidden = self.base.resume[lowest][pairs, start:]
        masks = self.stack_masks(rows, start)
        donors = {layer: self.donor.site[layer][pairs, start:] for layer in masks}
        options = {
            CACHE: first_positions(self.base.cache, pairs, start),
            # nnsight would add a mask that leaves the cache out.
            "attention_mask": torch.ones_like(self.ids[pairs]),
            "logits_to_keep": 1,
        }
        with torch.no_grad(), self.model.trace(self.ids[pairs, start:], **options) as tracer:
            for block in self.model.blocks[: lowest + self.patches_output]:
                block.skip(hidden)
            for layer, mask in masks.items():
                replace(self.site(self.model.blocks[layer]), donors[layer], mask)
            final = self.model.lm_head.input[:, -1].save()
            tracer.stop()
        self.waiting.append((rows, final))
        if sum(len(rows) for rows, _ in self.waiting) >= self.batches.size:
            self.measure_waiting()
        return len(rows)

    def stack_masks(self, rows: Sequence[Row], start: int) -> dict[int, torch.Tensor]:
        """Say for each layer what is patched in which row from `start` on, `[row, position, head]`.

        Layers come in the order in which the model reaches them.
        """
        nothing = np.zeros_like(next(iter(rows[0].masks.values())))
        layers = sorted({layer for row in rows for layer in row.masks})
        return {
            layer: torch.from_numpy(
                np.stack([row.masks.get(layer, nothing)[start:] for row in rows])
            )
            for layer in layers
        }

    def measure_waiting(self) -> None:
        """Unembed the rows that have been run, all at once, and apply the metric."""
        if not self.waiting:
            return
        rows = [row for rows, _ in self.waiting for row in rows]
        final = torch.cat([final for _, final in self.waiting])
        pairs, cells = (torch.tensor([getattr(row, n) for row in rows]) for n in ("pair", "cell"))
        with torch.no_grad():
            logits = self.model.lm_head(final)
        self.patched[pairs, cells] = self.measure(logits, pairs)
        self.waiting.clear()

    def measure(self, logits: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Apply the metric to logits `[row, vocabulary]` of these pairs, and check the result."""
        tokens = self.tokens
        result = self.metric(
            logits, tokens.answers[pairs], tokens.foils[pairs], self.clean_logits[pairs]
        )
        if not isinstance(result, torch.Tensor) or result.shape != (len(logits),):
            raise ValueError(
                f"The metric must return one number per pair, a tensor of shape ({len(logits)},), "
                f"but returned {getattr(result, 'shape', result)}."
            )
        if not result.isfinite().all():
            raise ValueError(f"The metric returned values that are not finite numbers: {result}.")
        return result.cpu().float()


def run_and_save(model: TransformersModel, ids: torch.Tensor, site: str) -> Run:
    """Run prompts `[pair, position]` without a patch."""
    with torch.no_grad(), model.trace(ids, use_cache=True, logits_to_keep=1):
        resume, activations = nnsight.save([]), nnsight.save([])
        for block in model.blocks:
            if site != "resid_post":
                resume.append(block.input)
            activations.append(SITES[site](block))
        output = model.output.save()
    return Run(output.logits[:, -1], resume or activations, activations, output[CACHE])


def run_with(
    model: TransformersModel, ids: torch.Tensor, donor: Run, parts: Sequence[Part], site: str
) -> torch.Tensor:
    """Run one prompt `[1, position]` with the donor's parts; returns logits `[1, vocabulary]`."""
    heads = model.config.num_attention_heads if site == "z" else 1
    masks = {}
    for part in sorted(parts, key=lambda part: part.layer):
        mask = masks.setdefault(part.layer, torch.zeros(*ids.shape, heads, dtype=torch.bool))
        mask[0][part.where(0)] = True
    with torch.no_grad(), model.trace(ids, logits_to_keep=1):
        for layer, mask in masks.items():
            replace(SITES[site](model.blocks[layer]), donor.site[layer], mask)
        logits = model.output.logits[:, -1].save()
    return logits


def first_positions(cache: Cache, pairs: torch.Tensor, count: int) -> DynamicCache:
    """Copy keys and values of the first positions, for a batch with these pairs as rows."""
    copy = DynamicCache()
    for number, layer in enumerate(cache.layers):
        copy.update(layer.keys[pairs, :, :count], layer.values[pairs, :, :count], number)
    return copy


def replace(activation: torch.Tensor, donor: torch.Tensor, mask: torch.Tensor) -> None:
    """Overwrite an activation by the donor's where the mask says so.

    Args:
        activation: `[row, position, width]`, changed in place.
        donor: the same shape.
        mask: `[row, position, head]`; the width is divided among the heads.
    """
    shape, mask = (mask.shape[-1], -1), mask.to(activation.device)
    activation.unflatten(-1, shape)[mask] = donor.unflatten(-1, shape)[mask]
