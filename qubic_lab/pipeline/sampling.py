"""Sampling of tokens from logits; a request gets the same tokens whatever runs beside it."""

from collections.abc import Sequence

import numpy as np
import torch

from qubic_lab.pipeline.message import LOGPROB_COLUMNS, NO_LOGPROBS, NO_TOKEN, Work


def choose_token(logits_V: torch.Tensor, work: Work) -> int:
    """Choose the token number `work.sample` of a request from fp32 logits of shape (V,).

    Temperature 0 takes the largest logit (the first of equal ones). Otherwise the kept tokens (top-k, then nucleus
    sampling, arXiv 1904.09751) are drawn by inverting their cumulative distribution at a number that depends only on
    the request's seed and the token's index.
    """
    if work.temperature == 0.0:
        return int(logits_V.argmax())
    scaled_V = logits_V.cpu().double() / work.temperature
    if work.top_k == 0 and work.top_p == 1.0:
        return _draw(torch.softmax(scaled_V, dim=0), work)
    kept = min(work.top_k or scaled_V.numel(), scaled_V.numel())
    values, tokens = torch.sort(scaled_V, descending=True, stable=True)
    probabilities = torch.softmax(values[:kept], dim=0)
    if work.top_p < 1.0:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities[before < work.top_p]  # the first token always stays
    return int(tokens[_draw(probabilities, work)])


def log_probabilities(logits_NV: torch.Tensor, works: Sequence[Work]) -> torch.Tensor:
    """Return the log-probabilities of the chosen and the likeliest tokens, (works, LOGPROB_COLUMNS) fp64, on the CPU.

    They are the model's, before temperature and truncation.
    """
    found = torch.zeros(len(works), LOGPROB_COLUMNS, dtype=torch.float64)
    for row, (work, logits_V) in enumerate(zip(works, logits_NV.cpu().double(), strict=True)):
        if work.logprobs == NO_LOGPROBS or work.token == NO_TOKEN:
            continue
        logprobs_V = torch.log_softmax(logits_V, dim=0)
        found[row, 0] = logprobs_V[work.token]
        values, tokens = logprobs_V.topk(min(work.logprobs, logprobs_V.numel()))
        found[row, 1 : 1 + 2 * len(values)] = torch.stack((tokens.double(), values), dim=1).flatten()
    return found


def _draw(probabilities: torch.Tensor, work: Work) -> int:
    cumulative = probabilities.cumsum(0)
    threshold = _uniform(work.seed, work.sample) * float(cumulative[-1])
    index = int(torch.searchsorted(cumulative, threshold, right=True))
    return min(index, probabilities.numel() - 1)


def _uniform(seed: int, index: int) -> float:
    """Return the random number in [0, 1) of a seed and an index (Philox, a counter-based generator)."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=index)).random())
