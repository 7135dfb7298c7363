"""Build ioi-mini from nothing: `python -m helpers.training FOLDER`.

Trained plainly on such text, a small model finds a shortcut: its last position looks at the
subject's token itself, and nothing is handed on in stages. So training exchanges
activations between stories that are alike but for their names (see `Interchange`), which
makes the token itself useless from block 2 on. `data/README.md`, the model card, says what
was tried, what was forced and what emerged.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from helpers.corpus import NAME_SLOTS, NAMES, choose_names, make_story, vocabulary
from helpers.models import load_model
from helpers.picture import fresh_pairs, take_picture
from helpers.shipped import write_sums

END_OF_TEXT = "<|endoftext|>"
POSITIONS = 128
VERSIONS = 4
SUBJECT_READY_AFTER = 1
READ_IN = (2, 3, 4)


@dataclass(frozen=True)
class Recipe:
    """What the training depends on; steps count from 0.

    Attributes:
        layers, heads, width: shape of the model.
        steps: optimisation steps, each on `stories` stories in four versions.
        longest: stories of more tokens are left out.
        learning_rate: its highest value, after `warmup` steps; it then falls linearly.
        answer_weight, subject_weight: of these tokens in the loss; others have weight 1.
        first_names: how many names are in play at first, until `more_names_from`; their
            number then grows linearly until all are in play at `all_names_from`.
        full_text_from: until this step stories are simple, without distracting sentences.
        exchange_from: from this step activations are exchanged (see `Interchange`).
        mixed_from: from this step they are exchanged in every other batch only.
        readout_until: until this step a linear readout supports the loss (see `train`).
        drop_heads_from, drop_heads, drop_low_heads: from this step each head is silenced in
            this share of stories (see `HeadDropout`), so that the work spreads over heads.
        seed: of weights, text and order.
    """

    layers: int = 6
    heads: int = 8
    width: int = 128
    steps: int = 2200
    stories: int = 24
    longest: int = 60
    learning_rate: float = 2e-3
    warmup: int = 100
    answer_weight: float = 10.0
    subject_weight: float = 3.0
    first_names: int = 12
    more_names_from: int = 400
    all_names_from: int = 900
    full_text_from: int = 700
    exchange_from: int = 200
    mixed_from: int = 1700
    readout_until: int = 1400
    drop_heads_from: int = 1000
    drop_heads: float = 0.05
    drop_low_heads: float = 0.3
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Stories in four versions each: two sets of names, each with two ways to deal the roles.

    Attributes:
        ids: token ids with the answer at the end, padded on the right, `[row, position]`.
        weights: of each predicted token in the loss, `[row, position - 1]`.
        subject: True where the subjects stand, `[row, position - 1]`.
        later: True after the subjects, up to the last word, `[row, position - 1]`.
        subject_slot: index of the subject's name among A, B, C, `[row]`.
        subject_position: where the first subject stands, `[row]`.
        answer_position: where the answer stands, `[row]`.
        twin: the row with the same roles and other names, `[row]`.
        read_in: the only layer in which later positions may look at the subject.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    subject: torch.Tensor
    later: torch.Tensor
    subject_slot: torch.Tensor
    subject_position: torch.Tensor
    answer_position: torch.Tensor
    twin: torch.Tensor
    read_in: int


@dataclass(frozen=True)
class Example:
    """One version of a story: token ids with the answer last, where the subjects stand, which."""

    ids: list[int]
    first_subject: int
    last_subject: int
    subject_slot: int


def build_tokenizer() -> GPT2Tokenizer:
    """Train a byte-level BPE in which every word of the corpus is one token."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        vocabulary(),
        trainers.BpeTrainer(
            vocab_size=10_000,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return GPT2Tokenizer(vocab=bpe.get_vocab(), merges=bpe_merges(bpe), model_max_length=POSITIONS)


def bpe_merges(bpe: Tokenizer) -> list[tuple[str, str]]:
    """Read the merges out of a trained BPE, in their order."""
    return [tuple(merge) for merge in json.loads(bpe.to_str())["model"]["merges"]]


def build_model(recipe: Recipe, tokenizer: GPT2Tokenizer) -> GPT2LMHeadModel:
    """Make GPT-2's architecture, small, with random weights."""
    torch.manual_seed(recipe.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config)


def four_versions(
    tokenizer: GPT2Tokenizer, rng: random.Random, names: list[str], simple: bool
) -> list[Example]:
    """Write one story and tokenize it with two sets of names and two ways to deal the roles."""
    story = make_story(rng, simple=simple)
    namings = [choose_names(rng, story.slots, names) for _ in range(2)]
    examples = []
    for role in rng.sample(story.roles, 2):
        for naming in namings:
            text = f"{story.render(naming, role)} {naming[role.answer]}"
            first, last = story.subject_span(naming, role)
            encoding = tokenizer(text)
            examples.append(
                Example(
                    ids=encoding.input_ids,
                    first_subject=encoding.char_to_token(first),
                    last_subject=encoding.char_to_token(last),
                    subject_slot=NAME_SLOTS.index(role.subjects[0]),
                )
            )
    return examples


def collate(stories: list[list[Example]], recipe: Recipe, rng: random.Random) -> Batch:
    """Pad stories to one length and say where everything stands."""
    examples = [example for story in stories for example in story]
    count, length = len(examples), max(len(example.ids) for example in examples)
    ids = torch.zeros(count, length, dtype=torch.long)
    weights = torch.zeros(count, length - 1)
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids) - 1] = 1
        weights[row, example.first_subject - 1] = recipe.subject_weight
        weights[row, len(example.ids) - 2] = recipe.answer_weight
    first, last, answer = (
        torch.tensor(column)
        for column in zip(
            *((e.first_subject, e.last_subject, len(e.ids) - 1) for e in examples), strict=True
        )
    )
    position = torch.arange(length - 1)
    # Rows come in fours: roles 1 and names 1, roles 1 and names 2, roles 2 and names 1, ...
    row = torch.arange(count)
    return Batch(
        ids=ids,
        weights=weights,
        subject=(position >= first[:, None]) & (position <= last[:, None]),
        later=(position > last[:, None]) & (position < answer[:, None]),
        subject_slot=torch.tensor([example.subject_slot for example in examples]),
        subject_position=first,
        answer_position=answer,
        twin=row ^ 1,
        read_in=rng.choice(READ_IN),
    )


def batches(recipe: Recipe, tokenizer: GPT2Tokenizer) -> Iterator[Batch]:
    """Yield one batch per step; stories of like length come together, to save padding."""
    rng = random.Random(recipe.seed)
    step = 0
    while step < recipe.steps:
        names, simple = names_in_play(recipe, step), step < recipe.full_text_from
        pool = [four_versions(tokenizer, rng, names, simple) for _ in range(8 * recipe.stories)]
        pool = [story for story in pool if len(story[0].ids) <= recipe.longest]
        pool.sort(key=lambda story: len(story[0].ids))
        groups = [
            pool[start : start + recipe.stories]
            for start in range(0, len(pool) - recipe.stories + 1, recipe.stories)
        ]
        rng.shuffle(groups)
        for group in groups[: recipe.steps - step]:
            yield collate(group, recipe, rng)
            step += 1


def names_in_play(recipe: Recipe, step: int) -> list[str]:
    """Take a few names at first, and step by step all: matching is learned on few."""
    grown = (step - recipe.more_names_from) / (recipe.all_names_from - recipe.more_names_from)
    share = min(max(grown, 0.0), 1.0)
    return NAMES[: round(recipe.first_names + share * (len(NAMES) - recipe.first_names))]


class Interchange:
    """Exchanges the residual stream between the versions of a story, while `batch` is set.

    After block 1 the subject takes over the activations of its twin, the version with the same
    roles and other names: from here on it can carry *which* of the earlier names it repeats,
    but not the name itself. And later positions may look at it in one layer only, which is
    drawn for each batch: before that layer they are replaced by the mean over all four
    versions, and after it the subject is. Every answer stays as it was.

    After interchange intervention training, Geiger et al. 2022, arXiv:2112.00826.
    """

    def __init__(self, model: GPT2LMHeadModel) -> None:
        self.batch: Batch | None = None
        for layer, block in enumerate(model.transformer.h):
            block.register_forward_hook(partial(self.exchange, layer))

    def exchange(
        self, layer: int, block: nn.Module, inputs: tuple, hidden: torch.Tensor
    ) -> torch.Tensor:
        """Forward hook on a block: exchange rows of `hidden`, `[row, position, width]`."""
        batch = self.batch
        if batch is None:
            return hidden
        if layer == SUBJECT_READY_AFTER:
            hidden = torch.where(batch.subject[..., None], hidden[batch.twin], hidden)
        if layer == batch.read_in - 1:
            hidden = torch.where(batch.later[..., None], mean_of_versions(hidden), hidden)
        if layer == batch.read_in:
            hidden = torch.where(batch.subject[..., None], mean_of_versions(hidden), hidden)
        return hidden


def mean_of_versions(hidden: torch.Tensor) -> torch.Tensor:
    """Replace each row by the mean over the versions of its story, which stand together."""
    stories = hidden.unflatten(0, (-1, VERSIONS))
    return stories.mean(dim=1, keepdim=True).expand_as(stories).flatten(0, 1)


class HeadDropout:
    """Silences whole heads at random, while it is on.

    In the layers up to block 1, where few heads would else do everything, more of them.
    """

    def __init__(self, model: GPT2LMHeadModel, recipe: Recipe) -> None:
        self.on = False
        self.heads = recipe.heads
        for layer, block in enumerate(model.transformer.h):
            low = layer <= SUBJECT_READY_AFTER
            share = recipe.drop_low_heads if low else recipe.drop_heads
            block.attn.c_proj.register_forward_pre_hook(partial(self.silence, share))

    def silence(self, share: float, projection: nn.Module, inputs: tuple) -> tuple:
        """Forward pre-hook on the output projection: its input is all heads side by side."""
        if not self.on:
            return inputs
        z = inputs[0].unflatten(-1, (self.heads, -1))
        kept = torch.rand(len(z), 1, self.heads, 1) >= share
        return ((z * kept).flatten(-2),)


def train(
    model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, recipe: Recipe, report_every: int = 100
) -> None:
    """Train a model in place.

    The loss is cross-entropy over all tokens, weighted, plus for a while that of a linear
    readout: from the first subject's residual stream after block 1, which of the names A, B,
    C is it? The readout is thrown away afterwards.
    """
    interchange, head_dropout = Interchange(model), HeadDropout(model, recipe)
    captured: dict[str, torch.Tensor] = {}
    model.transformer.h[SUBJECT_READY_AFTER + 1].register_forward_pre_hook(
        lambda block, inputs: captured.update(hidden=inputs[0])
    )
    readout = nn.Linear(recipe.width, len(NAME_SLOTS))
    parameters = [*model.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(recipe, step)
    )
    model.train()
    progress = tqdm(batches(recipe, tokenizer), total=recipe.steps, unit="step")
    for step, batch in enumerate(progress):
        exchanging = step >= recipe.exchange_from and (step < recipe.mixed_from or step % 2)
        interchange.batch = batch if exchanging else None
        head_dropout.on = step >= recipe.drop_heads_from
        logits = model(batch.ids[:, :-1]).logits
        losses = cross_entropy(logits.transpose(1, 2), batch.ids[:, 1:], reduction="none")
        loss = (losses * batch.weights).sum() / batch.weights.sum()
        rows = torch.arange(len(batch.ids))
        if step < recipe.readout_until:
            guesses = readout(captured["hidden"][rows, batch.subject_position])
            loss = loss + cross_entropy(guesses, batch.subject_slot)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % report_every == report_every - 1:
            answer_loss = losses[rows, batch.answer_position - 1].mean().item()
            progress.set_postfix(loss=f"{loss.item():.3f}", answer=f"{answer_loss:.3f}")
    interchange.batch, head_dropout.on = None, False
    model.eval()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Share of the highest learning rate at a step: it rises, then falls to a fiftieth."""
    return min(1.0, (step + 1) / recipe.warmup) * max(0.02, 1 - step / recipe.steps)


def save(model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, folder: Path) -> None:
    """Write weights, configuration and tokenizer, and the sha256 sums of their files."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_sums(folder)


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise a `FileExistsError` if the folder holds anything and may not be overwritten."""
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(
            f"{folder} is not empty: choose another folder, or add --overwrite to replace it."
        )


def main(arguments: list[str] | None = None) -> None:
    """Train a model, write it, and print the picture that it shows."""
    parser = argparse.ArgumentParser(prog="python -m helpers.training", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the model is written")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    given = parser.parse_args(arguments)
    check_folder(given.folder, given.overwrite)
    recipe = Recipe(seed=given.seed)
    tokenizer = build_tokenizer()
    model = build_model(recipe, tokenizer)
    train(model, tokenizer, recipe)
    save(model, tokenizer, given.folder)
    try:
        print(take_picture(load_model(str(given.folder), device="cpu"), fresh_pairs()).to_text())
    except ValueError as error:
        print(f"This model has not learned the task; try another seed. {error}")


if __name__ == "__main__":
    main()
