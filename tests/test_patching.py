"""All sweeps against plain hooks; controls; what happens on bad input and on interruption."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import RANDOM_MODELS
from reference import last_logits, measure, patched_logits

from helpers import engine, patching
from helpers.engine import Batches, Part, rows_that_fit
from helpers.metrics import answer_probability, kl_from_clean, logit_diff
from helpers.patching import (
    STREAM_SITES,
    patch_heads,
    patch_heads_by_position,
    patch_layers,
    patch_positions,
    patch_together,
    predictions,
    progress_bar,
)
from helpers.prompts import (
    PromptPair,
    differing_positions,
    load_pairs,
    token_labels,
    tokenize_pairs,
)

MODELS = ["ioi-mini", *RANDOM_MODELS]
DIRECTIONS = ["denoise", "noise"]
RAW = {"normalize": False, "per_prompt": True}


@pytest.fixture
def short_pairs():
    """Two pairs of one length that differ in one and in several places."""
    return [
        PromptPair(
            "John and Mary met. John gave", "John and Mary met. Mary gave", " Mary", " John"
        ),
        PromptPair("Anna and Tom met. Tom sent", "Kate and Paul met. John sent", " Anna", " Tom"),
    ]


def expected(model, pair, site, parts, direction):
    return measure(model._module, model.tokenizer, pair, site, parts, direction)[-1]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("site", STREAM_SITES)
@pytest.mark.parametrize("any_model", MODELS, indirect=True)
def test_positions_equal_plain_hooks(any_model, short_pairs, site, direction):
    table = patch_positions(any_model, short_pairs, site=site, direction=direction, **RAW)
    layers, positions = range(len(any_model.blocks)), range(table.shape[1])
    for (n, pair), layer, position in itertools.product(enumerate(short_pairs), layers, positions):
        value = expected(any_model, pair, site, [(layer, None, position)], direction)
        assert table.loc[n, layer].iloc[position] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("any_model", MODELS, indirect=True)
def test_heads_equal_plain_hooks(any_model, short_pairs, direction):
    heads = range(any_model.config.num_attention_heads)
    for position in (None, -1, [5, 0]):
        table = patch_heads(any_model, short_pairs, position=position, direction=direction, **RAW)
        for (n, pair), (layer, head) in itertools.product(
            enumerate(short_pairs), itertools.product(range(len(any_model.blocks)), heads)
        ):
            where = position[n] if isinstance(position, list) else position
            value = expected(any_model, pair, "z", [(layer, head, where)], direction)
            assert table.loc[n, layer][head] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("any_model", MODELS, indirect=True)
def test_heads_by_position_equal_plain_hooks(any_model, short_pairs, direction):
    pair = short_pairs[1]
    chosen = [(1, 3), (0, 0)]
    table = patch_heads_by_position(any_model, pair, chosen, direction=direction, normalize=False)
    assert list(table.index) == chosen
    for (layer, head), position in itertools.product(chosen, range(table.shape[1])):
        value = expected(any_model, pair, "z", [(layer, head, position)], direction)
        assert table.loc[(layer, head)].iloc[position] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("site", STREAM_SITES)
@pytest.mark.parametrize("any_model", ["ioi-mini", "gpt2"], indirect=True)
@pytest.mark.parametrize("position", [None, -1, 3, "differing"])
def test_layers_equal_plain_hooks(any_model, mixed_pairs, site, direction, position):
    pairs = mixed_pairs[::4]
    if position == "differing":
        position = [differing_positions(any_model.tokenizer, pair)[-1] for pair in pairs]
    table = patch_layers(any_model, pairs, site=site, direction=direction, position=position, **RAW)
    for (n, pair), layer in itertools.product(enumerate(pairs), range(len(any_model.blocks))):
        where = position[n] if isinstance(position, list) else position
        value = expected(any_model, pair, site, [(layer, None, where)], direction)
        assert table.loc[(n, layer), "logit_diff"] == pytest.approx(value, abs=1e-4)


def position_in(part, pair):
    return part.position[pair] if isinstance(part.position, list) else part.position


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("any_model", MODELS, indirect=True)
def test_parts_patched_together_equal_plain_hooks(any_model, short_pairs, direction):
    """Later layers see what earlier patches did, but are overwritten by the donor's values."""
    sets = {
        "two layers": [Part(0, head=1), Part(2, head=0)],
        "listed from above": [Part(2, head=3, position=-1), Part(0, head=2, position=[5, 0])],
        "one layer": [Part(1, head=0), Part(1, head=1, position=4)],
        "no-op below": [Part(0, head=0, position=1), Part(1, head=0)],
    }
    table = patch_together(any_model, short_pairs, sets, direction=direction, **RAW)
    for n, pair in enumerate(short_pairs):
        for name, parts in sets.items():
            plain = [(part.layer, part.head, position_in(part, n)) for part in parts]
            value = expected(any_model, pair, "z", plain, direction)
            assert table.loc[(n, name), "logit_diff"] == pytest.approx(value, abs=1e-4)


def test_streams_can_be_patched_together(model, short_pairs):
    sets = {"both": [Part(1, position=0), Part(3, position=5)]}
    table = patch_together(model, short_pairs[1], sets, site="resid_post", normalize=False)
    value = expected(model, short_pairs[1], "resid_post", [(1, None, 0), (3, None, 5)], "denoise")
    assert table.loc["both", "logit_diff"] == pytest.approx(value, abs=1e-4)


def test_the_written_out_loop_gives_the_same(model, pair):
    """In nnsight, as the chapters write it."""
    tokens = tokenize_pairs(model.tokenizer, pair)
    answer, foil = (model.tokenizer.encode(word)[0] for word in (pair.answer, pair.foil))
    blocks = model.transformer.h
    clean = []
    for block in blocks:
        with torch.no_grad(), model.trace(tokens.clean):
            clean.append(block.output.save())
    table = patch_positions(model, pair, normalize=False)
    for layer, position in itertools.product(range(len(blocks)), range(table.shape[1])):
        with torch.no_grad(), model.trace(tokens.corrupted):
            blocks[layer].output[:, position] = clean[layer][:, position]
            logits = model.lm_head.output[0, -1].save()
        value = (logits[answer] - logits[foil]).item()
        assert table.loc[layer].iloc[position] == pytest.approx(value, abs=1e-4)


def test_the_scale_is_that_of_the_two_runs(model, mixed_pairs):
    table = patch_layers(model, mixed_pairs, site="attn_out", per_prompt=True)
    raw = patch_layers(model, mixed_pairs, site="attn_out", **RAW)
    for n, pair in enumerate(mixed_pairs):
        clean, corrupted, _ = measure(
            model._module, model.tokenizer, pair, "attn_out", [(0, None, None)], "denoise"
        )
        scaled = (raw.loc[n, "logit_diff"] - corrupted) / (clean - corrupted)
        pd.testing.assert_series_equal(
            table.loc[n, "recovered"], scaled, check_names=False, atol=1e-4
        )


@pytest.mark.parametrize("sweep", [patch_layers, patch_heads])
def test_mean_is_taken_before_normalizing(model, mixed_pairs, sweep):
    raw = sweep(model, mixed_pairs, **RAW).groupby("layer").mean()
    runs = [
        measure(model._module, model.tokenizer, pair, "resid_post", [(0, None, None)], "denoise")
        for pair in mixed_pairs
    ]
    clean, corrupted = (sum(run[i] for run in runs) / len(runs) for i in (0, 1))
    scaled = (raw - corrupted) / (clean - corrupted)
    table = sweep(model, mixed_pairs)
    assert np.allclose(table.to_numpy(), scaled.to_numpy(), atol=1e-4)


# Controls


@pytest.mark.parametrize("any_model", MODELS, indirect=True)
@pytest.mark.parametrize(("direction", "value"), [("denoise", 1), ("noise", 0)])
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_the_whole_stream_is_everything(any_model, pair, site, direction, value):
    table = patch_layers(any_model, pair, site=site, direction=direction)
    assert table["recovered"].to_numpy() == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize("any_model", MODELS, indirect=True)
@pytest.mark.parametrize("site", STREAM_SITES)
def test_positions_before_the_difference_are_exactly_the_baseline(any_model, pair, site):
    first = differing_positions(any_model.tokenizer, pair)[0]
    assert first > 3
    for direction, value in (("denoise", 0), ("noise", 1)):
        table = patch_positions(any_model, pair, site=site, direction=direction)
        assert (table.iloc[:, :first] == value).all(axis=None)


def test_some_single_patch_moves_the_answer(model, pair):
    assert patch_layers(model, pair, site="attn_out")["recovered"].abs().max() > 0.1
    assert patch_heads(model, pair).abs().max(axis=None) > 0.1


def test_all_heads_together_are_the_attention_output(random_model, short_pairs):
    """Of a pair, as the projection is linear."""
    heads = range(random_model.config.num_attention_heads)
    layers = range(len(random_model.blocks))
    sets = {layer: [Part(layer, head) for head in heads] for layer in layers}
    together = patch_together(random_model, short_pairs, sets, **RAW)
    attention = patch_layers(random_model, short_pairs, site="attn_out", **RAW)
    assert np.allclose(together.to_numpy(), attention.to_numpy(), atol=1e-4)


def test_noising_a_swap_pair_is_denoising_its_mirror_image(model, pair):
    """Clean and corrupted change places, and so do answer and foil."""
    mirror = PromptPair(pair.corrupted, pair.clean, pair.foil, pair.answer)
    noised = patch_heads(model, mirror, direction="noise")
    assert np.allclose(noised.to_numpy(), 1 - patch_heads(model, pair).to_numpy(), atol=1e-4)


# Batches


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("sweep", "options"),
    [
        (patch_layers, {"site": "attn_out"}),
        (patch_positions, {"site": "resid_pre"}),
        (patch_heads, {"direction": "noise"}),
        (patch_heads_by_position, {"heads": [(1, 5), (5, 0)]}),
    ],
)
def test_batch_size_changes_nothing(model, sweep, options, batch_size):
    pairs = load_pairs(kind="swap", template="after_went")[::3]
    full = sweep(model, pairs, **options, per_prompt=True)
    table = sweep(model, pairs, **options, per_prompt=True, batch_size=batch_size)
    pd.testing.assert_frame_equal(table, full, atol=1e-4)


def test_one_pair_and_many_agree(model, mixed_pairs):
    together = patch_heads(model, mixed_pairs, per_prompt=True)
    for n, pair in enumerate(mixed_pairs):
        pd.testing.assert_frame_equal(together.loc[n], patch_heads(model, pair), atol=1e-4)


@pytest.mark.parametrize("any_model", MODELS, indirect=True)
def test_without_a_batch_size_one_is_chosen_that_fits(any_model, monkeypatch):
    sizes = []
    run = engine.Batches.__init__

    def note_size(batches, size):
        sizes.append(size)
        run(batches, size)

    monkeypatch.setattr(engine.Batches, "__init__", note_size)
    pairs = load_pairs(kind="swap", template="after_went")
    table = patch_heads(any_model, pairs)
    monkeypatch.setattr(engine, "MEMORY_FOR_BATCHES", 1)
    pd.testing.assert_frame_equal(patch_heads(any_model, pairs), table, atol=1e-4)
    assert min(sizes[:2]) > 1
    assert sizes[2:] == [1, 1]


def test_longer_prompts_go_in_smaller_batches(model):
    assert rows_that_fit(model, 10) > rows_that_fit(model, 20) > 1


def test_half_the_memory_of_a_number_doubles_the_batch(model):
    number = rows_that_fit(model, 16)
    half = SimpleNamespace(
        config=model.config, blocks=model.blocks, device=model.device, dtype=torch.float16
    )
    assert abs(rows_that_fit(half, 16) - 2 * number) <= 1


def run_short_of_memory(monkeypatch, limit, error):
    """Make every run of more than `limit` rows fail; returns a list of what was refused."""
    refused = []
    run_patched, prepare = engine.Sweep.run_patched, engine.run_and_save

    def refuse(size):
        if size > limit:
            refused.append(size)
            raise error

    def limited_run_patched(sweep, rows):
        refuse(len(rows))
        return run_patched(sweep, rows)

    def limited_run_and_save(model, ids, site):
        refuse(len(ids))
        return prepare(model, ids, site)

    monkeypatch.setattr(engine.Sweep, "run_patched", limited_run_patched)
    monkeypatch.setattr(engine, "run_and_save", limited_run_and_save)
    return refused


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    ],
)
def test_when_memory_runs_out_smaller_batches_are_tried(model, monkeypatch, error):
    pairs = load_pairs(kind="swap", template="after_went")
    options = {"site": "attn_out", "per_prompt": True, "batch_size": 9}
    full = patch_positions(model, pairs, **options)
    with monkeypatch.context() as context:
        refused = run_short_of_memory(context, 4, error)
        table = patch_positions(model, pairs, **options)
    assert refused
    pd.testing.assert_frame_equal(table, full, atol=1e-4)


def test_when_not_even_one_run_fits_it_says_so(model, pair, monkeypatch):
    run_short_of_memory(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError) as raised:
        patch_heads(model, pair)
    assert "Not even one run" in raised.value.__notes__[0]


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    def work(batch):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        list(Batches(4).run([1, 2, 3], work))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("where", ["metric", "model"])
def test_a_sweep_that_stops_half_way_leaves_the_model_usable(model, mixed_pairs, error, where):
    before = patch_heads(model, mixed_pairs)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    calls = itertools.count()

    def stop(*_):
        if next(calls) == 20:
            raise error("stop")

    def stopping_metric(logits, answers, foils, clean_logits):
        stop()
        return logit_diff(logits, answers, foils)

    in_model = stop if where == "model" else lambda *_: None
    handle = model._module.transformer.h[3].register_forward_hook(in_model)
    try:
        with pytest.raises(error, match="stop"):
            patch_heads(model, mixed_pairs, metric=stopping_metric, batch_size=4)
    finally:
        handle.remove()
    pd.testing.assert_frame_equal(patch_heads(model, mixed_pairs), before)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


# Metrics and labels


@pytest.mark.parametrize("metric", [answer_probability, kl_from_clean])
def test_other_metrics_run_from_corrupted_to_clean(model, mixed_pairs, metric):
    full = patch_layers(model, mixed_pairs, metric=metric)
    assert full["recovered"].to_numpy() == pytest.approx(1, abs=1e-4)
    none = patch_layers(model, mixed_pairs, metric=metric, direction="noise")
    assert none["recovered"].to_numpy() == pytest.approx(0, abs=1e-4)


def test_the_divergence_is_from_the_clean_run_whatever_the_direction(model, mixed_pairs):
    for direction in DIRECTIONS:
        raw = patch_heads(model, mixed_pairs, metric=kl_from_clean, direction=direction, **RAW)
        assert (raw > -1e-5).all(axis=None)
    clean = patch_layers(model, mixed_pairs, metric=kl_from_clean, **RAW)
    assert clean["kl_from_clean"].to_numpy() == pytest.approx(0, abs=1e-4)


def test_any_metric_can_be_passed_in(model, pair):
    def answer_logit(logits, answers, foils, clean_logits):
        return logits[range(len(logits)), answers]

    table = patch_layers(model, pair, metric=answer_logit, normalize=False)
    with torch.no_grad():
        logits = model._module(torch.tensor([model.tokenizer.encode(pair.clean)])).logits[0, -1]
    value = logits[model.tokenizer.encode(pair.answer)[0]].item()
    assert table["answer_logit"].to_numpy() == pytest.approx(value, abs=1e-4)


def test_labels(model, mixed_pairs, pair):
    layers, heads = range(model.config.n_layer), range(model.config.n_head)
    table = patch_layers(model, mixed_pairs)
    assert (table.index.name, list(table), list(table.index)) == ("layer", ["recovered"], [*layers])
    table = patch_layers(model, mixed_pairs, **RAW)
    assert (list(table.index.names), list(table)) == (["prompt", "layer"], ["logit_diff"])
    assert list(table.index) == [*itertools.product(range(len(mixed_pairs)), layers)]
    table = patch_positions(model, pair)
    assert (table.index.name, table.columns.name) == ("layer", "position")
    assert list(table) == token_labels(model.tokenizer, pair.clean)
    table = patch_heads(model, mixed_pairs)
    assert (table.index.name, table.columns.name) == ("layer", "head")
    assert (list(table.index), list(table)) == ([*layers], [*heads])
    table = patch_heads_by_position(model, pair)
    assert (list(table.index.names), table.columns.name) == (["layer", "head"], "position")
    assert list(table.index) == [*itertools.product(layers, heads)]
    sets = {"b": [Part(0)], "a": [Part(1, head=0)]}
    table = patch_together(model, mixed_pairs, sets, **RAW)
    assert list(table.index.names) == ["prompt", "patched"]
    assert list(table.loc[0].index) == ["b", "a"]
    assert table.attrs["measure"] == "logit_diff"
    assert patch_heads(model, pair).attrs["measure"] == "recovered"


def test_positions_are_labelled_by_what_the_prompts_share(model):
    table = patch_positions(model, load_pairs(kind="swap", template="after_went", order="ABBA"))
    assert list(table)[:4] == ["0 After", "1 …", "2 and", "3 …"]


# Bad input


@pytest.mark.parametrize("position", [torch.tensor(3), np.int64(3), np.array([3]), [3], -13])
def test_positions_may_come_in_any_container(model, pair, position):
    options = {"site": "attn_out", "normalize": False}
    table = patch_layers(model, pair, position=3, **options)
    pd.testing.assert_frame_equal(patch_layers(model, pair, position=position, **options), table)


def no_number(logits, answers, foils, clean_logits):
    return logits[:, 0] * float("nan")


def no_difference(logits, answers, foils, clean_logits):
    return logits[:, 0] * 0


@pytest.mark.parametrize(
    ("sweep", "options", "message"),
    [
        (patch_layers, {"site": "attention"}, "no site 'attention'; choose one of resid_pre"),
        (patch_layers, {"site": "z"}, "no site 'z'; choose one of resid_pre"),
        (patch_layers, {"site": ["attn_out"]}, "no site"),
        (patch_positions, {"site": "heads"}, "no site 'heads'"),
        (patch_heads, {"direction": "backwards"}, "'backwards'; choose one of denoise, noise"),
        (patch_layers, {"position": 99}, "Position 99 does not exist: the prompt has 16 tokens"),
        (patch_heads, {"position": -17}, "Position -17 does not exist"),
        (patch_heads, {"position": 1.5}, "position is 1.5, but must be a whole number"),
        (patch_layers, {"position": "last"}, "position is 'last', but must be a whole number"),
        (patch_layers, {"position": [1, 2]}, "2 positions were given for 1 pairs"),
        (patch_layers, {"position": [None]}, "but must be a whole number"),
        (patch_positions, {"batch_size": 0}, "batch_size is 0, but must be 1 or more"),
        (patch_positions, {"batch_size": 2.5}, "batch_size is 2.5, but must be a whole number"),
        (patch_layers, {"metric": "logit_diff"}, "must be a function metric"),
        (patch_layers, {"metric": lambda logits: logits}, "must be a function metric"),
        (patch_layers, {"metric": lambda logits, a, f, c: logits}, "one number per pair"),
        (patch_layers, {"metric": lambda logits, a, f, c: 1.0}, "one number per pair"),
        (patch_layers, {"metric": no_number, "normalize": False}, "not finite numbers"),
        (patch_heads, {"metric": no_difference}, "differ by only 0.0000"),
        (patch_heads_by_position, {"heads": []}, "No heads were given"),
        (patch_heads_by_position, {"heads": [(6, 0)]}, "no layer 6: the model has layers 0 to 5"),
        (patch_heads_by_position, {"heads": [(0, -1)]}, "no head -1: the model has heads 0 to 7"),
        (patch_heads_by_position, {"heads": [3]}, r"list of \(layer, head\)"),
        (patch_heads_by_position, {"heads": [(1, 2, 3)]}, r"list of \(layer, head\)"),
        (patch_heads_by_position, {"heads": [(1, "x")]}, r"list of \(layer, head\)"),
        (patch_together, {"sets": {}}, "at least one set"),
        (patch_together, {"sets": {"none": []}}, "no empty ones"),
        (patch_together, {"sets": {"a": [(2, 0)]}}, r"write Part\(layer="),
        (patch_together, {"sets": {"a": [Part(2.5)]}}, "layer is 2.5, but must be"),
        (patch_together, {"sets": {"a": [Part(0, 8)]}}, "no head 8"),
        (patch_together, {"sets": {"a": [Part(0, 1)]}, "site": "mlp_out"}, "only the site 'z'"),
    ],
)
def test_bad_arguments(model, pair, sweep, options, message):
    with pytest.raises(ValueError, match=message):
        sweep(model, pair, **options)


@pytest.mark.parametrize("sweep", [patch_positions, patch_heads_by_position])
def test_positions_of_prompts_of_different_lengths_do_not_correspond(model, mixed_pairs, sweep):
    with pytest.raises(ValueError, match="different numbers of tokens"):
        sweep(model, mixed_pairs)


def test_bad_pairs(model, pair):
    with pytest.raises(ValueError, match="at least one"):
        patch_layers(model, [])
    longer = PromptPair(pair.clean, "Then, " + pair.corrupted, pair.answer, pair.foil)
    with pytest.raises(ValueError, match="16 tokens and the corrupted one 18"):
        patch_layers(model, [pair, longer])
    same = PromptPair(pair.clean, pair.clean, pair.answer, pair.foil)
    with pytest.raises(ValueError, match="are the same"):
        patch_layers(model, same)


@pytest.mark.parametrize(
    ("any_model", "limit"), [("ioi-mini", 128), ("llama", 64)], indirect=["any_model"]
)
def test_prompts_may_not_be_longer_than_the_model(any_model, limit, pair):
    long = [text.replace("After", "After" + " a" * 130) for text in (pair.clean, pair.corrupted)]
    with pytest.raises(ValueError, match=f"146 tokens.*up to {limit}"):
        patch_layers(any_model, PromptPair(*long, pair.answer, pair.foil))


def test_prompts_may_not_be_longer_than_the_reach_of_attention(load_random, pair, monkeypatch):
    model = load_random("mistral")
    monkeypatch.setattr(model.config, "sliding_window", 15)
    with pytest.raises(ValueError, match=r"16 tokens.*family 'mistral'.*up to 15"):
        patch_layers(model, pair)


def test_progress_bar_shows_only_on_request_and_only_if_slow(monkeypatch, capsys):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with progress_bar("quick", 2, show=True) as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(patching, "SECONDS_BEFORE_PROGRESS_BAR", 0)
    with progress_bar("not asked for", 2, show=False) as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")
    with progress_bar("slow", 2, show=True) as bar:
        time.sleep(0.2)
        bar.update(2)
    assert "slow" in capsys.readouterr().err


def test_the_progress_bar_counts_every_cell_once(model, mixed_pairs, monkeypatch):
    counted = []

    class Bar:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, count):
            counted.append(count)

    totals = []
    monkeypatch.setattr(
        patching, "progress_bar", lambda what, total, show: totals.append(total) or Bar()
    )
    patch_heads(model, mixed_pairs)
    assert totals == [sum(counted)] == [len(mixed_pairs) * 48]


# Predictions


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("any_model", MODELS, indirect=True)
def test_predictions_equal_plain_hooks(any_model, pair, direction):
    network, tokenizer = any_model._module, any_model.tokenizer
    table = predictions(any_model, pair, [Part(1, 2), Part(2, 0, -1)], direction=direction)
    clean, corrupted = tokenizer.encode(pair.clean), tokenizer.encode(pair.corrupted)
    donor, base = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    runs = {
        "clean": last_logits(network, clean),
        "corrupted": last_logits(network, corrupted),
        "patched": patched_logits(network, donor, base, "z", [(1, 2, None), (2, 0, -1)]),
    }
    shares = pd.DataFrame({name: logits.softmax(-1).numpy() for name, logits in runs.items()})
    tokens = {n for name in shares for n in shares[name].nlargest(5).index}
    expected = shares.loc[sorted(tokens, key=lambda n: -shares.loc[n].max())]
    assert [*table.columns] == [*expected.columns]
    assert [*table.index] == [tokenizer.decode([n]) for n in expected.index]
    assert np.allclose(table, expected, atol=1e-4)
