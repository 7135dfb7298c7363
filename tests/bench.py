"""How fast the sweeps are, on a model of GPT-2 small's shape: `make bench`.

Four ways to the same numbers are timed in turn: the sweeps of the helpers; the loop written
out in nnsight, one run of the model for each cell, as chapters 4 and 5 write it; plain PyTorch
hooks, likewise one run for each cell; and a lower bound, plain PyTorch for this one
architecture that resumes from the patched layer and leaves out whatever can be left out. The
weights are random, since only the shapes matter for time. Nothing is downloaded.

Then the explorers, on that shape and on ioi-mini: how long each takes, in this process, from a
change of a control to the end of the work that it needs. `tests/test_browser.py` measures the
same in a browser.
"""

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import psutil
import torch
from nnsight import TransformersModel
from reference import activation, hook, last_logits, overwrite, part_of
from transformers import AutoTokenizer, DynamicCache, GPT2Config, GPT2LMHeadModel

from helpers.engine import CACHE
from helpers.models import DATA, NAMES_OF_PARTS, load_model
from helpers.patching import patch_heads, patch_positions
from helpers.playground import Playground
from helpers.prompts import load_pairs, tokenize_pairs
from helpers.widgets import (
    DirectionExplorer,
    HeadExplorer,
    LayerExplorer,
    PositionExplorer,
    PromptExplorer,
)

PROMPTS = (1, 8, 32)
LAYERS = (6, 12, 24)
MEMORY_TARGET_MB = 500
EXPLORERS = (
    PromptExplorer,
    LayerExplorer,
    PositionExplorer,
    HeadExplorer,
    DirectionExplorer,
    Playground,
)


def make_model(layers=12, **options):
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(n_layer=layers, **options)).eval()
    tokenizer = AutoTokenizer.from_pretrained(DATA / "ioi-mini")
    return TransformersModel(network, tokenizer=tokenizer, rename=NAMES_OF_PARTS)


def make_pairs(tokenizer, count):
    """Take swap pairs of as many tokens as the first, over and over if there are too few."""
    pairs = load_pairs(kind="swap")
    length = len(tokenizer.encode(pairs[0].clean))
    alike = [pair for pair in pairs if len(tokenizer.encode(pair.clean)) == length]
    return [alike[n % len(alike)] for n in range(count)]


class Experiment:
    """One pair and one sweep, denoising, in each of the four ways; all return logit differences."""

    def __init__(self, model, site):
        self.model, self.network, self.site = model, model._module, site
        [self.pair] = make_pairs(model.tokenizer, 1)
        self.tokens = tokenize_pairs(model.tokenizer, self.pair)
        self.layers = range(model.config.n_layer)
        self.length, self.heads = self.tokens.clean.shape[1], model.config.n_head
        self.columns = range(self.heads if site == "z" else self.length)
        self.width = model.config.n_embd // self.heads

    def logit_diff(self, logits):
        answer, foil = self.tokens.answers[0], self.tokens.foils[0]
        return logits[..., answer] - logits[..., foil]

    def part(self, column):
        """Say which position and which head a column of the table stands for."""
        return (None, column) if self.site == "z" else (column, None)

    def helpers(self):
        sweep = patch_heads if self.site == "z" else patch_positions
        return sweep(self.model, self.pair, normalize=False, progress=False).to_numpy()

    def loop(self):
        with torch.no_grad(), self.model.trace(self.tokens.clean):
            donors = [self.read(block).save() for block in self.model.transformer.h].save()
        with torch.no_grad(), self.model.trace(self.tokens.corrupted):
            self.model.lm_head.output[0, -1].save()
        cells = [self.loop_cell(layer, donors[layer], column) for layer, column in self.cells()]
        return torch.stack(cells).reshape(len(self.layers), -1).numpy()

    def loop_cell(self, layer, donor, column):
        width = self.width
        where = slice(column * width, (column + 1) * width)
        where = (..., where) if self.site == "z" else (slice(None), column)
        with torch.no_grad(), self.model.trace(self.tokens.corrupted):
            self.read(self.model.transformer.h[layer])[where] = donor[where]
            logits = self.model.lm_head.output[0, -1].save()
        return self.logit_diff(logits)

    def read(self, block):
        return block.attn.c_proj.input if self.site == "z" else block.output

    def hooks(self):
        clean, corrupted = self.tokens.clean[0].tolist(), self.tokens.corrupted[0].tolist()
        parts = [part_of(self.network, layer, self.site) for layer in self.layers]
        donors = [activation(self.network, clean, part) for part in parts]
        last_logits(self.network, corrupted)
        cells = []
        for layer, column in self.cells():
            change = overwrite(donors[layer], *self.part(column), self.heads)
            cells.append(last_logits(self.network, corrupted, [(parts[layer], change)]))
        return self.logit_diff(torch.stack(cells)).reshape(len(self.layers), -1).numpy()

    def cells(self):
        return product(self.layers, self.columns)

    @torch.no_grad()
    def bound(self):
        donors, _, _, _ = self.bound_run(self.tokens.clean)
        activations, streams, cache, logits = self.bound_run(self.tokens.corrupted)
        start = int((self.tokens.clean != self.tokens.corrupted)[0].nonzero()[0])
        table = self.logit_diff(logits).repeat(len(self.layers), len(self.columns))
        first = 0 if self.site == "z" else start
        last = []
        for layer in self.layers:
            hidden = self.bound_resume(layer, start, donors, activations, streams)
            last.append(self.bound_rest(hidden, cache, layer + 1, start))
        final = self.network.transformer.ln_f(torch.cat(last))
        values = self.logit_diff(self.network.lm_head(final))
        table[:, first:] = values.reshape(len(self.layers), -1)
        return table.numpy()

    def bound_run(self, ids):
        """Run without a patch; return activations, streams before the blocks, cache, logits."""
        kept, streams = [], []
        handles = [hook(part_of(self.network, n, self.site), keep_in(kept)) for n in self.layers]
        handles += [
            hook(part_of(self.network, n, "resid_pre"), keep_in(streams)) for n in self.layers
        ]
        output = self.network(ids, use_cache=True, logits_to_keep=1)
        for handle in handles:
            handle.remove()
        return kept, streams, output[CACHE], output.logits[0, -1]

    def bound_resume(self, layer, start, donors, activations, streams):
        """Give the stream after the patched block from `start` on, with one row for each cell."""
        if self.site == "resid_post":
            rows = activations[layer].repeat(self.length - start, 1, 1)
            for row, position in enumerate(range(start, self.length)):
                rows[row, position] = donors[layer][0, position]
            return rows[:, start:]
        block, width = self.network.transformer.h[layer], self.width
        z = activations[layer][:, start:].repeat(self.heads, 1, 1)
        for head in range(self.heads):
            cut = slice(head * width, (head + 1) * width)
            z[head, :, cut] = donors[layer][0, start:, cut]
        hidden = streams[layer][:, start:] + block.attn.c_proj(z)
        return hidden + block.mlp(block.ln_2(hidden))

    def bound_rest(self, hidden, cache, lowest, start):
        """Run the blocks from `lowest` on; return the stream at the last position."""
        rows, length = hidden.shape[:2]
        copy = DynamicCache()
        for number, layer in enumerate(cache.layers):
            keys, values = (
                x[:, :, :start].expand(rows, -1, -1, -1) for x in (layer.keys, layer.values)
            )
            copy.update(keys, values, number)
        mask = torch.ones(length, start + length, dtype=torch.bool).tril(start)[None, None]
        for block in self.network.transformer.h[lowest:]:
            hidden = block(hidden, attention_mask=mask, **{CACHE: copy})
        return hidden[:, -1]


def keep_in(kept):
    def keep(x):
        kept.append(x.clone())
        return x

    return keep


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare_ways(model, site, rounds):
    """Check that all ways agree, then time them in turn; returns median seconds for each."""
    experiment = Experiment(model, site)
    ways = {name: getattr(experiment, name) for name in ("helpers", "loop", "hooks", "bound")}
    results = {name: way() for name, way in ways.items()}
    for name, result in results.items():
        assert np.allclose(result, results["hooks"], atol=1e-4), name
    ways |= transformer_lens_way(experiment)
    times = pd.DataFrame({name: seconds(way) for name, way in ways.items()} for _ in range(rounds))
    return times.median()


def transformer_lens_way(experiment):
    """Time TransformerLens' own sweep too, where it is installed."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig, patching
    except ImportError:
        return {}
    config = HookedTransformerConfig(
        n_layers=len(experiment.layers),
        d_model=experiment.width * experiment.heads,
        n_ctx=1024,
        d_head=experiment.width,
        n_heads=experiment.heads,
        d_vocab=50257,
        act_fn="gelu_new",
        device="cpu",
    )
    model = HookedTransformer(config)
    tokens = experiment.tokens
    sweep = (
        patching.get_act_patch_attn_head_out_all_pos
        if experiment.site == "z"
        else patching.get_act_patch_resid_pre
    )

    def way():
        with torch.no_grad():
            _, cache = model.run_with_cache(tokens.clean)
            metric = lambda logits: experiment.logit_diff(logits[0, -1])  # noqa: E731
            sweep(model, tokens.corrupted, cache, metric)

    return {"TransformerLens": way}


def report_ways(title, times, at_least):
    table = pd.DataFrame({"seconds": times})
    table["times the speed of the loop"] = times["loop"] / times
    table["times the bound"] = times / times["bound"]
    print(f"\n{title}")
    print(table.rename(index={"bound": "lower bound"}).to_string(float_format="%.2f"))
    verdict("times the speed of the loop", table.iloc[0, 1], at_least, at_least=True)
    verdict("times the lower bound", table.iloc[0, 2], 1.5)


def verdict(what, value, target, at_least=False):
    met = value >= target if at_least else value <= target
    words = "at least" if at_least else "at most"
    print(f"  {'met   ' if met else 'MISSED'} {value:.2f} {what} (target: {words} {target})")


def report_growth(rounds):
    cases = [*((12, count) for count in PROMPTS), *((layers, 1) for layers in LAYERS)]
    rows = [(*case, time_positions(*case, rounds)) for case in cases]
    table = pd.DataFrame(rows, columns=["layers", "prompts", "seconds"])
    table["seconds per prompt"] = table["seconds"] / table["prompts"]
    print("\nHow the time of patch_positions grows")
    print(table.to_string(index=False, float_format="%.2f"))
    one, *_, many = table["seconds per prompt"][: len(PROMPTS)]
    verdict("times the time per prompt, of many prompts against one", many / one, 1.1)


def time_positions(layers, count, rounds):
    """Give the median seconds of a sweep after one that warms up."""
    model = make_model(layers)
    pairs = make_pairs(model.tokenizer, count)
    sweep = partial(patch_positions, model, normalize=False, progress=False)
    sweep(pairs[:1])
    return statistics.median(seconds(partial(sweep, pairs)) for _ in range(rounds))


def report_memory():
    peaks = {}
    for count in (PROMPTS[0], PROMPTS[-1]):
        command = [sys.executable, __file__, "--memory", str(count)]
        peaks[count] = float(subprocess.check_output(command, text=True))
    print("\nPeak memory of patch_positions, above what the process had with the model loaded")
    for count, peak in peaks.items():
        print(f"  {count:3} prompts: {peak:6.0f} MB")
    more = peaks[PROMPTS[-1]] - peaks[PROMPTS[0]]
    verdict("MB more for the prompts", more, MEMORY_TARGET_MB)


def peak_memory(count):
    """Give the most resident memory during a sweep, above that before it, in MB."""
    model = make_model()
    pairs = make_pairs(model.tokenizer, count)
    process, seen, done = psutil.Process(), [], threading.Event()

    def watch():
        while not done.wait(0.005):
            seen.append(process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    patch_positions(model, pairs, normalize=False, progress=False)
    done.set()
    watcher.join()
    return (max(seen) - before) / 1e6


def report_explorers(title, model, target, rounds):
    times = pd.DataFrame({kind.__name__: time_explorer(kind, model, rounds) for kind in EXPLORERS})
    table = times.quantile([0.5, 1]).T.set_axis(["median", "longest"], axis=1)
    print(f"\nExplorers on {title}: seconds from a change to what it leads to")
    print(table.to_string(float_format="%.2f"))
    verdict("seconds, the slowest explorer's median", table["median"].max(), target)


def time_explorer(kind, model, rounds):
    """Time changes of every choice there is, none of which was made before."""
    explorer = kind(model)
    controls = [explorer.picker.number]
    controls += [vars(explorer)[name] for name in ("site", "direction") if name in vars(explorer)]
    changes = [(control, n) for n in range(1, rounds + 1) for control in controls]
    times = []
    for control, n in changes:
        times.append(seconds(partial(setattr, control, "index", n % len(control.options))))
        assert explorer.result.layout.display != "none", explorer.message()
    return pd.Series(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, help="only print the peak memory for so many prompts")
    given = parser.parse_args()
    torch.set_num_threads(os.cpu_count())
    if given.memory:
        print(peak_memory(given.memory))
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; the targets are for 4")
    model = make_model()
    times = compare_ways(model, "resid_post", given.rounds)
    report_ways("Layer by position: 12 layers, 16 positions", times, at_least=12)
    times = compare_ways(model, "z", given.rounds)
    report_ways("Heads: 12 layers, 12 heads", times, at_least=7)
    report_growth(given.rounds)
    report_memory()
    shaped = make_model(initializer_range=0.1)
    report_explorers("GPT-2 small's shape", shaped, 1.5, given.rounds)
    report_explorers("ioi-mini", load_model("ioi-mini", device="cpu"), 0.2, given.rounds)


if __name__ == "__main__":
    main()
