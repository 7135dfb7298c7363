"""What the notebooks of the activation-patching course share.

One room per subject; imports point one way (`patching` knows nothing of `plots`):

- `models`: load the shipped model, GPT-2 small, or another one
- `prompts`: pairs of clean and corrupted prompts, checked against a tokenizer
- `metrics`: logit difference and the scale from 0 (corrupted) to 1 (clean)
- `engine`: patched runs, many at once
- `patching`: sweeps that patch one part after another
- `heads`: attention patterns and direct effects
- `plots`: figures that read their labels from the sweeps' tables
- `controls`, `widgets`, `playground`: the explorers, and the parts that they are made of
- `written_out`: an experiment as plain nnsight
- `shipped`: whether the files in `data/` are as they were committed
- `colab`, `publish`: the course on Colab
- `corpus`, `training`, `picture`: the text and the script that built the shipped model, and
  what that model shows
"""
