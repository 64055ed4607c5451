"""A comparison of a split model with the whole one, for tests that only read one."""

from typing import Any

from examples import example

from qubic_lab.evals.comparison import (
    AnswerRow,
    Case,
    Divergence,
    PairedAccuracy,
    ReferenceComparison,
    SplitComparison,
    SystemAccuracy,
    TokenDifference,
    Variant,
)

QUESTIONS = 8
TOKENS_PER_QUESTION = 32
ALIKE = {"questions": QUESTIONS, "tokens": QUESTIONS * TOKENS_PER_QUESTION, "token_identity": 1.0, "margin_min": 0.002}
DIVERGENCE = Divergence("factual-01", 3, 0.001)


def make_case(**changes: Any) -> Case:
    """Return a case in which the split equals the whole, but for the changes."""
    same = {"dtype": "fp32", "ranks": 2, "strategy": "C", "layers": (16, 14), "batch": 1, **ALIKE}
    return example(Case, **{**same, "tokens_per_s": 41.2, "one_rank_tokens_per_s": 38.5} | changes)


def make_cases() -> list[Case]:
    """Return the cases of two dtypes, two batches and three strategies, of which A puts the same layers as B."""
    even = (15, 15)
    return [
        case
        for dtype in ("fp32", "bf16")
        for batch in (1, 4)
        for case in (
            make_case(dtype=dtype, batch=batch, strategy="A", layers=even, measured_as="B"),
            make_case(dtype=dtype, batch=batch, strategy="B", layers=even),
            make_case(dtype=dtype, batch=batch, strategy="C"),
        )
    ]


def make_reference(**changes: Any) -> ReferenceComparison:
    """Return a comparison with the reference library in which all tokens agree, but for the changes."""
    same = {"dtype": "fp32", "library": "transformers 5.24.0", "logits_max_abs": 2.1e-5, **ALIKE}
    return example(ReferenceComparison, **same | changes)


def make_difference(margin: float = 0.0004) -> TokenDifference:
    """Return a place where the reference library chose another token."""
    return TokenDifference("factual-01", 5, " the", " a", margin)


def make_variant(**changes: Any) -> Variant:
    """Return a change of threads that changes no bit, but for the changes."""
    return example(Variant, **{"dtype": "fp32", "what": "threads", "base": 1, "other": 2, **ALIKE} | changes)


def make_accuracy(system: str = "whole, batch 1") -> SystemAccuracy:
    """Return the right answers of a way of running."""
    return SystemAccuracy("fp32", system, questions=6, correct=3, cut=2, low=0.188, high=0.812)


def make_pair(**changes: Any) -> PairedAccuracy:
    """Return the paired answers of split and whole, identical, but for the changes."""
    same = {"dtype": "fp32", "baseline": "whole, batch 1", "other": "split, 2 ranks, C, batch 1", "identical": True}
    return example(PairedAccuracy, **same | {"questions": 6, "both": 3, "neither": 3} | changes)


def make_answer(kind: str, **changes: Any) -> AnswerRow:
    """Return one answer; markup in it must come out as text."""
    text = f"The model's {kind} answer is <script>alert(1)</script>\n1. first\n2. second"
    plain = {"id": f"{kind}-01", "kind": kind, "question": f"What is <b>{kind}</b> & why?", "text": text, "cut": True}
    return example(AnswerRow, **plain | {"correct": None if kind == "creative" else False} | changes)


def make_comparison(**changes: Any) -> SplitComparison:
    """Return a comparison whose extremes follow from its cases, but for the changes."""
    cases = changes.setdefault("cases", make_cases())
    other = make_reference(dtype="bf16", token_identity=0.97, logits_max_abs=0.31, differences=(make_difference(0.06),))
    plain = {
        "token_identity": min(case.token_identity for case in cases),
        "logits_max_abs": max(case.logits_max_abs for case in cases),
        "model": "smollm2",
        "device": "cpu",
        "questions": QUESTIONS,
        "max_new_tokens": TOKENS_PER_QUESTION,
        "equivalence_margin": 0.03,
        "reference": (make_reference(), other),
        "variants": (make_variant(),),
        "accuracy": (make_accuracy(),),
        "paired": (make_pair(),),
        "answers": tuple(map(make_answer, ("factual", "analytical", "technical", "creative"))),
    } | changes
    return example(SplitComparison, **plain | {"cases": tuple(cases)})
