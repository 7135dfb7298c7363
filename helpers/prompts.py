"""Pairs of clean and corrupted prompts, checked before a model sees them."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from helpers.shipped import DATA, DATA_FILES, check_shipped_files

PROMPT_FILE = DATA / "prompts.csv"


@dataclass(frozen=True)
class PromptPair:
    """One clean and one corrupted prompt, and the two words that are compared.

    Attributes:
        clean: the prompt that the answer completes.
        corrupted: the same prompt, changed so that the answer no longer completes it.
        answer: the right next word of the clean prompt, with its leading space: `" John"`.
        foil: the word that the answer is compared with, likewise.
        kind: how the clean prompt was corrupted: `"swap"`, `"abc"`, or your own word.
        order: `"ABBA"` or `"BABA"`: in which order the names stand, the answer being A.
        template: the name of the sentence pattern.
    """

    clean: str
    corrupted: str
    answer: str
    foil: str
    kind: str = ""
    order: str = ""
    template: str = ""


@dataclass(frozen=True)
class TokenizedPairs:
    """Pairs of one common length, as token ids.

    Attributes:
        clean: ids of the clean prompts, `[pair, position]`.
        corrupted: ids of the corrupted prompts, `[pair, position]`.
        answers: ids of the answers, `[pair]`.
        foils: ids of the foils, `[pair]`.
    """

    clean: torch.Tensor
    corrupted: torch.Tensor
    answers: torch.Tensor
    foils: torch.Tensor


def load_pairs(
    kind: str | None = None,
    order: str | None = None,
    template: str | None = None,
    count: int | None = None,
) -> list[PromptPair]:
    """Read pairs from `data/prompts.csv`, in the order of the file.

    Args:
        kind: only this corruption, `"swap"` or `"abc"`.
        order: only this order of names, `"ABBA"` or `"BABA"`.
        template: only this sentence pattern.
        count: only the first so many; more than there are is an error.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: there are no such pairs, or the file is not as it was committed.
    """
    check_shipped_files(PROMPT_FILE.parent, *DATA_FILES)
    with PROMPT_FILE.open(newline="", encoding="utf-8") as file:
        pairs = [PromptPair(**row) for row in csv.DictReader(file)]
    for field, wanted in (("kind", kind), ("order", order), ("template", template)):
        known = sorted({getattr(pair, field) for pair in pairs})
        if wanted is not None and wanted not in known:
            raise ValueError(f"No pairs of {field} {wanted!r}; there are {', '.join(known)}.")
        pairs = [pair for pair in pairs if wanted is None or getattr(pair, field) == wanted]
    if count is not None and (not isinstance(count, int) or not 0 < count <= len(pairs)):
        raise ValueError(f"count is {count}, but there are {len(pairs)} such pairs to choose from.")
    return pairs[:count]


def check_pair(tokenizer: PreTrainedTokenizerBase, pair: PromptPair) -> None:
    """Raise a `ValueError` if patching between the two prompts would mean nothing."""
    for prompt in (pair.clean, pair.corrupted):
        if not prompt or prompt[-1].isspace():
            raise ValueError(
                f"The prompt {prompt!r} is empty or ends with a space: end it with the last word, "
                "since the space belongs to the next token."
            )
    for name, word in (("answer", pair.answer), ("foil", pair.foil)):
        check_next_token(tokenizer, pair.clean, name, word)
    if pair.answer == pair.foil:
        raise ValueError(f"Answer and foil are both {pair.answer!r}: their difference is always 0.")
    if pair.clean == pair.corrupted:
        raise ValueError(f"Clean and corrupted prompt are the same: {pair.clean!r}.")
    clean, corrupted = (len(tokenizer.encode(text)) for text in (pair.clean, pair.corrupted))
    if clean != corrupted:
        raise ValueError(
            f"The clean prompt has {clean} tokens and the corrupted one {corrupted}, so their "
            "positions do not correspond: replace words by words of equally many tokens. "
            f"Clean: {pair.clean!r}; corrupted: {pair.corrupted!r}."
        )


def check_next_token(tokenizer: PreTrainedTokenizerBase, prompt: str, name: str, word: str) -> None:
    """Raise a `ValueError` unless `word` continues `prompt` as exactly one token."""
    if prompt[-1].isalpha() and word[:1].isalpha():
        raise ValueError(
            f"The {name} {word!r} would run into the last word of {prompt[-20:]!r}: begin it with "
            f"a space, {' ' + word!r}."
        )
    alone = tokenizer.encode(word, add_special_tokens=False)
    added = tokenizer.encode(prompt + word)[len(tokenizer.encode(prompt)) :]
    if len(alone) != 1 or alone != added:
        raise ValueError(
            f"The {name} {word!r} does not follow {prompt[-20:]!r} as one token (on its own it is "
            f"{tokenizer.convert_ids_to_tokens(alone)}): begin it with a space, and choose a word "
            "that the tokenizer keeps whole."
        )


def as_list(pairs: PromptPair | Sequence[PromptPair]) -> list[PromptPair]:
    """Make a list of one pair or several; none at all is an error."""
    pairs = [pairs] if isinstance(pairs, PromptPair) else list(pairs)
    if not pairs:
        raise ValueError("No pairs were given: at least one is needed.")
    return pairs


def tokenize_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: PromptPair | Sequence[PromptPair]
) -> TokenizedPairs:
    """Check pairs and turn them into token ids; all must have the same number of tokens."""
    pairs = as_list(pairs)
    for pair in pairs:
        check_pair(tokenizer, pair)
    clean = [tokenizer.encode(pair.clean) for pair in pairs]
    lengths = sorted({len(ids) for ids in clean})
    if len(lengths) > 1:
        raise ValueError(
            f"The pairs have different numbers of tokens, {lengths}: choose pairs of one length, "
            "for example of one template."
        )
    words = {"add_special_tokens": False}
    return TokenizedPairs(
        clean=torch.tensor(clean),
        corrupted=torch.tensor([tokenizer.encode(pair.corrupted) for pair in pairs]),
        answers=torch.tensor([tokenizer.encode(pair.answer, **words)[0] for pair in pairs]),
        foils=torch.tensor([tokenizer.encode(pair.foil, **words)[0] for pair in pairs]),
    )


def differing_positions(tokenizer: PreTrainedTokenizerBase, pair: PromptPair) -> list[int]:
    """List the positions at which the tokens of the clean and the corrupted prompt differ.

    For a swap pair that is one position, the second subject.
    """
    tokens = tokenize_pairs(tokenizer, pair)
    return (tokens.clean[0] != tokens.corrupted[0]).nonzero().flatten().tolist()


def token_labels(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[str]:
    """Label each position with its index and token, as in `"9 Mary"`.

    The index is needed because a token can occur twice.
    """
    tokens = (tokenizer.decode([token]) for token in tokenizer.encode(prompt))
    return [f"{position} {token.strip()}" for position, token in enumerate(tokens)]


def position_labels(
    tokenizer: PreTrainedTokenizerBase, pairs: PromptPair | Sequence[PromptPair]
) -> list[str]:
    """Label the positions that pairs of one length share, as in `"9 Mary"`.

    Tokens are those of the clean prompts; where they are not the same in all, the token is `…`.
    """
    pairs = as_list(pairs)
    tokenize_pairs(tokenizer, pairs)
    labels = [token_labels(tokenizer, pair.clean) for pair in pairs]
    return [
        alike[0] if len(set(alike)) == 1 else f"{position} …"
        for position, alike in enumerate(zip(*labels, strict=True))
    ]


def name_positions(tokenizer: PreTrainedTokenizerBase, pair: PromptPair) -> dict[str, int]:
    """Find the names in a clean IOI prompt, under the abbreviations of Wang et al. 2022.

    Returns:
        Positions of `IO`, the indirect object, which is the answer; of `S1` and `S2`, the
        subject's first and second mention; and of `END`, the last token.

    Raises:
        ValueError: the answer is not named exactly once, or the foil not exactly twice.
    """
    tokens = tokenize_pairs(tokenizer, pair)
    prompt = tokens.clean[0].tolist()
    answer, foil = tokens.answers.item(), tokens.foils.item()
    if (prompt.count(answer), prompt.count(foil)) != (1, 2):
        raise ValueError(
            f"{pair.clean!r} names the answer {pair.answer!r} {prompt.count(answer)} times and the "
            f"foil {pair.foil!r} {prompt.count(foil)} times, instead of once and twice."
        )
    first = prompt.index(foil)
    second = prompt.index(foil, first + 1)
    return {"IO": prompt.index(answer), "S1": first, "S2": second, "END": len(prompt) - 1}
