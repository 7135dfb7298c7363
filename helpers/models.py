"""Load the model that the course works on."""

import os
import re
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from nnsight import TransformersModel
from transformers import AutoConfig

from helpers.shipped import CHECKSUMS, DATA, MINI_FILES, check_shipped_files

DEFAULT_MODEL = "ioi-mini"
GPT2_REPOSITORY = "openai-community/gpt2"
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
HUB_FILES = ["*.json", "*.txt", "*.safetensors"]
# The reader shall wait 3 seconds at most.
HUB_TIMEOUT_SECONDS = 2.5

FAMILIES = ("gpt2", "gpt_neox", "llama", "mistral", "qwen2")
# What the families call the parts that the course patches, and one name for all of them:
# `model.blocks[3].attention.projection` works beside each family's own names.
NAMES_OF_PARTS = {
    "transformer.h": "blocks",
    "gpt_neox.layers": "blocks",
    "model.layers": "blocks",
    "attn": "attention",
    "self_attn": "attention",
    "attn.c_proj": "attn.projection",
    "attention.dense": "attention.projection",
    "self_attn.o_proj": "self_attn.projection",
    "transformer.ln_f": "final_norm",
    "gpt_neox.final_layer_norm": "final_norm",
    "model.norm": "final_norm",
    "embed_out": "lm_head",
}

transformers.utils.logging.disable_progress_bar()


def load_model(name: str | None = None, *, device: str | None = None) -> TransformersModel:
    """Load a language model for tracing, in evaluation mode and in float32.

    Beside the names that its family gives them, every model's parts have the names of
    `NAMES_OF_PARTS`: `model.blocks`, and in each block `attention`, `attention.projection` and
    `mlp`.

    Args:
        name: `"ioi-mini"` (ships with the course), `"gpt2"` (GPT-2 small), any repository
            name on the Hugging Face hub, or a folder. Without a name, the environment
            variable `COURSE_MODEL` decides, and without that, `"ioi-mini"`. If the variable
            names a model that is not in the cache while the hub cannot be reached, this is said
            and `"ioi-mini"` is loaded.
        device: where the weights go, such as `"cpu"` or `"cuda"`. Without one, the environment
            variable `COURSE_DEVICE` decides, and without that: CUDA if it is there, else
            Apple's MPS, else the CPU.

    Raises:
        FileNotFoundError: there is no such folder or repository, or the shipped files are
            incomplete.
        ConnectionError: the hub cannot be reached and its cache does not hold the model that
            was asked for by `name`.
        ValueError: the shipped files are damaged, the model's family is not known, or there is
            no such device.
    """
    device = device or best_device()
    check_device(device)
    name, folder = (name, find_model(name)) if name else find_default()
    check_family(folder, name)
    model = TransformersModel(
        str(folder),
        task="text-generation",
        device_map=None,
        device=device,
        dtype=torch.float32,
        dispatch=True,
        rename=NAMES_OF_PARTS,
    )
    model.eval()
    return model


def find_default() -> tuple[str, Path]:
    """Find the model of `COURSE_MODEL`, or ioi-mini if none is named or it cannot be had now."""
    name = os.environ.get("COURSE_MODEL", "").strip() or DEFAULT_MODEL
    try:
        return name, find_model(name)
    except ConnectionError as error:
        print(f"COURSE_MODEL asks for {name!r}, but {error} So this is {DEFAULT_MODEL}.")
        return DEFAULT_MODEL, find_model(DEFAULT_MODEL)


def best_device() -> str:
    """Name the device to use: `COURSE_DEVICE` from the environment, else the fastest there is."""
    if os.environ.get("COURSE_DEVICE"):
        return os.environ["COURSE_DEVICE"]
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str) -> None:
    """Raise a `ValueError` unless something can be put on this device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = {"cpu": True, "cuda": torch.cuda.is_available()}
        there["mps"] = torch.backends.mps.is_available()
        raise ValueError(
            f"There is no device {device!r} here; choose one of "
            f"{', '.join(name for name, is_there in there.items() if is_there)} (the environment "
            "variable COURSE_DEVICE, or load_model(device=...))."
        ) from error


def find_model(name: str) -> Path:
    """Find the folder of a model, downloading it if it is on the hub and not in the cache.

    A folder's name is taken from the current folder, or from that of the course. Files with sums
    beside them, as ioi-mini's, are checked against these.
    """
    if name == "ioi-mini":
        check_shipped_files(DATA / "ioi-mini", *MINI_FILES)
        return DATA / "ioi-mini"
    if name == "gpt2":
        return fetch_from_hub(GPT2_REPOSITORY, GPT2_REVISION)
    path = Path(name).expanduser()
    for folder in (path, DATA.parent / path):
        if folder.is_dir():
            if folder.resolve() == DATA / "ioi-mini":
                return find_model("ioi-mini")
            if not is_complete(folder):
                raise FileNotFoundError(
                    f"The folder {folder} holds no model: config.json, a tokenizer and weights in "
                    "the safetensors format are needed."
                )
            if (folder / CHECKSUMS).is_file():
                check_shipped_files(folder)
            return folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise FileNotFoundError(
            f"There is no folder {name!r} to load a model from, and the Hugging Face hub has no "
            "such names."
        )
    return fetch_from_hub(name)


def fetch_from_hub(repository: str, revision: str | None = None) -> Path:
    """Return the folder of a hub model: from the cache if it is there, else downloaded.

    Raises:
        ConnectionError: the model is not in the cache, and the hub does not give it.
        FileNotFoundError: there is no such repository, or it holds no safetensors weights.
    """
    download = {"revision": revision, "allow_patterns": HUB_FILES}
    try:
        folder = Path(snapshot_download(repository, local_files_only=True, **download))
        if is_complete(folder):
            return folder
    except LocalEntryNotFoundError:
        pass
    try:
        ask_hub(repository, revision)
        folder = Path(snapshot_download(repository, **download))
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"The Hugging Face hub has no model {repository!r} that is open to all: check the name."
        ) from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConnectionError(
            f"{repository!r} is not in this machine's cache and could not be had from the "
            f"Hugging Face hub ({reason}): go online and try again, or use "
            'load_model("ioi-mini"), which ships with the course.'
        ) from error
    if not is_complete(folder):
        raise FileNotFoundError(
            f"{repository!r} has no weights in the safetensors format, or no tokenizer: choose a "
            "model that has both."
        )
    return folder


def is_complete(folder: Path) -> bool:
    """Tell whether a folder holds a model; a cache can hold a tokenizer alone, or a part."""
    tokenizers = ("tokenizer.json", "vocab.json")
    return (
        (folder / "config.json").is_file()
        and any((folder / name).is_file() for name in tokenizers)
        and any(folder.glob("*.safetensors"))
    )


def ask_hub(repository: str, revision: str | None) -> None:
    """Ask the hub for a model, and give up soon; a download would take long to fail.

    Time limits of a request do not cover looking up the hub's address, so the asking is done
    beside, and left alone when its time is over.

    Raises:
        TimeoutError: there was no answer within `HUB_TIMEOUT_SECONDS`.
    """
    answer = Future()

    def ask() -> None:
        try:
            # Longer than it is waited for, so that what the reader is told does not hang on chance.
            timeout = 2 * HUB_TIMEOUT_SECONDS
            answer.set_result(HfApi().model_info(repository, revision=revision, timeout=timeout))
        except Exception as error:
            answer.set_exception(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer.result(timeout=HUB_TIMEOUT_SECONDS)
    except TimeoutError:
        raise TimeoutError(f"no answer within {HUB_TIMEOUT_SECONDS} seconds") from None


def check_family(folder: Path, name: str) -> None:
    """Raise a `ValueError` unless the course knows where this model keeps its parts."""
    family = AutoConfig.from_pretrained(folder).model_type
    if family not in FAMILIES:
        raise ValueError(
            f"{name!r} is of the family {family!r}. The course knows the parts of the families "
            f"{', '.join(FAMILIES)}: choose a model of one of them, such as "
            'load_model("ioi-mini") or load_model("gpt2").'
        )
