"""Votes, their baselines and their tests, against values computed by hand, by brute force and by the binomial law."""

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qubic_lab.errors import InputError
from qubic_lab.evals import self_consistency
from qubic_lab.evals.diversity import distinct, diversity, repetition, self_overlap, words_of
from qubic_lab.evals.paired import difference_estimate, mcnemar_tests, mean_estimate, minimum_detectable_mean
from qubic_lab.evals.recorded import RecordedQuestion, RecordedSample, halves, read_recorded
from qubic_lab.evals.self_consistency import (
    agreeing_wrong,
    best_rule,
    chosen_at,
    curve,
    equal_tokens,
    gains,
    mean_tokens,
    oracle_at,
    right_values,
    vote,
    voted_at,
    votes_against_greedy,
)
from qubic_lab.stats import holm


def row(
    groups: str, id: str = "q", kind: str = "factual", greedy: str = "b", tokens: tuple[int, ...] = ()
) -> RecordedQuestion:
    """A question on which answers of group `a` are right; `-` is no final answer."""

    def sample(letter: str, length: int) -> RecordedSample:
        return RecordedSample(letter, length, None if letter == "-" else ord(letter) - ord("a"), letter == "a")

    samples = tuple(map(sample, groups, tokens or (10,) * len(groups)))
    return RecordedQuestion(id, kind, question="?", reference="a", greedy=sample(greedy, 4), samples=samples)


def weighted(base: RecordedQuestion, *weights: float) -> RecordedQuestion:
    return replace(base, samples=tuple(replace(s, weight=w) for s, w in zip(base.samples, weights, strict=True)))


def signalled(base: RecordedQuestion, name: str, *values: float) -> RecordedQuestion:
    samples = [replace(s, signals=((name, value),)) for s, value in zip(base.samples, values, strict=True)]
    return replace(base, samples=tuple(samples))


def longer(base: RecordedQuestion, factor: int, right: bool, tokens: int) -> RecordedQuestion:
    return replace(base, longer=((factor, RecordedSample("", tokens, 0, right)),))


def test_votes_by_hand_of_one_is_pass_at_1_and_of_all_is_the_plurality() -> None:
    voted = voted_at(row("aabc"), 3)
    # aab, aac: a wins. abc twice: a third each.
    assert voted.right == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)
    assert voted.tied == pytest.approx(2 / 4)
    some = row("aabbbc--")
    assert voted_at(some, 1).right == pytest.approx(oracle_at(some, 1)) == 2 / 8
    assert (oracle_at(row("abbb"), 3), oracle_at(row("bbbb"), 4)) == (pytest.approx(3 / 4), 0.0)
    assert voted_at(some, 8) == self_consistency.ExpectedVote(0.0, 0.0)
    assert voted_at(row("aabb"), 4) == self_consistency.ExpectedVote(0.5, 1.0)
    # Answers without a conclusion do not vote.
    assert voted_at(row("----a"), 5).right == 1.0
    assert voted_at(row("----a"), 4).right == pytest.approx(4 / 5)
    assert voted_at(row("---"), 3) == self_consistency.ExpectedVote(0.0, 0.0)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_vote_is_the_mean_over_all_subsets(k: int, is_weighted: bool) -> None:
    some = weighted(row("abcaab-"), 0.5, 1.5, 0.25, 0.75, 0.0, 1.0, 9.0)
    values = []
    for drawn in itertools.combinations(some.samples, k):
        ballots: dict[int, float] = {}
        for sample in drawn:
            if sample.group is not None:
                ballots[sample.group] = ballots.get(sample.group, 0.0) + (sample.weight if is_weighted else 1.0)
        most = max(ballots.values(), default=0.0)
        leaders = [group for group, votes in ballots.items() if votes == most > 0]
        values.append((0 in leaders) / max(1, len(leaders)))
    assert voted_at(some, k, is_weighted).right == pytest.approx(sum(values) / len(values))


def test_many_samples_are_resampled_near_the_exact_value_and_the_same_each_time() -> None:
    some = row("a" * 14 + "b" * 16)  # 30 over 9 is above what is enumerated
    exact = sum(math.comb(14, right) * math.comb(16, 9 - right) for right in range(5, 10)) / math.comb(30, 9)
    assert voted_at(some, 9).right == pytest.approx(exact, abs=4 * math.sqrt(0.25 / self_consistency.RESAMPLED_SUBSETS))
    assert voted_at(some, 9) == voted_at(some, 9)


def test_weights_turn_a_vote_and_equal_sums_in_another_order_are_a_tie() -> None:
    assert voted_at(weighted(row("abb"), 3, 1, 1), 3, weighted=True).right == 1.0
    assert voted_at(weighted(row("abb"), 3, 1, 1), 3).right == 0.0
    tied = voted_at(weighted(row("aaabbb"), 0.1, 0.2, 0.3, 0.3, 0.2, 0.1), 6, weighted=True)
    assert tied == self_consistency.ExpectedVote(0.5, 1.0)
    assert voted_at(weighted(row("ab"), 0, 0), 2, weighted=True).right == 0.0
    first, second, other = row("aab").samples
    mixed = replace(row("aab"), samples=(first, replace(second, right=False), other))
    assert voted_at(mixed, 3).right == 0.5, "of a group that is right in part, any answer may be given"


def test_one_vote_names_a_winner_and_first_come_breaks_ties() -> None:
    found = [vote(row(groups).samples) for groups in ("bab-a", "-abba", "bba", "--")]
    assert [each and each.text for each in found] == ["b", "a", "b", None]


def test_choosing_one_answer_by_length_or_signal() -> None:
    some = row("abc", tokens=(5, 10, 30))
    assert [chosen_at(some, 3, rule) for rule in ("shortest", "longest", "median length")] == [1, 0, 0]
    assert chosen_at(some, 2, "shortest") == pytest.approx(2 / 3)
    assert chosen_at(row("abb", tokens=(9, 5, 5)), 3, "longest") == 1
    assert chosen_at(row("aab", tokens=(5, 9, 5)), 3, "shortest") == 0.5, "of equal ones, any"
    assert chosen_at(row("bbab", tokens=(1, 20, 11, 2)), 3, "median length") == pytest.approx(2 / 4)
    confident = signalled(some, "logprob", -0.1, -2.0, -3.0)
    assert chosen_at(confident, 3, "logprob") == 1
    assert best_rule([confident, confident], 3) == "shortest", "the first of equal ones"
    assert best_rule([signalled(row("bba"), "logprob", -2.0, -3.0, -0.1)], 3) == "logprob"


def test_the_curve_holds_every_method_with_interval_tokens_and_ties() -> None:
    rows = [longer(row(groups, id=str(n)), 3, True, 50) for n, groups in enumerate(["aab", "abb", "abc", "aaa"])]
    points = {(point.method, point.k): point for point in curve(rows)}
    assert {k for _, k in points} == {1, 3}
    assert points["greedy", 1].right.value == 0 and points["greedy", 1].tokens == 4
    assert points["longer greedy", 3].right.value == 1 and points["longer greedy", 3].tokens == 50
    majority = points["majority", 3]
    assert majority.right.value == pytest.approx((1 + 0 + 1 / 3 + 1) / 4)
    assert majority.right.low < majority.right.value < majority.right.high and majority.right.n == 4
    assert (majority.tokens, majority.tied) == (30, 0.25)
    assert points["majority", 1].right.value == points["pass@1", 1].right.value
    assert points["oracle", 3].right.value == 1.0
    with pytest.raises(InputError, match="with 3 samples of question '0', is 5"):
        curve(rows, ks=[5])
    rows = [row("ab", tokens=(10, 20)), row("ab", tokens=(30, 40))]
    assert [mean_tokens(rows, method, 2) for method in ("pass@1", "majority", "shortest")] == [25, 50, 50]


def test_gains_are_by_type_and_pair_the_questions() -> None:
    rows = [row("aab", id="f1"), row("abb", id="f2"), row("aab", id="t1", kind="technical")]
    found = gains(rows, 3)
    assert list(found) == ["all", "factual", "technical"]
    assert found["factual"].difference.value == pytest.approx(0)
    assert found["technical"].difference.value == pytest.approx(1 / 3)
    assert found["technical"].difference.n == 1 and found["technical"].detectable is None
    assert found["technical"].difference.low <= 0 < 0.9 < found["technical"].difference.high, "one question says little"
    over_oracle = gains(rows, 3, "majority", "oracle")["all"]
    assert over_oracle.difference.value == pytest.approx((0 - 1 + 0) / 3)


def test_the_vote_against_greedy_is_tested_on_the_same_questions() -> None:
    rows = [row("aab", id=f"f{n}") for n in range(6)]  # the vote is right, greedy is not
    rows += [row("aab", id=f"g{n}", greedy="a") for n in range(4)]
    rows += [row("bba", id="t", kind="technical", greedy="a")]
    found = votes_against_greedy(rows, 3)
    assert (found["all"].only_first, found["all"].only_second, found["all"].difference.n) == (6, 1, 11)
    assert found["all"].p == found["all"].holm_p == pytest.approx(2 * (1 + 7) / 2**7)
    assert (found["factual"].p, found["factual"].holm_p) == pytest.approx((2 / 2**6, 2 * 2 / 2**6))
    assert found["technical"].holm_p == 1.0
    assert found["all"].difference.value == pytest.approx(5 / 11)
    assert found["all"].difference.low < 5 / 11 < found["all"].difference.high


def test_equal_tokens_choose_k_on_one_half_and_judge_it_on_the_other() -> None:
    # On the development half three samples (30 tokens) beat one, and are not dearer than the longer greedy (35).
    development = [longer(row("aabab", id=str(n)), 4, False, 35) for n in range(4)]
    held_out = [longer(row("abbab", id=f"h{n}"), 4, n == 0, 45) for n in range(4)]
    found = equal_tokens(development, held_out, 4, ks=(1, 3, 5))
    assert (found.k, found.vote_tokens, found.greedy_tokens) == (3, 30, 45)
    gain = found.gain  # of ten subsets three hold both a
    assert (gain.method.value, gain.baseline.value, gain.difference.value) == pytest.approx((0.3, 0.25, 0.05))
    poor = [longer(each, 4, False, 2) for each in development]
    assert equal_tokens(poor, held_out, 4).k == 1, "nothing is cheaper than one sample"
    with pytest.raises(InputError, match="question '0' has no greedy answer with 8 times"):
        equal_tokens(development, held_out, 8)


def test_agreeing_wrong_answers() -> None:
    rows = [row("bbbb", id="w1"), row("bbba", id="w2"), row("bbaa", id="split"), row("bc-a", id="apart"), row("aaab")]
    found = agreeing_wrong(rows)
    assert found.questions.value == pytest.approx(2 / 5)
    # Wrong pairs that agree: 6 of 6, 3 of 3, 1 of 1, 0 of 3; the last question has one wrong answer only.
    assert found.pairs.value == pytest.approx(3 / 4) and found.pairs.n == 4
    example, _ = found.examples
    assert (example.id, example.text, example.ballots, example.samples) == ("w1", "b", 4, 4)
    assert agreeing_wrong([row("aab")]).pairs is None


def test_what_makes_no_sense_is_refused() -> None:
    creative = replace(row("a"), greedy=RecordedSample("x", 1))
    for rows, method, message in [
        ([creative], "pass@1", "'q' has no right answer"),
        ([], "pass@1", "no recorded questions"),
        ([row("a")], "majorty", "unknown method 'majorty': did you mean 'majority'"),
    ]:
        with pytest.raises(InputError, match=message):
            right_values(rows, method)


def test_halves_split_each_type_by_seed() -> None:
    rows = [row("a", id=f"{kind}{n}", kind=kind) for n in range(10) for kind in ("factual", "technical")]
    rows.append(row("a", id="one more"))
    development, held_out = halves(rows, seed=2)
    assert [sum(each.kind == "factual" for each in half) for half in (development, held_out)] == [5, 6]
    assert sorted([*development, *held_out], key=rows.index) == rows
    assert halves(rows, seed=2) == (development, held_out)
    assert halves(rows, seed=3) != (development, held_out)
    assert {each.id for each in halves(rows[::-1], seed=2)[0]} == {each.id for each in development}


def write_recorded(file: Path, *rows: RecordedQuestion) -> None:
    file.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def test_a_table_comes_back_from_its_file_and_a_broken_one_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    first = longer(signalled(weighted(row("ab-"), 1, 0.5, 0), "logprob", -1, -2, -3.5), 4, True, 9)
    write_recorded(file, first, row("é\u2028", "r"))
    assert read_recorded(file) == (first, row("é\u2028", "r"))
    write_recorded(file, row("ab", "one"), row("ab", "two"))
    good = file.read_text()
    for broken, message in [
        (good.replace('"id": "two"', '"idd": "two"'), r"rows\.jsonl: entry 2: unknown name 'idd': did you mean 'id'"),
        (good.replace('"samples"', '"samplesx"'), r"rows\.jsonl: entry 1: unknown name 'samplesx'"),
        (good.replace("two", "one"), "a question twice"),
        (good + "{", r"rows\.jsonl:3"),
        ("", "holds no recorded answers"),
    ]:
        file.write_text(broken)
        with pytest.raises(InputError, match=message):
            read_recorded(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_recorded(tmp_path / "none.jsonl")


def test_means_and_differences_have_intervals_that_never_claim_certainty() -> None:
    mean = mean_estimate([0.0, 1.0] * 50)
    assert mean.value == 0.5 and mean.low == pytest.approx(0.4, abs=0.02) and mean.high == pytest.approx(0.6, abs=0.02)
    perfect = mean_estimate([1.0] * 20)
    assert perfect.high == 1.0 and perfect.low == pytest.approx(0.839, abs=0.001)  # Wilson's for 20 of 20
    alone = mean_estimate([0.5])
    assert alone.low < 0.1 and alone.high > 0.9
    paired = difference_estimate([1.0, 0.0] * 50, [0.5, 0.0] * 50)
    assert paired.value == 0.25 and paired.low == pytest.approx(0.2, abs=0.02)
    same = difference_estimate([0.5] * 30, [0.5] * 30)
    assert same.low < 0 < same.high and same.value == 0
    few = difference_estimate([1.0, 0.75, 1.0], [0.0, 0.25, 0.5])
    assert few.low < 0 < few.value == pytest.approx(2 / 3), "three questions show nothing"
    worse = difference_estimate([0.0] * 20, [1.0] * 20)
    assert worse.value == worse.low == -1 and -1 < worse.high < -0.6


def test_the_detectable_difference_by_hand() -> None:
    # Differences 1 and 0 by turns: standard deviation sqrt(25/99) over 100 questions; 1.96 + 0.84 standard errors.
    found = minimum_detectable_mean([1.0, 0.0] * 50, [0.0, 0.0] * 50)
    assert found == pytest.approx(2.8016 * math.sqrt(25 / 99) / 10, rel=1e-4)
    assert minimum_detectable_mean([1.0], [0.0]) is None
    assert minimum_detectable_mean([1.0, 0.0], [1.0, 0.0]) is None


def test_holm_by_hand_and_in_any_order() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.5}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
    both = {"x": ([True] * 8, [False] * 8), "y": ([True], [True])}
    tests = mcnemar_tests(both)
    assert tests["x"].p == pytest.approx(2 / 2**8) and tests["x"].holm_p == pytest.approx(4 / 2**8)
    assert tests["y"].p == 1.0 and tests["y"].difference.low < 0 < tests["y"].difference.high


def test_diversity_by_hand() -> None:
    assert words_of("The cat, the CAT's 雨中") == ["the", "cat", "the", "cat", "s", "雨", "中"]
    answers = [["a", "b", "a"], ["a", "c"]]
    assert distinct(answers, 1) == pytest.approx(3 / 5)
    assert distinct(answers, 2) == pytest.approx(3 / 3)
    assert distinct([["a"]], 2) == 0.0
    assert self_overlap(answers) == pytest.approx(1 / 3)
    assert self_overlap([[], []]) == 1.0
    assert repetition(["a", "b", "c", "a", "b", "c"]) == pytest.approx(1 / 4)
    assert repetition(["a", "b"]) == 0.0

    def creative(id: str, *texts: str) -> RecordedQuestion:
        samples = tuple(RecordedSample(text, 2 * len(text.split())) for text in texts)
        return RecordedQuestion(id, "creative", "Sing.", "", RecordedSample("la", 1), samples)

    found = diversity([creative("x", "la la", "la la"), creative("y", "do re", "")])
    assert (found.questions, found.samples, found.words, found.tokens) == (2, 4, 1.5, 3.0)
    assert found.distinct_1.value == pytest.approx((1 / 4 + 1) / 2)
    assert found.self_overlap.value == pytest.approx((1 + 0) / 2)
    assert found.empty.value == pytest.approx((0 + 1 / 2) / 2)
    assert diversity([creative("x", "la")]).self_overlap is None
