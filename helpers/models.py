"""Load the model that the course works on."""

import os
import re
from pathlib import Path

import torch
import transformers
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from nnsight import TransformersModel
from transformers import AutoConfig

from helpers.shipped import DATA, check_shipped_files

DEFAULT_MODEL = "ioi-mini"
GPT2_REPOSITORY = "openai-community/gpt2"
GPT2_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
MODEL_FILES = ["*.json", "*.txt", "*.safetensors"]
# Connecting and answering may take this long each; the reader shall wait 3 seconds at most.
HUB_TIMEOUT_SECONDS = 1.4

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
            names a model that cannot be had now, this is said and `"ioi-mini"` is loaded.
        device: where the weights go, such as `"cpu"` or `"cuda"`. Without one, the environment
            variable `COURSE_DEVICE` decides, and without that: CUDA if it is there, else
            Apple's MPS, else the CPU.

    Raises:
        FileNotFoundError: there is no such folder or repository, or the shipped files are
            incomplete.
        ConnectionError: the hub cannot be reached and its cache does not hold the model that
            was asked for by `name`.
        ValueError: the shipped files are damaged, or the model's family is not known.
    """
    name, folder = (name, find_model(name)) if name else find_default()
    check_family(folder, name)
    model = TransformersModel(
        str(folder),
        task="text-generation",
        device_map=None,
        device=device or best_device(),
        dtype=torch.float32,
        dispatch=True,
        rename=NAMES_OF_PARTS,
    )
    model.eval()
    return model


def find_default() -> tuple[str, Path]:
    """Find the model of `COURSE_MODEL`, or ioi-mini if none is named or it cannot be had now."""
    name = os.environ.get("COURSE_MODEL") or DEFAULT_MODEL
    try:
        return name, find_model(name)
    except ConnectionError:
        print(
            f"COURSE_MODEL asks for {name!r}, which is not in this machine's cache, and the "
            f"Hugging Face hub cannot be reached. So this is {DEFAULT_MODEL}, the model that "
            "ships with the course."
        )
        return DEFAULT_MODEL, find_model(DEFAULT_MODEL)


def best_device() -> str:
    """Name the device to use: `COURSE_DEVICE` from the environment, else the fastest there is."""
    if os.environ.get("COURSE_DEVICE"):
        return os.environ["COURSE_DEVICE"]
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def find_model(name: str) -> Path:
    """Find the folder of a model, downloading it if it is on the hub and not in the cache.

    A folder's name is taken from the current folder, or from that of the course.
    """
    if name == "ioi-mini":
        check_shipped_files(DATA / "ioi-mini")
        return DATA / "ioi-mini"
    if name == "gpt2":
        return fetch_from_hub(GPT2_REPOSITORY, GPT2_REVISION)
    path = Path(name).expanduser()
    for folder in (path, DATA.parent / path):
        if folder.is_dir():
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
        FileNotFoundError: the repository holds no safetensors weights.
    """
    download = {"revision": revision, "allow_patterns": MODEL_FILES}
    try:
        folder = Path(snapshot_download(repository, local_files_only=True, **download))
        if has_weights(folder):
            return folder
    except LocalEntryNotFoundError:
        pass
    check_hub(repository, revision)
    folder = Path(snapshot_download(repository, **download))
    if not has_weights(folder):
        raise FileNotFoundError(
            f"{repository!r} has no weights in the safetensors format: choose another model."
        )
    return folder


def has_weights(folder: Path) -> bool:
    """Tell whether a folder holds a model; a cache can hold a tokenizer alone."""
    return (folder / "config.json").is_file() and any(folder.glob("*.safetensors"))


def check_hub(repository: str, revision: str | None) -> None:
    """Ask the hub once, briefly, for a model; otherwise a download takes long to fail."""
    try:
        HfApi().model_info(repository, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"The Hugging Face hub has no model {repository!r} that is open to all: check the name."
        ) from error
    except Exception as error:
        raise ConnectionError(
            f"{repository!r} is not in this machine's cache and could not be had from the "
            f"Hugging Face hub ({type(error).__name__}): go online and try again, or use "
            'load_model("ioi-mini"), which ships with the course.'
        ) from error


def check_family(folder: Path, name: str) -> None:
    """Raise a `ValueError` unless the course knows where this model keeps its parts."""
    family = AutoConfig.from_pretrained(folder).model_type
    if family not in FAMILIES:
        raise ValueError(
            f"{name!r} is of the family {family!r}. The course knows the parts of the families "
            f"{', '.join(FAMILIES)}: choose a model of one of them, such as "
            'load_model("ioi-mini") or load_model("gpt2").'
        )
