"""Patching in plain PyTorch hooks, one pair at a time: shares no code with the helpers."""

from contextlib import ExitStack

import torch


def parts_of(block):
    """Name what the sites are in PyTorch: (module, whether its input is meant)."""
    return {
        "resid_pre": (block, True),
        "resid_post": (block, False),
        "attn_out": (block.attn, False),
        "mlp_out": (block.mlp, False),
    }


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


def last_logits(network, ids, part=None, change=None):
    with torch.no_grad(), ExitStack() as stack:
        if part is not None:
            stack.callback(hook(part, change).remove)
        return network(torch.tensor([ids])).logits[0, -1]


def activation(network, ids, part):
    kept = []
    last_logits(network, ids, part, lambda x: (kept.append(x.clone()), x)[1])
    return kept[0]


def patched_logit_diff(network, tokenizer, pair, layer, site, position, direction):
    """Logit differences of the clean, the corrupted and the patched run."""
    clean, corrupted = tokenizer.encode(pair.clean), tokenizer.encode(pair.corrupted)
    answer, foil = tokenizer.encode(pair.answer)[0], tokenizer.encode(pair.foil)[0]
    donor, base = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    part = parts_of(network.transformer.h[layer])[site]
    donated = activation(network, donor, part)

    def patch(x):
        x = x.clone()
        where = slice(None) if position is None else position
        x[:, where] = donated[:, where]
        return x

    runs = (
        last_logits(network, clean),
        last_logits(network, corrupted),
        last_logits(network, base, part, patch),
    )
    return tuple((logits[answer] - logits[foil]).item() for logits in runs)
