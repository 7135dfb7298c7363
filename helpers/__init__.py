"""What the notebooks of the activation-patching course share.

One room per subject; imports point one way (`patching` knows nothing of `plots`):

- `models`: load the shipped model, GPT-2 small, or another one
- `prompts`: pairs of clean and corrupted prompts, checked against a tokenizer
- `metrics`: logit difference and the scale from 0 (corrupted) to 1 (clean)
- `patching`: sweeps that patch one part after another
- `plots`: figures that read their labels from the sweeps' tables
- `corpus`, `training`, `picture`: the text and the script that built the shipped model, and
  what that model shows
"""
