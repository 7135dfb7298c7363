"""Measures of what a model predicts, and the scale from the corrupted to the clean run."""

import torch

MIN_DIFFERENCE = 0.05


def logit_diff(
    logits: torch.Tensor,
    answers: torch.Tensor,
    foils: torch.Tensor,
    clean_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logit of the answer minus logit of the foil, for each prompt.

    The softmax turns it into log(probability of answer / probability of foil), since what
    all logits share cancels. Used for this task by Wang et al. 2022, arXiv:2211.00593.

    Args:
        logits: at the last position, `[pair, vocabulary]`.
        answers: token ids, `[pair]`.
        foils: token ids, `[pair]`.
        clean_logits: not used; sweeps give them to every metric.

    Returns:
        One difference per prompt, `[pair]`, in logits (natural-log units).

    Raises:
        ValueError: the shapes are others.
    """
    if logits.ndim != 2 or not len(logits) == len(answers) == len(foils):
        raise ValueError(
            "logit_diff needs logits [pair, vocabulary], of one position, and as many answers "
            f"and foils, but got shapes {tuple(logits.shape)}, {tuple(answers.shape)} and "
            f"{tuple(foils.shape)}."
        )
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows, answers.to(logits.device)] - logits[rows, foils.to(logits.device)]


def answer_probability(
    logits: torch.Tensor,
    answers: torch.Tensor,
    foils: torch.Tensor | None = None,
    clean_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Probability of the answer among all tokens, for each prompt.

    Args:
        logits: at the last position, `[pair, vocabulary]`.
        answers: token ids, `[pair]`.
        foils: not used, like the next; sweeps give them to every metric.
        clean_logits: not used.

    Returns:
        One probability per prompt, `[pair]`.
    """
    rows = torch.arange(len(logits), device=logits.device)
    return logits.softmax(dim=-1)[rows, answers.to(logits.device)]


def kl_from_clean(
    logits: torch.Tensor,
    answers: torch.Tensor,
    foils: torch.Tensor,
    clean_logits: torch.Tensor,
) -> torch.Tensor:
    """Kullback-Leibler divergence of a run's prediction from that of the clean run.

    The sum over all tokens of p_clean · (log p_clean − log p): 0 where both predict the same,
    and larger the more they differ, in whichever words.

    Args:
        logits: at the last position, `[pair, vocabulary]`.
        answers: not used, like the next; sweeps give them to every metric.
        foils: not used.
        clean_logits: those of the clean runs, `[pair, vocabulary]`.

    Returns:
        One divergence per prompt, `[pair]`, in nats.
    """
    log_clean, log_now = clean_logits.log_softmax(dim=-1), logits.log_softmax(dim=-1)
    return (log_clean.exp() * (log_clean - log_now)).sum(dim=-1)


def recovered(patched: torch.Tensor, clean: torch.Tensor, corrupted: torch.Tensor) -> torch.Tensor:
    """Place a patched run between the corrupted run, 0, and the clean run, 1.

    Values outside 0 to 1 are possible: a patch can overshoot or do harm.

    Args:
        patched: the metric of the patched runs, of a shape that the others fit.
        clean: the metric of the clean runs, `[pair]`.
        corrupted: the metric of the corrupted runs, `[pair]`.

    Raises:
        ValueError: a value is not finite, the shapes do not fit, or clean and corrupted are
            closer than `MIN_DIFFERENCE`, so that the scale would blow up noise.
    """
    clean, corrupted, patched = (torch.as_tensor(x) for x in (clean, corrupted, patched))
    for name, values in (("patched", patched), ("clean", clean), ("corrupted", corrupted)):
        if not values.isfinite().all():
            raise ValueError(f"The metric of a {name} run is not a finite number: {values}.")
    difference = clean - corrupted
    scaled = (patched - corrupted) / difference
    if scaled.shape != patched.shape:
        raise ValueError(
            f"The shapes do not fit: patched {tuple(patched.shape)}, clean {tuple(clean.shape)}, "
            f"corrupted {tuple(corrupted.shape)}."
        )
    if (difference.abs() < MIN_DIFFERENCE).any():
        closest = int(difference.abs().argmin())
        smallest = difference.abs().min()
        which = f"For pair {closest} the" if difference.numel() > 1 else "The"
        raise ValueError(
            f"{which} clean and corrupted runs differ by only {smallest:.4f}, less than "
            f"{MIN_DIFFERENCE}: dividing by it would blow up noise. Choose pairs, or a model, with "
            "a larger difference, or report the metric itself (normalize=False in sweeps)."
        )
    return scaled
