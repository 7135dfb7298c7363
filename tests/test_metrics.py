"""The metric and the scale, against their definitions."""

import math

import pytest
import torch

from helpers.metrics import (
    MIN_DIFFERENCE,
    answer_probability,
    kl_from_clean,
    logit_diff,
    recovered,
)


def test_logit_diff_is_the_log_of_the_odds():
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    answers, foils = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([29, 28, 27, 26, 25])
    result = logit_diff(logits, answers, foils)
    assert result.shape == (5,)
    for row, (answer, foil) in enumerate(zip(answers, foils, strict=True)):
        p = logits[row].softmax(dim=-1)
        assert result[row].item() == pytest.approx(math.log(p[answer] / p[foil]), abs=1e-5)


def test_logit_diff_changes_sign_with_the_words():
    logits, a, b = torch.tensor([[1.0, 4.0]]), torch.tensor([1]), torch.tensor([0])
    assert logit_diff(logits, a, b).item() == 3
    assert logit_diff(logits, b, a).item() == -3


def test_probability_and_divergence_are_what_they_say():
    clean = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]])
    now = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.2, 0.7]])
    answers, foils = torch.tensor([0, 2]), torch.tensor([1, 1])
    # Logits are logarithms of probabilities up to a constant, which is different in each row.
    logits, clean_logits = now.log() + torch.tensor([[3.0], [-5.0]]), clean.log() + 1
    assert answer_probability(logits, answers).tolist() == pytest.approx([0.25, 0.7])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.25 * math.log(0.25 / 0.5)
    divergence = kl_from_clean(logits, answers, foils, clean_logits)
    assert divergence.tolist() == pytest.approx([expected, 0], abs=1e-6)


def test_recovered_runs_from_corrupted_to_clean():
    clean, corrupted = torch.tensor([4.0, -1.0]), torch.tensor([-2.0, 3.0])
    assert recovered(corrupted, clean, corrupted).tolist() == [0, 0]
    assert recovered(clean, clean, corrupted).tolist() == [1, 1]
    assert recovered((clean + corrupted) / 2, clean, corrupted).tolist() == [0.5, 0.5]
    assert recovered(torch.tensor([7.0, 4.0]), clean, corrupted).tolist() == [1.5, -0.25]


def test_recovered_takes_numbers_and_keeps_shapes():
    assert recovered(1.0, 2.0, 0.0).item() == 0.5
    patched = torch.zeros(3, 2)
    assert recovered(patched, torch.tensor([1.0, 2.0]), torch.zeros(2)).shape == (3, 2)


def test_one_difference_too_small_blames_no_pair():
    with pytest.raises(ValueError, match=r"^The clean and corrupted runs differ by only 0.0100"):
        recovered(0.0, 0.01, 0.0)


def test_shapes_that_do_not_fit():
    three = torch.arange(3.0)
    with pytest.raises(ValueError, match="The shapes do not fit"):
        recovered(torch.zeros(3, 1), three + 1, torch.zeros(3))
    words = torch.tensor([0, 1])
    for logits in (torch.zeros(2, 4, 30), torch.zeros(1, 30)):
        with pytest.raises(ValueError, match="logit_diff needs logits"):
            logit_diff(logits, words, words)


@pytest.mark.parametrize("difference", [0.0, 0.99 * MIN_DIFFERENCE, -0.99 * MIN_DIFFERENCE])
def test_too_small_a_difference(difference):
    corrupted = torch.tensor([1.0, 2.0])
    clean = corrupted + torch.tensor([3.0, difference])
    with pytest.raises(ValueError, match="For pair 1 the clean and corrupted runs differ by only"):
        recovered(torch.zeros(2), clean, corrupted)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_values_that_are_no_numbers(bad, which):
    runs = [torch.tensor([value]) for value in (1.0, 2.0, 0.0)]
    runs[which] = torch.tensor([bad])
    name = ("patched", "clean", "corrupted")[which]
    with pytest.raises(ValueError, match=f"metric of a {name} run is not a finite number"):
        recovered(*runs)
