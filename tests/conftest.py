"""Models and pairs that several tests share."""

import os

os.environ.pop("COURSE_MODEL", None)

from pathlib import Path

import matplotlib
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from helpers.models import DATA, load_model
from helpers.prompts import PromptPair, load_pairs

matplotlib.use("agg")
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def model():
    return load_model("ioi-mini", device="cpu")


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory):
    """A model of GPT-2's class with random weights, large enough that patches show."""
    folder = tmp_path_factory.mktemp("random-model")
    tokenizer = AutoTokenizer.from_pretrained(DATA / "ioi-mini")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=64,
        n_embd=48,
        n_layer=3,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_model(random_folder):
    return load_model(str(random_folder), device="cpu")


@pytest.fixture(scope="session")
def any_model(request, model, random_model):
    return {"ioi-mini": model, "random": random_model}[request.param]


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
