"""Scores of prompts are those of generation, token for token, whoever shares their micro-batches, on any ranks."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qubic_lab.core import ChatMessage, Completion, Request, SamplingParams, ScoredToken
from qubic_lab.errors import InputError
from qubic_lab.pipeline import Pipeline, PipelineConfig

pytestmark = pytest.mark.dist

SCORING = SamplingParams(max_new_tokens=0)
# Within a block of 32 scored rows, beyond one chunk of 128, beyond the 512 rows that a single rank takes at once.
LENGTHS = (1, 2, 31, 33, 130, 300, 511)


def prompts(lengths: Sequence[int] = LENGTHS) -> list[tuple[int, ...]]:
    """Random tokens, the same at each call."""
    generator = torch.Generator().manual_seed(9)
    return [tuple(torch.randint(0, 300, (length,), generator=generator).tolist()) for length in lengths]


def scored(lab: Pipeline, asked: Sequence[Request]) -> list[tuple[ScoredToken, ...]]:
    """The scores of prompts that are asked for together."""
    return [answer.completion.prompt_scores for answer in lab.answer_all(asked)]


def timeless(completion: Completion) -> Completion:
    return replace(completion, ttft_ms=0.0, queue_ms=0.0, tokens_per_s=0.0, cached_tokens=0)


CASES = [(1, "fp32", "native"), (1, "bf16", "native"), (2, "fp32", "native"), (2, "bf16", "native")]


@pytest.mark.parametrize(("ranks", "dtype", "kernels"), [*CASES, (1, "fp32", "torch"), (2, "bf16", "torch")])
def test_scores_are_those_of_the_same_tokens_when_they_are_generated(
    ranks: int, dtype: str, kernels: str, of_ranks: Callable[[PipelineConfig], Pipeline], tiny: Path
) -> None:
    """With our own kernels to the last bit."""
    lab = of_ranks(PipelineConfig(model=str(tiny), ranks=ranks, dtype=dtype, kernels=kernels, slots=4, threads=1))
    told = SamplingParams(20, temperature=1.0, ignore_eos=True, logprobs=True, top_logprobs=5)
    for prompt in prompts((1, 33, 140)):
        tokens = list(lab.stream(Request(token_ids=prompt, sampling=told)))
        whole = (*prompt, *(token.id for token in tokens))
        answer = lab.generate(Request(token_ids=whole, sampling=SCORING, prompt_logprobs=5))
        assert (answer.token_ids, answer.text, answer.finish_reason) == ((), "", "length")
        assert (answer.prompt_scores[0].logprob, answer.prompt_scores[0].top_logprobs) == (None, ())
        assert tuple(score.id for score in answer.prompt_scores) == whole
        for score, token in zip(answer.prompt_scores[len(prompt) :], tokens, strict=True):
            assert score.raw == token.raw
            if kernels == "native":
                assert (score.logprob, score.top_logprobs) == (token.logprob, token.top_logprobs)
            else:
                assert score.logprob == pytest.approx(token.logprob, abs=1e-4 if dtype == "fp32" else 0.2)


@pytest.mark.parametrize(("dtype", "kernels"), [("fp32", "native"), ("bf16", "native"), ("bf16", "torch")])
def test_ranks_and_company_do_not_matter(
    dtype: str, kernels: str, one_rank: Pipeline, two_ranks: Pipeline, tiny: Path
) -> None:
    config = PipelineConfig(model=str(tiny), dtype=dtype, kernels=kernels, slots=4, threads=1)
    one_rank.configure(config)
    two_ranks.configure(replace(config, ranks=2))
    asked = [
        Request(token_ids=tokens, sampling=SCORING, prompt_logprobs=n % 3 * 10) for n, tokens in enumerate(prompts())
    ]
    alone = [scored(one_rank, [request])[0] for request in asked]
    assert [len(scores) for scores in alone] == list(LENGTHS)
    assert [{len(score.top_logprobs) for score in scores[1:]} for scores in alone[1:4]] == [{10}, {20}, {0}]
    for lab in (one_rank, two_ranks):
        others = [lab.stream(f"other {n}", max_new_tokens=60, ignore_eos=True) for n in range(3)]
        assert scored(lab, [*asked, *reversed(asked)]) == [*alone, *reversed(alone)]
        for other in others:
            other.cancel()


def test_an_answer_is_the_same_whether_its_prompt_is_scored_or_not(two_ranks: Pipeline, tiny: Path) -> None:
    two_ranks.configure(PipelineConfig(model=str(tiny), ranks=2, slots=4, threads=1))
    [prompt] = prompts([140])
    plain = Request(token_ids=prompt, sampling=SamplingParams(9, temperature=1.0, seed=4, ignore_eos=True))
    both = replace(plain, prompt_logprobs=2)
    alone, answer = (timeless(two_ranks.generate(request)) for request in (plain, both))
    scores = two_ranks.generate(replace(both, sampling=SCORING)).prompt_scores
    assert answer == replace(alone, prompt_scores=scores)
    for known in (3, 9):  # another replica goes on, or has all of it
        again = two_ranks.generate(replace(both, forced_token_ids=answer.token_ids[:known]))
        assert timeless(again) == answer
    assert [timeless(sample) for sample in two_ranks.samples(both, 2)] == [
        answer,
        timeless(two_ranks.generate(replace(both, sampling=replace(both.sampling, seed=5)))),
    ]


def test_what_is_scored_may_fill_the_context_and_is_asked_once(one_rank: Pipeline, tiny: Path) -> None:
    one_rank.configure(PipelineConfig(model=str(tiny), slots=2, threads=1))
    full = Request(token_ids=(7,) * 512, sampling=SCORING, prompt_logprobs=0)
    assert len(one_rank.generate(full).prompt_scores) == 512
    assert len(one_rank.score(token_ids=full.token_ids).logprobs) == 511
    with pytest.raises(InputError, match="samples is 2 and max_new_tokens is 0"):
        one_rank.samples(full, 2)
    for tokens, most in ((512, 1), (513, 0)):
        with pytest.raises(InputError, match=f"{tokens} tokens, the model's context is 512"):
            one_rank.generate(token_ids=(7,) * tokens, max_new_tokens=most, prompt_logprobs=0)


def test_a_scored_prompt_that_is_cancelled_or_broken_leaves_its_slot(one_rank: Pipeline, tiny: Path) -> None:
    one_rank.configure(PipelineConfig(model=str(tiny), slots=1, threads=1))
    request = Request(token_ids=(7,) * 512, sampling=SCORING, prompt_logprobs=20)
    expected = one_rank.generate(request).prompt_scores
    with ThreadPoolExecutor(8) as clients:
        streams = [one_rank.stream(request) for _ in range(8)]
        for stream in streams[::2]:
            stream.cancel()
        kept = list(clients.map(lambda stream: stream.answer().completion.prompt_scores, streams[1::2]))
    assert kept == [expected] * 4


def test_a_chat_of_one_turn_is_a_prompt(one_rank: Pipeline, tiny: Path) -> None:
    one_rank.configure(PipelineConfig(model=str(tiny), slots=2, threads=1))
    options = {"max_new_tokens": 8, "ignore_eos": True, "prompt_logprobs": 0}
    turn = ChatMessage("user", "Wie heißt du?")
    prompt, chat = one_rank.generate(turn.content, **options), one_rank.generate(messages=[turn], **options)
    assert timeless(chat) == replace(timeless(prompt), prompt="")
    longer = one_rank.generate(messages=[ChatMessage("system", "Be brief."), turn], **options)
    joined = b"".join(token.raw for token in longer.prompt_scores).decode()
    assert joined.index("system\nBe brief.") < joined.index("user\nWie heißt du?") < joined.index("assistant\n")
