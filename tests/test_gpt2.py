"""A model of GPT-2 small's shape and tokenizer, loaded as a user's GPT-2 small is.

The stand-ins of `gpt2.py` show that loading, sizes, tokenizer and measuring are right. They
cannot show what GPT-2 small itself does.
"""

import gpt2
import gpt2_reference
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch

from helpers.models import DATA, load_model
from helpers.patching import patch_heads, patch_layers, patch_positions
from helpers.prompts import load_pairs, token_labels
from helpers.shipped import sum_of
from helpers.widgets import PositionExplorer

PAIRS = load_pairs(kind="swap")[:2]
# sha256 sums of OpenAI's files, as tiktoken checks them:
# https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py
SUMS = {
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}


def load_stand_in(tmp_path_factory, make):
    cache = tmp_path_factory.mktemp("hub")
    gpt2.fill_cache(cache, make)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        return load_model("gpt2", device="cpu")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return load_stand_in(tmp_path_factory, gpt2.carried_over)


def test_has_the_shape_and_the_tokenizer_of_gpt2_small(stand_in):
    config = stand_in.config
    assert (config.n_layer, config.n_head, config.n_embd, config.vocab_size) == (12, 12, 768, 50257)
    assert sum(weight.numel() for weight in stand_in._module.parameters()) == 124_439_808
    # As GPT-2's own tokenizer encodes them; the token ids of the names are widely quoted.
    assert stand_in.tokenizer.encode(" Mary John") == [5335, 1757]
    assert stand_in.tokenizer.encode("<|endoftext|>") == [50256]
    assert len(gpt2.vocabulary()) == len(set(gpt2.vocabulary())) == 50257


def test_tokenizer_has_the_files_that_openai_published(tmp_path):
    gpt2.save_tokenizer(tmp_path)
    assert {name: sum_of((tmp_path / name).read_bytes()) for name in SUMS} == SUMS


def test_answers_what_ioi_mini_answers(stand_in, model):
    for pair in PAIRS:
        ids = [stand_in.tokenizer.encode(word)[0] for word in (pair.answer, pair.foil)]
        small = [model.tokenizer.encode(word)[0] for word in (pair.answer, pair.foil)]
        assert torch.allclose(
            last_logits(stand_in, pair)[ids], last_logits(model, pair)[small], atol=1e-3
        )


def last_logits(model, pair):
    with torch.no_grad(), model.trace(pair.clean):
        logits = model.output.logits[0, -1].save()
    return logits


def test_every_sweep_finds_what_it_finds_in_ioi_mini(stand_in, model):
    for site in ("resid_pre", "attn_out"):
        large, small = (patch_positions(m, PAIRS, site=site) for m in (stand_in, model))
        assert large.shape == (12, small.shape[1])
        assert [*large.columns] == [*small.columns]
        assert np.allclose(large[:: gpt2.EVERY], small, atol=1e-3)
    large, small = (patch_layers(m, PAIRS, site="mlp_out") for m in (stand_in, model))
    assert np.allclose(large[:: gpt2.EVERY], small, atol=1e-3)
    for direction in ("denoise", "noise"):
        large, small = (patch_heads(m, PAIRS, direction=direction) for m in (stand_in, model))
        unpatched = float(direction == "noise")
        assert large.shape == (12, 12)
        assert np.allclose(large.iloc[:: gpt2.EVERY, :8], small, atol=1e-3)
        assert np.allclose(large.iloc[1 :: gpt2.EVERY], unpatched, atol=1e-4)
        assert np.allclose(large.iloc[:, 8:], unpatched, atol=1e-4)


def test_explorers_fit_its_size(stand_in):
    explorer = PositionExplorer(stand_in)
    assert explorer.layer.max == 11
    assert "recovered" in explorer.message()
    assert [*explorer.grid.table.columns] == token_labels(stand_in.tokenizer, explorer.pair.clean)


def test_a_model_that_does_not_know_the_task_is_told_apart(tmp_path_factory):
    network = load_stand_in(tmp_path_factory, gpt2.random)
    # Of these prompts, random weights tell clean from corrupted least.
    pair = min(load_pairs(kind="swap")[:20], key=lambda pair: difference(network, pair))
    with pytest.raises(ValueError, match=r"differ by only 0\.0.*would blow up noise"):
        patch_layers(network, pair, site="mlp_out")
    explorer = PositionExplorer(network)
    explorer.picker.write(pair)
    assert "differ by only" in explorer.message()
    assert explorer.result.layout.display == "none"


def difference(network, pair):
    ids = [network.tokenizer.encode(word)[0] for word in (pair.answer, pair.foil)]
    runs = [network.tokenizer.encode(text) for text in (pair.clean, pair.corrupted)]
    with torch.no_grad():
        logits = network._module(torch.tensor(runs)).logits[:, -1, ids]
    clean, corrupted = logits[:, 0] - logits[:, 1]
    return abs(clean - corrupted).item()


# The comparison with published figures


@pytest.fixture
def published():
    return pd.read_csv(DATA / "gpt2_patching.csv")


def test_prompts_of_the_published_figures_are_aligned(stand_in):
    pairs = gpt2_reference.read_pairs()
    tokenizer = stand_in.tokenizer
    assert len(pairs) == 8
    lengths = {len(tokenizer.encode(gpt2_reference.begin_with_token(p).clean)) for p in pairs}
    assert lengths == {15}
    assert tokenizer.encode(gpt2_reference.begin_with_token(pairs[0]).clean)[0] == 50256
    assert [p.answer for p in pairs[:2]] == [" Mary", " John"]


def test_the_reference_measures_what_was_published(stand_in, model, published):
    small = published[(published["layer"] < 6) & ~(published["head"] >= 8)]
    large = small.assign(layer=small["layer"] * gpt2.EVERY)
    pairs = load_pairs(kind="swap", template=PAIRS[0].template)[:2]
    expected = gpt2_reference.measure(model, pairs, small)
    assert expected.abs().max() > 0.5
    assert np.allclose(gpt2_reference.measure(stand_in, pairs, large), expected, atol=1e-3)


def test_the_reference_tells_right_from_wrong(published):
    exact = published["recovered"].astype(float)
    for measured, misses in [
        (exact, []),
        (exact + 0.019, []),
        (exact.where(published.index != 5, exact + 0.05), [5]),
        (exact.where(published.index != 7, float("nan")), [7]),
        (-exact, [*published.index[published["recovered"].abs() > 0.01]]),
    ]:
        table = gpt2_reference.compare(published, measured, exact)
        assert [*gpt2_reference.find_misses(table).index] == misses


def test_the_reference_prints_its_table(published, stand_in, monkeypatch, capsys):
    monkeypatch.setattr(gpt2_reference, "load_model", lambda name: stand_in)
    exact = published["recovered"].astype(float)
    monkeypatch.setattr(gpt2_reference, "measure", lambda *_: exact)
    gpt2_reference.main()
    assert f"All {len(published)} values are within 0.02" in capsys.readouterr().out
    monkeypatch.setattr(gpt2_reference, "measure", lambda *_: exact + 1)
    with pytest.raises(SystemExit, match=r"values are further than 0\.02"):
        gpt2_reference.main()
    assert "without the token" in capsys.readouterr().out
