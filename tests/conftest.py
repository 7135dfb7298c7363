"""Models and pairs that several tests share."""

import functools
import os

os.environ.pop("COURSE_MODEL", None)

from pathlib import Path

import matplotlib
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from helpers.models import DATA, load_model
from helpers.prompts import PromptPair, load_pairs

matplotlib.use("agg")
ROOT = Path(__file__).resolve().parent.parent


def pytest_terminal_summary(terminalreporter):
    """Print what tests measured in passing; how fast things are is not what they decide on."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    for report in reports:
        for name, value in getattr(report, "user_properties", ()):
            if name == "latency" and report.when == "call":
                terminalreporter.write_line(f"latency of chapter {value}")


@pytest.fixture(scope="session")
def model():
    return load_model("ioi-mini", device="cpu")


# Small models with random weights, large enough that patches show, of every family: a name,
# the class of its configuration, and what sets it apart.
SMALL = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 48}
SMALL |= {"intermediate_size": 96, "max_position_embeddings": 64}
RANDOM_MODELS = {
    "gpt2": (GPT2Config, {"n_layer": 3, "n_head": 4, "n_embd": 48, "n_positions": 64}),
    "pythia": (GPTNeoXConfig, SMALL),
    "gpt_neox-in-sequence": (GPTNeoXConfig, SMALL | {"use_parallel_residual": False}),
    "llama": (LlamaConfig, SMALL | {"num_key_value_heads": 2}),
    "llama-wide-heads": (LlamaConfig, SMALL | {"num_key_value_heads": 1, "head_dim": 20}),
    "mistral": (MistralConfig, SMALL | {"num_key_value_heads": 2}),
    "qwen2": (Qwen2Config, SMALL | {"num_key_value_heads": 2}),
}


def make_random_network(config_class, options, seed=0):
    torch.manual_seed(seed)
    vocabulary = AutoTokenizer.from_pretrained(DATA / "ioi-mini")
    special = {"vocab_size": len(vocabulary), "bos_token_id": 0, "eos_token_id": 0}
    config = config_class(**special, initializer_range=0.3, **options)
    return AutoModelForCausalLM.from_config(config).eval(), vocabulary


@pytest.fixture(scope="session")
def random_folders(tmp_path_factory):
    """Save a model of `RANDOM_MODELS`, once."""

    @functools.cache
    def save(name):
        folder = tmp_path_factory.mktemp(name)
        for part in make_random_network(*RANDOM_MODELS[name]):
            part.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def random_folder(random_folders):
    return random_folders("gpt2")


@pytest.fixture(scope="session")
def load_random(random_folders):
    """Load a model of `RANDOM_MODELS` as a user would."""
    return functools.cache(lambda name: load_model(str(random_folders(name)), device="cpu"))


@pytest.fixture(scope="session")
def random_model(load_random):
    return load_random("gpt2")


@pytest.fixture(scope="session")
def any_model(request, model, load_random):
    return model if request.param == "ioi-mini" else load_random(request.param)


@pytest.fixture
def pair():
    return load_pairs(kind="swap", count=1)[0]


@pytest.fixture
def mixed_pairs():
    """Pairs of both kinds, orders, and of different lengths."""
    return load_pairs(kind="swap")[::17] + load_pairs(kind="abc")[::29]


@pytest.fixture
def unrelated_pair():
    return PromptPair(
        "John met Mary at the park. Mary waved to",
        "John met Mary at the park. John waved to",
        " John",
        " Mary",
    )
