"""Patching in plain PyTorch hooks, one run at a time: shares no code with the helpers."""

from contextlib import ExitStack

import torch

# For each family: list of blocks, attention, its output projection.
LAYOUTS = {
    "gpt2": ("transformer.h", "attn", "c_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention", "dense"),
    "llama": ("model.layers", "self_attn", "o_proj"),
    "mistral": ("model.layers", "self_attn", "o_proj"),
    "qwen2": ("model.layers", "self_attn", "o_proj"),
}


def part_of(network, layer, site):
    """Say what a site is in PyTorch: (module, whether its input is meant)."""
    blocks, attention, projection = LAYOUTS[network.config.model_type]
    block = network.get_submodule(f"{blocks}.{layer}")
    return {
        "resid_pre": (block, True),
        "resid_post": (block, False),
        "attn_out": (block.get_submodule(attention), False),
        "mlp_out": (block.mlp, False),
        "z": (block.get_submodule(f"{attention}.{projection}"), True),
    }[site]


def hook(part, change):
    """Register a hook that passes an activation through `change` and puts the result back."""
    module, is_input = part

    def change_input(module, arguments):
        return (change(arguments[0]), *arguments[1:])

    def change_output(module, arguments, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    if is_input:
        return module.register_forward_pre_hook(change_input)
    return module.register_forward_hook(change_output)


def last_logits(network, ids, changes=()):
    """Run one prompt; `changes` are (part, function of the activation)."""
    with torch.no_grad(), ExitStack() as stack:
        for part, change in changes:
            stack.callback(hook(part, change).remove)
        return network(torch.tensor([ids])).logits[0, -1]


def activation(network, ids, part):
    kept = []
    last_logits(network, ids, [(part, lambda x: (kept.append(x.clone()), x)[1])])
    return kept[0]


def overwrite(donated, position, head, heads):
    """Make a function that puts a donated activation, or one head's share of it, into another."""
    width = donated.shape[-1] // heads
    rows = slice(None) if position is None else position
    columns = slice(None) if head is None else slice(head * width, (head + 1) * width)

    def change(x):
        x = x.clone()
        x[:, rows, columns] = donated[:, rows, columns]
        return x

    return change


def patched_logits(network, donor, base, site, parts):
    """Put the donor prompt's activations into the base prompt.

    Parts are (layer, head, position), with None for all heads or positions.
    """
    heads = network.config.num_attention_heads
    changes = []
    for layer, head, position in parts:
        part = part_of(network, layer, site)
        donated = activation(network, donor, part)
        changes.append((part, overwrite(donated, position, head, heads)))
    return last_logits(network, base, changes)


def measure(network, tokenizer, pair, site, parts, direction):
    """Logit differences of the clean, the corrupted and the patched run."""
    clean, corrupted = tokenizer.encode(pair.clean), tokenizer.encode(pair.corrupted)
    answer, foil = tokenizer.encode(pair.answer)[0], tokenizer.encode(pair.foil)[0]
    donor, base = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    runs = (
        last_logits(network, clean),
        last_logits(network, corrupted),
        patched_logits(network, donor, base, site, parts),
    )
    return tuple((logits[answer] - logits[foil]).item() for logits in runs)
