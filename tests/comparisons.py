"""A comparison as `qubic_lab.evals.compare` records it, for tests that only read one."""

from typing import Any

QUESTIONS = 8
TOKENS_PER_QUESTION = 32
TOKENS = QUESTIONS * TOKENS_PER_QUESTION


def make_case(**changes: Any) -> dict[str, Any]:
    """Return a case in which the split equals the whole, but for the changes."""
    return {
        "dtype": "fp32",
        "ranks": 2,
        "strategy": "C",
        "layers": [16, 14],
        "batch": 1,
        "questions": QUESTIONS,
        "tokens": TOKENS,
        "token_identity": 1.0,
        "logits_max_abs": 0.0,
        "kl_mean": 0.0,
        "kl_max": 0.0,
        "margin_min": 0.002,
        "measured_as": None,
        "tokens_per_s": 41.2,
        "one_rank_tokens_per_s": 38.5,
        "divergences": [],
    } | changes


def make_cases() -> list[dict[str, Any]]:
    """Return the cases of two dtypes, two batches and three strategies, of which A puts the same layers as B."""
    even = [15, 15]
    return [
        case
        for dtype, speed in (("fp32", 40.0), ("bf16", 61.5))
        for batch in (1, 4)
        for case in (
            make_case(dtype=dtype, batch=batch, strategy="A", layers=even, measured_as="B", tokens_per_s=speed * batch),
            make_case(dtype=dtype, batch=batch, strategy="B", layers=even, tokens_per_s=speed * batch),
            make_case(dtype=dtype, batch=batch, strategy="C", tokens_per_s=speed * batch * 1.05),
        )
    ]


def make_reference(**changes: Any) -> dict[str, Any]:
    """Return a comparison with the reference library in which all tokens agree, but for the changes."""
    return {
        "dtype": "fp32",
        "library": "transformers 5.24.0",
        "questions": QUESTIONS,
        "tokens": TOKENS,
        "token_identity": 1.0,
        "logits_max_abs": 2.1e-5,
        "kl_mean": 1e-12,
        "kl_max": 3e-11,
        "margin_min": 0.002,
        "divergences": [],
        "differences": [],
    } | changes


def make_difference(**changes: Any) -> dict[str, Any]:
    """Return a place where the reference library chose another token."""
    return {"id": "factual-01", "position": 5, "ours": " the", "theirs": " a", "margin": 0.0004} | changes


def make_variant(**changes: Any) -> dict[str, Any]:
    """Return a change of threads that changes no bit, but for the changes."""
    return {
        "dtype": "fp32",
        "what": "threads",
        "base": 1,
        "other": 2,
        "questions": QUESTIONS,
        "tokens": TOKENS,
        "token_identity": 1.0,
        "logits_max_abs": 0.0,
        "kl_mean": 0.0,
        "kl_max": 0.0,
        "margin_min": 0.002,
        "divergences": [],
    } | changes


def make_accuracy(**changes: Any) -> dict[str, Any]:
    """Return the right answers of the whole model, but for the changes."""
    return {
        "dtype": "fp32",
        "system": "whole, batch 1",
        "questions": 6,
        "correct": 3,
        "cut": 2,
        "low": 0.188,
        "high": 0.812,
    } | changes


def make_pair(**changes: Any) -> dict[str, Any]:
    """Return the paired answers of split and whole, identical, but for the changes."""
    return {
        "dtype": "fp32",
        "baseline": "whole, batch 1",
        "other": "split, 2 ranks, C, batch 1",
        "questions": 6,
        "both": 3,
        "only_baseline": 0,
        "only_other": 0,
        "neither": 3,
        "identical": True,
        "tests": None,
    } | changes


def make_answers() -> list[dict[str, Any]]:
    """Return one answer a kind; markup in them must come out as text."""
    return [
        {
            "id": f"{kind}-01",
            "kind": kind,
            "question": f"What is <b>{kind}</b> & why?",
            "answer": f"the reference for {kind}",
            "text": f"The model's {kind} answer is <script>alert(1)</script>\n1. first\n2. second",
            "tokens": TOKENS_PER_QUESTION,
            "correct": None if kind == "creative" else False,
            "cut": True,
        }
        for kind in ("factual", "analytical", "technical", "creative")
    ]


def make_comparison(**changes: Any) -> dict[str, Any]:
    """Return a comparison whose extremes follow from its cases, but for the changes."""
    cases = changes.get("cases", make_cases())
    return {
        "token_identity": min(case["token_identity"] for case in cases),
        "logits_max_abs": max(case["logits_max_abs"] for case in cases),
        "model": "smollm2",
        "model_hash": "ab12" * 16,
        "candidate": "",
        "candidate_hash": "",
        "meaningless": False,
        "device": "cpu",
        "threads": 1,
        "commit": "ab12cd34ef56 + changes",
        "seed": 0,
        "questions": QUESTIONS,
        "checkable": 6,
        "max_new_tokens": TOKENS_PER_QUESTION,
        "equivalence_margin": 0.03,
        "cases": cases,
        "reference": [
            make_reference(),
            make_reference(
                dtype="bf16", token_identity=0.97, logits_max_abs=0.31, differences=[make_difference(margin=0.06)]
            ),
        ],
        "variants": [make_variant()],
        "accuracy": [make_accuracy()],
        "paired": [make_pair()],
        "answers": make_answers(),
    } | changes
