"""What the shipped model must show, on prompts that were never trained on."""

import random
import re

import pytest
import torch
from conftest import ROOT

from helpers.corpus import NAMES, is_held_out
from helpers.picture import PATCHED, fresh_pairs, take_picture
from helpers.prompts import load_pairs

CARD = ROOT / "data" / "README.md"


@pytest.fixture(scope="module")
def fresh_picture(model):
    return take_picture(model, fresh_pairs())


@pytest.fixture(scope="module", params=["fresh", "file"])
def picture(request, model):
    if request.param == "fresh":
        return request.getfixturevalue("fresh_picture")
    return take_picture(model, load_pairs(kind="swap"))


def test_fresh_pairs_are_many_varied_and_held_out():
    pairs = fresh_pairs()
    assert len(pairs) > PATCHED >= 100
    assert len({pair.template for pair in pairs[:PATCHED]}) >= 20
    assert sum(pair.order == "ABBA" for pair in pairs) == len(pairs) / 2
    assert all(is_held_out(pair.answer.strip(), pair.foil.strip()) for pair in pairs)


HAND_WRITTEN = (
    "Yesterday {A} and {B} walked into the cinema, and {S} offered an umbrella to",
    "After a long week, {A} and {B} finally met at the station. It was late. {S} gave a wallet to",
    "{A} saw {B} at the airport, so {S} sent a book to",
    "There was a party. {A} and {B} were invited, and {S} brought a present for",
    "{C} stayed at home. {A} and {B} went to the park, and {S} gave a ring to",
    "After {A} and {B} went to the school with the dog of {C}, {S} gave a book to",
    "When {A} and {B} played a game in the garden, {S} threw the ball to",
    "As {A} and {B} crossed the old bridge, {S} whispered a secret to",
    "Once upon a time {A} and {B} lived in a small village. One morning, {S} gave a ring to",
    "In the kitchen, {A} and {B} baked a cake for the teacher. Then {S} gave a slice of cake to",
)


def test_it_does_the_task_in_sentences_that_its_grammar_cannot_make(model):
    rng = random.Random(0)
    right = []
    for sentence in HAND_WRITTEN:
        for order in ("AB", "BA"):
            for _ in range(10):
                names = dict(zip("ABC", rng.sample(NAMES, 3), strict=True))
                prompt = sentence.format(**names, S=names[order[0]])
                answer, foil = model.tokenizer.encode(f" {names[order[1]]} {names[order[0]]}")
                with torch.no_grad(), model.trace(prompt):
                    logits = model.lm_head.output[0, -1].save()
                right.append(bool(logits[answer] > logits[foil]))
    assert sum(right) / len(right) >= 0.95


def test_the_model_does_the_task_in_both_orders(picture):
    assert (picture.behaviour["answer beats foil"] >= 0.99).all()
    assert (picture.behaviour["clean"] >= 3).all()
    assert (picture.behaviour["corrupted"] <= -3).all()


def test_the_clue_moves_from_the_second_subject_to_the_end(picture):
    third = len(picture.stream) // 3
    lower, upper = picture.stream.iloc[:third], picture.stream.iloc[-third:]
    assert (lower["second subject"] >= 0.7).all()
    assert (lower["last"] <= 0.2).all()
    assert (upper["second subject"] <= 0.2).all()
    assert (upper["last"] >= 0.7).all()


def test_several_heads_in_several_layers_do_it(picture):
    strong = picture.heads[picture.heads["all"] >= 0.05]
    assert len(strong) >= 4
    assert strong.index.get_level_values("layer").nunique() >= 2
    assert (picture.heads["all"] <= 0.8).all()
    assert (picture.heads["second subject"] >= 0.05).any()
    assert (picture.heads["last"] >= 0.05).any()


def test_the_card_shows_the_picture(fresh_picture):
    shown = re.search(r"<!-- picture -->\n```\n(.*?)\n```", CARD.read_text(), re.DOTALL)[1]
    measured = fresh_picture.to_text()
    assert len(shown.split()) == len(measured.split())
    for on_card, now in zip(shown.split(), measured.split(), strict=True):
        if re.fullmatch(r"-?\d+\.\d+", now):
            assert float(on_card) == pytest.approx(float(now), abs=0.011)
        else:
            assert on_card == now
