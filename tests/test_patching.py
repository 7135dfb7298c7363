"""`patch_layers` against plain hooks, controls, and bad input."""

import numpy as np
import pandas as pd
import pytest
import torch
from reference import patched_logit_diff

from helpers import patching
from helpers.engine import SITES
from helpers.metrics import logit_diff
from helpers.patching import STREAM_SITES, patch_layers, progress_bar
from helpers.prompts import PromptPair, differing_positions

MODELS = ["ioi-mini", "random"]
DIRECTIONS = ["denoise", "noise"]


@pytest.mark.parametrize("any_model", MODELS, indirect=True)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("site", STREAM_SITES)
@pytest.mark.parametrize("position", [None, -1, 3, "differing"])
def test_equals_plain_hooks(any_model, mixed_pairs, site, direction, position):
    tokenizer = any_model.tokenizer
    if position == "differing":
        position = [differing_positions(tokenizer, pair)[-1] for pair in mixed_pairs]
    table = patch_layers(
        any_model,
        mixed_pairs,
        site=site,
        direction=direction,
        position=position,
        normalize=False,
        per_prompt=True,
    )
    for prompt, pair in enumerate(mixed_pairs):
        where = position[prompt] if isinstance(position, list) else position
        for layer in range(any_model.config.n_layer):
            *_, expected = patched_logit_diff(
                any_model._module, tokenizer, pair, layer, site, where, direction
            )
            assert table.loc[(prompt, layer), "logit_diff"] == pytest.approx(expected, abs=1e-4)


def test_the_scale_is_that_of_the_two_runs(model, mixed_pairs):
    table = patch_layers(model, mixed_pairs, site="attn_out", per_prompt=True)
    raw = patch_layers(model, mixed_pairs, site="attn_out", per_prompt=True, normalize=False)
    for prompt, pair in enumerate(mixed_pairs):
        clean, corrupted, _ = patched_logit_diff(
            model._module, model.tokenizer, pair, 0, "attn_out", None, "denoise"
        )
        expected = (raw.loc[prompt, "logit_diff"] - corrupted) / (clean - corrupted)
        pd.testing.assert_series_equal(
            table.loc[prompt, "recovered"], expected, check_names=False, atol=1e-4
        )


def test_mean_is_taken_before_normalizing(model, mixed_pairs):
    raw = patch_layers(model, mixed_pairs, site="attn_out", normalize=False, per_prompt=True)
    both = [
        patched_logit_diff(model._module, model.tokenizer, pair, 0, "attn_out", None, "denoise")
        for pair in mixed_pairs
    ]
    clean, corrupted = (sum(run[i] for run in both) / len(both) for i in (0, 1))
    mean = raw["logit_diff"].groupby("layer").mean()
    table = patch_layers(model, mixed_pairs, site="attn_out")
    expected = (mean - corrupted) / (clean - corrupted)
    pd.testing.assert_series_equal(table["recovered"], expected, check_names=False, atol=1e-4)


@pytest.mark.parametrize("any_model", MODELS, indirect=True)
@pytest.mark.parametrize(("direction", "expected"), [("denoise", 1), ("noise", 0)])
@pytest.mark.parametrize("site", ["resid_pre", "resid_post"])
def test_control_whole_stream(any_model, pair, site, direction, expected):
    table = patch_layers(any_model, pair, site=site, direction=direction)
    assert table["recovered"].to_numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("site", STREAM_SITES)
def test_control_positions_before_the_difference_change_nothing(model, pair, site):
    assert differing_positions(model.tokenizer, pair)[0] > 3
    table = patch_layers(model, pair, site=site, position=3)
    assert table["recovered"].to_numpy() == pytest.approx(0, abs=1e-5)


def test_control_some_single_patch_moves_the_answer(model, pair):
    assert patch_layers(model, pair, site="attn_out")["recovered"].abs().max() > 0.1


@pytest.mark.parametrize("batch_size", [1, 2, 3, 1000])
def test_batch_size_changes_nothing(model, mixed_pairs, batch_size):
    options = {"site": "attn_out", "per_prompt": True}
    expected = patch_layers(model, mixed_pairs, **options)
    table = patch_layers(model, mixed_pairs, **options, batch_size=batch_size)
    pd.testing.assert_frame_equal(table, expected, atol=1e-4)


def test_one_pair_and_many_agree(model, mixed_pairs):
    together = patch_layers(model, mixed_pairs, site="mlp_out", per_prompt=True)
    for prompt, pair in enumerate(mixed_pairs):
        alone = patch_layers(model, pair, site="mlp_out")
        pd.testing.assert_frame_equal(together.loc[prompt], alone, atol=1e-4)


def test_labels(model, mixed_pairs):
    table = patch_layers(model, mixed_pairs)
    assert (table.index.name, list(table.columns)) == ("layer", ["recovered"])
    table = patch_layers(model, mixed_pairs, per_prompt=True, normalize=False)
    assert (list(table.index.names), list(table.columns)) == (["prompt", "layer"], ["logit_diff"])
    assert len(table) == len(mixed_pairs) * model.config.n_layer


def test_any_metric_can_be_passed_in(model, pair):
    def answer_logit(logits, answers, foils):
        return logits[range(len(logits)), answers]

    table = patch_layers(model, pair, metric=answer_logit, normalize=False)
    with torch.no_grad():
        logits = model._module(torch.tensor([model.tokenizer.encode(pair.clean)])).logits[0, -1]
    expected = logits[model.tokenizer.encode(pair.answer)[0]].item()
    assert table["answer_logit"].to_numpy() == pytest.approx(expected, abs=1e-4)


def test_a_failed_sweep_does_no_harm(model, mixed_pairs, monkeypatch):
    before = patch_layers(model, mixed_pairs, site="attn_out")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    calls = []

    def failing(logits, answers, foils):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("stop")
        return logit_diff(logits, answers, foils)

    with pytest.raises(RuntimeError, match="stop"):
        patch_layers(model, mixed_pairs, metric=failing)
    with monkeypatch.context() as context:
        context.setitem(SITES, "mlp_out", lambda block: block.mlp.output.no_such_part)
        with pytest.raises(AttributeError, match="no_such_part"):
            patch_layers(model, mixed_pairs, site="mlp_out")
    pd.testing.assert_frame_equal(patch_layers(model, mixed_pairs, site="attn_out"), before)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("position", [torch.tensor(3), np.int64(3), np.array([3]), [3], -13])
def test_positions_may_come_in_any_container(model, pair, position):
    options = {"site": "attn_out", "normalize": False}
    expected = patch_layers(model, pair, position=3, **options)
    pd.testing.assert_frame_equal(patch_layers(model, pair, position=position, **options), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "attention"}, "no site 'attention'; choose one of resid_pre"),
        ({"direction": "backwards"}, "no direction 'backwards'; choose one of denoise, noise"),
        ({"position": 99}, "Position 99 does not exist: the prompt has 16 tokens"),
        ({"position": -17}, "Position -17 does not exist"),
        ({"position": 1.5}, "position is 1.5, but must be a whole number"),
        ({"position": "last"}, "position is 'last', but must be a whole number"),
        ({"position": [1, 2]}, "2 positions were given for 1 pairs"),
        ({"position": [None]}, "but must be a whole number"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"metric": lambda logits, answers, foils: logits}, "one number per pair"),
        ({"metric": lambda logits, answers, foils: 1.0}, "one number per pair"),
        (
            {"metric": lambda logits, a, f: logits[:, 0] * float("nan"), "normalize": False},
            "not finite numbers",
        ),
        ({"site": ["attn_out"]}, "no site"),
        ({"metric": lambda logits, a, f: logits[:, 0] * 0}, "differ by only 0.0000"),
    ],
)
def test_bad_arguments(model, pair, options, message):
    with pytest.raises(ValueError, match=message):
        patch_layers(model, pair, **options)


def test_bad_pairs(model, pair):
    with pytest.raises(ValueError, match="at least one"):
        patch_layers(model, [])
    longer = PromptPair(pair.clean, "Then, " + pair.corrupted, pair.answer, pair.foil)
    with pytest.raises(ValueError, match="16 tokens and the corrupted one 18"):
        patch_layers(model, [pair, longer])
    long = [text.replace("After", "After" + " a" * 130) for text in (pair.clean, pair.corrupted)]
    with pytest.raises(ValueError, match="146 tokens, but the model takes at most 128"):
        patch_layers(model, PromptPair(*long, pair.answer, pair.foil))
    same = PromptPair(pair.clean, pair.clean, pair.answer, pair.foil)
    with pytest.raises(ValueError, match="are the same"):
        patch_layers(model, same)


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
        bar.update(2)
    assert "slow" in capsys.readouterr().err
