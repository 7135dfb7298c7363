"""Loading models: what is loaded, where from, and what is said when it cannot be."""

import socket
import threading
import time

import httpx
import pytest
import torch
from conftest import RANDOM_MODELS
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig

from helpers import models
from helpers.models import load_model
from helpers.shipped import DATA

PROMPT = "After John and Mary went to the store, Mary gave a bottle of milk to"


def test_ships_and_loads_from_the_folder_alone(model):
    folder = DATA / "ioi-mini"
    network = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(network).__name__ == "GPT2LMHeadModel"
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = network(ids).logits
    with torch.no_grad(), model.trace(PROMPT):
        logits = model.lm_head.output.save()
    assert torch.allclose(logits, expected, atol=1e-5)
    assert tokenizer.decode(expected[0, -1].argmax()) == " John"


def test_is_ready_to_be_traced(model):
    parameters = list(model.parameters())
    assert not model.training
    assert {p.dtype for p in parameters} == {torch.float32}
    assert {p.device.type for p in parameters} == {"cpu"}


def test_folder_is_small():
    assert sum(file.stat().st_size for file in (DATA / "ioi-mini").iterdir()) < 12_000_000


def test_environment_changes_the_default(monkeypatch, random_folder):
    assert load_model().config.n_layer == 6
    monkeypatch.setenv("COURSE_MODEL", str(random_folder))
    assert load_model().config.n_layer == 3
    assert load_model("ioi-mini").config.n_layer == 6


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_an_error(monkeypatch, device):
    monkeypatch.setenv("COURSE_DEVICE", device)
    with pytest.raises(ValueError, match=rf"no device '{device}' here; choose one of cpu"):
        load_model()


def test_a_folder_without_a_model_is_an_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"holds no model: config\.json, a tokenizer"):
        load_model(str(tmp_path))


def test_best_device_prefers_cuda_then_mps(monkeypatch):
    monkeypatch.delenv("COURSE_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert models.best_device() == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert models.best_device() == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert models.best_device() == "cpu"
    monkeypatch.setenv("COURSE_DEVICE", "xpu")
    assert models.best_device() == "xpu"


def test_no_such_folder():
    for name in ("./no-such-folder", "/no/such/folder", "a/b/c", "my model"):
        with pytest.raises(FileNotFoundError, match="no folder"):
            load_model(name)


def test_without_network_and_cache_it_says_what_to_do(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", unreachable)
    started = time.perf_counter()
    with pytest.raises(ConnectionError, match=r'go online.*load_model\("ioi-mini"\)'):
        load_model("nobody/no-such-model")
    assert time.perf_counter() - started < 3


@pytest.fixture
def silent_hub(monkeypatch):
    """A hub that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(models, "HfApi", lambda: HfApi(endpoint=address))
        yield


@pytest.mark.usefixtures("silent_hub")
def test_a_hub_that_does_not_answer_is_not_waited_for():
    started = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"no answer within 2\.5 seconds\): go online"):
        load_model("nobody/no-such-model")
    assert time.perf_counter() - started < 3


def test_an_address_that_is_looked_up_for_long_is_not_waited_for(monkeypatch):
    """Looking up an address has no time limit, as in a network without a way out."""
    answered = threading.Event()

    def look_up(*args, **options):
        answered.wait(30)
        raise socket.gaierror("name not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    started = time.perf_counter()
    try:
        with pytest.raises(ConnectionError, match=r"no answer within 2\.5 seconds\): go online"):
            load_model("nobody/no-such-model")
        assert time.perf_counter() - started < 3
    finally:
        answered.set()


def test_a_download_that_breaks_off_says_what_to_do(monkeypatch):
    def break_off(repository, local_files_only=False, **options):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        raise httpx.ReadError("the connection was closed\nin the middle")

    monkeypatch.setattr(models, "snapshot_download", break_off)
    monkeypatch.setattr(HfApi, "model_info", lambda *args, **options: None)
    with pytest.raises(ConnectionError, match=r"\(ReadError: the connection was closed\): go on"):
        load_model("gpt2")


@pytest.mark.usefixtures("silent_hub")
def test_a_model_of_the_environment_that_cannot_be_had_is_replaced_and_this_is_said(
    monkeypatch, capsys
):
    monkeypatch.setenv("COURSE_MODEL", "nobody/no-such-model")
    assert load_model().config.n_layer == 6
    printed = capsys.readouterr().out
    assert "asks for 'nobody/no-such-model', but " in printed
    assert "(TimeoutError: no answer within 2.5 seconds)" in printed
    assert "So this is ioi-mini" in printed
    with pytest.raises(ConnectionError):
        load_model("nobody/no-such-model")


def test_a_name_that_the_hub_does_not_know_is_an_error(monkeypatch):
    def unknown(*args, **kwargs):
        response = httpx.Response(404, request=httpx.Request("GET", "https://example.org"))
        raise RepositoryNotFoundError("not found", response=response)

    monkeypatch.setattr(HfApi, "model_info", unknown)
    monkeypatch.setenv("COURSE_MODEL", "nobody/no-such-model")
    with pytest.raises(FileNotFoundError, match=r"no model .*: check the name"):
        load_model()


def test_gpt2_is_found_in_the_cache_at_its_pinned_revision(monkeypatch, random_folder):
    asked = []

    def cached(repository, **options):
        asked.append((repository, options))
        return str(random_folder)

    monkeypatch.setattr(models, "snapshot_download", cached)
    assert load_model("gpt2").config.n_layer == 3
    [(repository, options)] = asked
    assert repository == "openai-community/gpt2"
    assert options["local_files_only"]
    assert len(options["revision"]) == 40
    assert "*.safetensors" in options["allow_patterns"]
    assert not any("bin" in pattern for pattern in options["allow_patterns"])


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_cache_with_a_part_of_the_model_is_not_enough(
    monkeypatch, tmp_path, random_folder, missing
):
    downloads = []

    def snapshot(repository, local_files_only=False, **options):
        if local_files_only:
            return str(tmp_path)
        downloads.append(repository)
        return str(random_folder)

    for file in {"config.json", "tokenizer.json", "model.safetensors"} - {missing}:
        (tmp_path / file).touch()
    monkeypatch.setattr(models, "snapshot_download", snapshot)
    monkeypatch.setattr(HfApi, "model_info", lambda *args, **options: None)
    assert load_model("gpt2").config.n_layer == 3
    assert downloads == ["openai-community/gpt2"]
    monkeypatch.setattr(models, "snapshot_download", lambda *args, **options: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no weights in the safetensors format, or no tok"):
        load_model("gpt2")


def test_folders_are_found_from_here_from_home_and_from_the_course(monkeypatch, random_folder):
    monkeypatch.chdir(random_folder.parent)
    monkeypatch.setenv("HOME", str(random_folder.parent))
    for name in (random_folder.name, f"./{random_folder.name}", f"~/{random_folder.name}"):
        assert models.find_model(name).samefile(random_folder)
    assert models.find_model("data/ioi-mini") == DATA / "ioi-mini"


@pytest.mark.parametrize("name", RANDOM_MODELS)
def test_parts_have_one_name_in_every_family(load_random, name):
    model = load_random(name)
    assert len(model.blocks) == 3
    with torch.no_grad(), model.trace(torch.tensor([[5, 6, 7]])):
        z = model.blocks[1].attention.projection.input.save()
        stream = model.blocks[1].output.save()
        last = model.final_norm.output.save()
    assert z.shape[-1] % model.config.num_attention_heads == 0
    assert stream.shape == last.shape == (1, 3, 48)


def test_an_unknown_family_is_refused(tmp_path):
    OPTConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    for file in ("tokenizer.json", "model.safetensors"):
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=r"is of the family 'opt'.*gpt2, gpt_neox, llama"):
        load_model(str(tmp_path))
