"""The accuracy study finds a planted difference, however small, and says by name what is not the model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparisons import (
    make_accuracy,
    make_answer,
    make_case,
    make_cases,
    make_comparison,
    make_difference,
    make_pair,
    make_reference,
    make_variant,
)
from headlines import told
from models import tiny_model
from safetensors.torch import load_file, save_file

from qubic_lab.errors import InputError, ModelError
from qubic_lab.evals.compare import compare, reference_answers
from qubic_lab.evals.comparison import Divergence, paired_tests
from qubic_lab.evals.comparison_plan import ComparisonConfig
from qubic_lab.model.checkpoint import WEIGHTS
from qubic_lab.model.split import split_checkpoint
from qubic_lab.runs.limits import Limits
from qubic_lab.runs.notebook import NotebookError, run_notebook
from qubic_lab.runs.parameters import read_source
from qubic_lab.studies import accuracy_comparison as study
from qubic_lab.studies import accuracy_findings as words
from qubic_lab.studies.finding import Finding
from qubic_lab.studies.style import percent


def plant(model: Path, out: Path, name: str, choose: Callable[..., torch.Tensor] = torch.argmax) -> Path:
    """Copy a model with one of its weights, chosen by its size, changed by 1 %."""
    shutil.copytree(model, out)
    weights = load_file(out / WEIGHTS)
    flat = weights[name].view(-1)
    before = flat.clone()
    flat[choose(flat.abs())] *= 1.01
    assert (flat != before).sum() == 1
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})
    return out


@pytest.fixture
def asked(tiny: Path, shared_ranks: None) -> dict[str, Any]:
    """What all comparisons here ask; the ranks are those that all tests share."""
    few = {"strategies": ["C"], "batches": [1], "dtypes": ["fp32"], "limit": 4, "max_new_tokens": 8}
    return {"model": str(tiny), **few}


@pytest.mark.dist
@pytest.mark.parametrize(
    ("name", "choose"),
    [
        ("model.layers.0.mlp.down_proj.weight", torch.argmax),
        ("model.layers.3.self_attn.v_proj.weight", torch.argmax),
        ("model.norm.weight", torch.argmax),
        ("model.layers.2.mlp.up_proj.weight", torch.argmin),  # turns no token
    ],
)
def test_one_weight_changed_by_one_percent_is_found(
    name: str, choose: Callable[..., torch.Tensor], asked: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    candidate = plant(tiny, tmp_path / "planted", name, choose)
    result = compare(ComparisonConfig(**asked, candidate=str(candidate)))
    assert result.logits_max_abs > 0.0
    assert result.cases[0].kl_max > 0.0 or choose is torch.argmin
    assert result.candidate_hash != result.model_hash
    assert not words.is_identical(result.cases[0])
    first = str(words.findings(result)[0])
    assert str(candidate) in first and ("is not " in first or "not bit-equal" in first)
    assert result.reference[0].token_identity == 1.0, "the reference is still compared with the model itself"


@pytest.mark.dist
def test_rounded_weights_are_another_model_with_a_price_that_the_tables_show(asked: dict[str, Any], tiny: Path) -> None:
    result = compare(ComparisonConfig(**asked, ranks=(1, 2), quantization="int8"))
    assert (result.candidate, result.verdict, result.same_model) == (f"{tiny} in int8", "DIFFERENT", False)
    one, two = result.cases
    assert 0.0 < one.kl_mean == two.kl_mean < 0.1, "the ranks are the same rounded model"
    assert study.case_rows(result)[0]["mean KL (nats)"] != "0 exactly"
    assert result.reference[0].token_identity == 1.0, "the reference is still compared with the model itself"


@pytest.mark.dist
def test_a_shipped_split_is_the_model_and_refused_once_a_weight_changes(
    asked: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    parts = tmp_path / "parts"
    split_checkpoint(tiny, parts, (2, 2), "C")
    intact = compare(ComparisonConfig(**asked, candidate=str(parts)))
    assert (intact.token_identity, intact.logits_max_abs) == (1.0, 0.0)
    assert intact.candidate_hash == intact.model_hash
    assert [case.layers for case in intact.cases] == [(2, 2)]
    plant(parts / "rank-1", tmp_path / "other", "model.layers.3.mlp.down_proj.weight")
    shutil.rmtree(parts / "rank-1")
    shutil.copytree(tmp_path / "other", parts / "rank-1")
    moved = parts.rename(tmp_path / "changed")
    with pytest.raises(ModelError, match="written: copy the folder again"):
        compare(ComparisonConfig(**asked, candidate=str(moved)))


def test_the_reference_answers_alike_alone_and_in_groups(tiny: Path) -> None:
    prompts = [list(range(10, 10 + length)) for length in (3, 17, 9, 30, 5)]
    alone = list(reference_answers(tiny, "fp32", prompts, 24, threads=1))
    grouped = list(reference_answers(tiny, "fp32", prompts, 24, threads=1, batch=3))
    assert len(alone) == len(grouped) == len(prompts)
    for (tokens, logits_TV), (others, others_TV) in zip(alone, grouped, strict=True):
        assert tokens == others and logits_TV.shape == others_TV.shape
        assert abs(logits_TV - others_TV).max() < 1e-3


@pytest.mark.dist
def test_a_candidate_of_another_vocabulary_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", vocab_size=400)
    with pytest.raises(InputError, match=r"has 400 tokens and model .* 320"):
        compare(ComparisonConfig(**asked, candidate=str(other)))


@pytest.mark.dist
def test_the_same_model_is_found_to_be_the_same_in_every_respect(asked: dict[str, Any]) -> None:
    result = compare(ComparisonConfig(**{**asked, "limit": 66, "max_new_tokens": 2, "batches": [1, 4]}))
    assert (result.questions, result.checkable, len(result.answers)) == (66, 49, 66)
    assert result.answers[-1].id == "comparison-01"
    split = [pair for pair in result.paired if pair.other.startswith("split")]
    assert [(pair.identical, pair.tests) for pair in split] == [(True, None)] * 2
    assert [variant.what for variant in result.variants] == ["threads", "batch"]
    for case in result.cases:
        assert case.kl_max == 0.0 and case.margin_min >= 0.0
    ways = {each.system for each in result.accuracy}
    assert {"whole, batch 1", "whole, batch 4", "split, 2 ranks, C, batch 4"} < ways
    assert all(row.correct is None for row in result.answers if row.kind == "creative")
    assert any("need no test" in str(each) for each in words.findings(result))


@pytest.mark.slow
@pytest.mark.dist
def test_the_notebook_fails_on_a_planted_difference_and_records_what_it_found(tiny: Path, tmp_path: Path) -> None:
    candidate = plant(tiny, tmp_path / "planted", "model.layers.0.mlp.down_proj.weight")
    root, folder = Path(__file__).parents[1], tmp_path / "run"
    folder.mkdir()
    asked = {"model": str(tiny), "questions": 2, "max_new_tokens": 6, "strategies": ["C"], "batches": [1]}
    source = read_source(root / "notebooks" / "accuracy_comparison.ipynb")
    parameters = {**asked, "candidate": str(candidate)}
    with pytest.raises(NotebookError, match="AssertionError: The split candidate"):
        run_notebook(source, parameters, root=root, folder=folder, limits=Limits(), on_cell=lambda cell, cells: None)
    findings = json.loads((folder / "results" / "findings.json").read_text())
    assert str(candidate) in str(Finding.read(findings["findings"][0]))
    assert (folder / "tables" / "cases.parquet").exists()


def test_findings_name_changes_accuracy_and_tests() -> None:
    tests = paired_tests(only_baseline=2, only_other=1, questions=100)
    parted = make_variant(divergences=(Divergence("a", 3, 0.02),), logits_max_abs=0.1)
    result = make_comparison(
        variants=(make_variant(), make_variant(logits_max_abs=1e-5), parted),
        accuracy=(make_accuracy(),),
        paired=(make_pair(), make_pair(other="transformers", identical=False, tests=tests, questions=100)),
    )
    nothing, digits, answers = map(str, words.variant_findings(result))
    assert nothing.endswith("changed nothing: tokens and logits are equal bit for bit.")
    assert "changed no token; logits differ by up to 0.00001" in digits
    assert "changed 1 of 8 answers (the model's own margin is up to 0.02)" in answers
    [right] = map(str, words.accuracy_findings(result))
    assert "3 of 6 checkable questions" in right and "33.3 % of the answers were cut at 32 tokens" in right
    same, tested = map(str, words.paired_findings(result))
    assert same.endswith("identical to the whole model's and need no test: 1 run of the split model.")
    assert "accuracy differs by −1.0 points" in tested
    assert "McNemar p = 1, not shown to be equivalent within 3 points; with 100 questions a difference of " in tested


def test_cases_and_questions_are_counted_once_and_ways_that_are_identical_drawn_once() -> None:
    result = make_comparison()
    labels = [words.case_label(case, result) for case in words.measured_cases(result)]
    assert labels[:2] == ["fp32, 2 ranks, A = B, batch 1", "fp32, 2 ranks, C, batch 1"]
    assert (len(labels), len(study.case_rows(result))) == (8, len(result.cases))
    assert [row["verdict"] for row in study.answer_rows(result)].count("not checkable") == 1
    answers = tuple(make_answer(kind, question=str(number)) for number, kind in enumerate("bab"))
    assert [row["question"] for row in study.answer_rows(make_comparison(answers=answers))] == ["0", "1"]
    assert study.paired_rows(result)[0]["result"] == "identical, no test needed"
    assert [row["tokens equal"] for row in study.variant_rows(result)] == [percent(1.0)]
    systems = ("whole, batch 1", *(f"split, 2 ranks, {strategy}, batch 1" for strategy in "CB"), "transformers 5.24.0")
    pairs = tuple(make_pair(other=other) for other in systems[1:])
    found = make_comparison(accuracy=tuple(map(make_accuracy, systems)), paired=pairs)
    [axes] = study.accuracies(found).axes
    drawn = ["fp32, whole, batch 1", "fp32, split, 2 ranks, C, batch 1", "fp32, transformers 5.24.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == drawn
    assert "(%)" in axes.get_xlabel()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "The split smollm2 equals smollm2 bit for bit in 8 answers."),
        (
            {"cases": [*make_cases(), make_case(batch=8, logits_max_abs=0.00025)]},
            "but not bit-equal logits. Logits differ by up to 0.00025 in 1 of 9 cases.",
        ),
        (
            {"cases": [make_case(token_identity=0.5)]},
            "The split smollm2 is not smollm2: 100 % of 8 questions have identical answers; 1 of 1 cases differ.",
        ),
        ({"cases": [make_case(token_identity=0.5)]}, f"batch 1), {percent(0.5)} of the tokens agree."),
        ({"candidate": "parts"}, "The split candidate parts equals smollm2"),
    ],
)
def test_identity_in_words(changes: dict[str, Any], expected: str) -> None:
    assert expected in " ".join(told(words.findings(make_comparison(**changes)), "sameness"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "chose the same 256 tokens; logits differ by up to 0.000021."),
        ({"differences": (make_difference(0.0004),)}, "rounding explains it (margin up to 0.0004)"),
        ({"differences": (make_difference(0.2),)}, "rounding does not explain it"),
        ({"dtype": "bf16", "differences": (make_difference(0.06),)}, "margin there is up to 0.06"),
    ],
)
def test_the_reference_in_words(changes: dict[str, Any], expected: str) -> None:
    [found] = words.reference_findings(make_comparison(reference=(make_reference(**changes),)))
    assert expected in str(found)


def test_only_wide_fp32_margins_are_unexplained() -> None:
    narrow, wide = make_difference(0.0004), make_difference(0.001)
    reference = (make_reference(differences=(narrow, wide)), make_reference(dtype="bf16", differences=(wide,)))
    assert study.unexplained_differences(make_comparison(reference=reference)) == [wide]
