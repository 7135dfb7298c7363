"""A GPU gives what the CPU gives; a model in half precision is refused."""

import numpy as np
import pytest
import torch

from helpers.engine import Part, rows_that_fit
from helpers.heads import attention_patterns, direct_effects
from helpers.models import load_model
from helpers.patching import patch_heads, patch_layers, patch_positions, predictions
from helpers.prompts import load_pairs
from helpers.widgets import HeadExplorer

PAIRS = load_pairs(kind="swap")[::30]


@pytest.fixture(scope="module", params=["cuda", "mps"])
def on_gpu(request):
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[request.param]:
        pytest.skip(f"this machine has no {request.param}")
    return load_model("ioi-mini", device=request.param)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_sweeps_agree_with_the_cpu(on_gpu, model, direction):
    for sweep in (patch_layers, patch_positions, patch_heads):
        pairs = PAIRS[:1] if sweep is patch_positions else PAIRS
        expected = sweep(model, pairs, direction=direction)
        assert np.allclose(sweep(on_gpu, pairs, direction=direction), expected, atol=1e-3)


def test_what_heads_do_agrees_with_the_cpu(on_gpu, model):
    for measure in (
        lambda m: attention_patterns(m, PAIRS[0].clean),
        lambda m: direct_effects(m, PAIRS),
    ):
        assert np.allclose(measure(on_gpu), measure(model), atol=1e-3)
    shares = [predictions(m, PAIRS[0], [Part(2, 0)], site="z") for m in (on_gpu, model)]
    assert np.allclose(*shares, atol=1e-3)


def test_explorers_work_on_it(on_gpu, model):
    assert HeadExplorer(on_gpu).message() == HeadExplorer(model).message()


def test_batches_are_as_large_as_free_memory_allows(on_gpu):
    assert rows_that_fit(on_gpu, 16) > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(load_random, dtype):
    model = load_random("qwen2")
    model._module.to(dtype)
    with pytest.raises(ValueError, match=r"computes in b?float16.*uses float32"):
        patch_heads(model, PAIRS[0])
    model._module.to(torch.float32)
