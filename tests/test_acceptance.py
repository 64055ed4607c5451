from comparisons import make_case, make_cases, make_comparison, make_difference, make_reference

from qubic_lab.runs.acceptance import Row, judge
from qubic_lab.studies.accuracy_comparison import (
    case_label,
    difference,
    example_answers,
    identical_questions,
    identity_sentence,
    measured_cases,
    percent,
    reference_sentences,
    unexplained_differences,
)


def row(rows: list[Row], id: str) -> Row:
    (found,) = (row for row in rows if row.id == id)
    return found


def test_equal_answers_pass_with_their_sample_and_interval():
    found = row(judge({"accuracy/k1": make_comparison(questions=64)}), "11.6")
    assert (found.verdict, found.reason, found.run) == ("pass", "", "accuracy/k1")
    assert "100\N{NO-BREAK SPACE}% of the tokens" in found.measured
    assert "2,048 compared" in found.measured
    assert "64 of 64 questions" in found.measured
    assert "94.3\N{NO-BREAK SPACE}% to 100\N{NO-BREAK SPACE}%" in found.measured


def test_a_pass_on_few_questions_or_random_weights_says_so():
    found = row(judge({"accuracy/k1": make_comparison(meaningless=True)}), "11.6")
    assert found.verdict == "pass"
    assert "8 of 50 questions" in found.reason
    assert "random weights" in found.reason


def test_the_least_favourable_run_decides():
    worse = make_comparison(cases=[make_case(token_identity=0.94, divergences=[{"id": "factual-01", "position": 3}])])
    found = row(judge({"accuracy/good": make_comparison(), "accuracy/worse": worse}), "11.6")
    assert (found.verdict, found.run) == ("fail", "accuracy/worse")
    assert "7 of 8 questions" in found.measured


def test_exactly_the_limit_is_not_above_it():
    assert row(judge({"a/k": make_comparison(cases=[make_case(token_identity=0.95)])}), "11.6").verdict == "fail"


def test_the_backend_that_did_not_run_is_named_as_not_measured():
    found = row(judge({"accuracy/k1": make_comparison()}), "11.4")
    assert (found.verdict, found.reason) == ("not measured here", "missing: NCCL on GPU")
    assert found.measured == "gloo on CPU, up to 2 ranks"
    found = row(judge({"accuracy/k1": make_comparison(device="cuda:0")}), "11.4")
    assert (found.verdict, found.reason) == ("not measured here", "missing: gloo on CPU")
    both = judge({"a/k1": make_comparison(), "a/k2": make_comparison(device="cuda")})
    assert row(both, "11.4").verdict == "pass"


def test_without_a_comparison_nothing_is_judged():
    assert {(row.verdict, row.measured, row.run) for row in judge({})} == {("not measured here", "", None)}


def test_a_case_that_stands_for_others_is_counted_once_and_named_by_all():
    comparison = make_comparison()
    labels = [case_label(case, comparison) for case in measured_cases(comparison)]
    assert labels[:2] == ["fp32, 2 ranks, A = B, batch 1", "fp32, 2 ranks, C, batch 1"]
    assert len(labels) == 8


def test_a_question_that_differs_in_two_cases_is_one_question():
    cases = [make_case(batch=batch, divergences=[{"id": "factual-01", "position": 3}]) for batch in (1, 4)]
    assert identical_questions(make_comparison(cases=cases)) == 7


def test_identity_in_words():
    assert identity_sentence(make_comparison()) == (
        "The split smollm2 gave the same tokens as the whole model in all 8 cases "
        "(fp32 and bf16, 2,048 tokens compared); its logits are equal bit for bit."
    )
    almost = identity_sentence(make_comparison(cases=[*make_cases(), make_case(batch=8, logits_max_abs=0.00025)]))
    assert "but not bit for bit: logits differ by up to 0.00025 in 1 of 9 cases" in almost
    different = identity_sentence(make_comparison(cases=[make_case(token_identity=0.5, logits_max_abs=2.0)]))
    assert "is not the whole model: 1 of 1 cases differ" in different
    assert "only 50\N{NO-BREAK SPACE}% of the tokens agree" in different


def test_reference_in_words():
    def sentence(**changes: object) -> str:
        return reference_sentences(make_comparison(reference=[make_reference(**changes)]))[0]

    assert "chose the same 256 tokens; the largest difference of a logit is 0.000021" in sentence()
    assert "which rounding explains" in sentence(differences=[make_difference(margin=0.0004)])
    assert "which rounding does not explain" in sentence(differences=[make_difference(margin=0.2)])
    assert "margin is up to about 0.06" in sentence(dtype="bf16", differences=[make_difference(margin=0.06)])


def test_only_wide_fp32_margins_are_unexplained():
    narrow, wide = make_difference(margin=0.0004), make_difference(margin=0.001)
    reference = [make_reference(differences=[narrow, wide]), make_reference(dtype="bf16", differences=[wide])]
    assert unexplained_differences(make_comparison(reference=reference)) == [wide]


def test_examples_are_the_first_of_each_kind():
    answers = [{"id": str(number), "kind": kind} for number, kind in enumerate(["b", "a", "b"])]
    assert [answer["id"] for answer in example_answers(make_comparison(answers=answers))] == ["0", "1"]


def test_all_and_nothing_are_said_only_where_they_are_true():
    assert percent(1.0) == "100\N{NO-BREAK SPACE}%"
    assert percent(0.99999) == "99.9\N{NO-BREAK SPACE}%"
    assert difference(0.0) == "0 exactly"
    assert difference(3e-12) == "0.000000000003"
