"""An answer that broke off goes on elsewhere as if nothing had been: from every cut, bit for bit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import grpc
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_model

from qubic_lab.core import Completion, Request, SamplingParams, StreamedToken
from qubic_lab.errors import InputError
from qubic_lab.model.random_model import END_ID, START_ID
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import open_channel
from qubic_lab.wire.services import PIPELINE_SERVICE, stub_of

pytestmark = pytest.mark.dist

GREEDY = SamplingParams(max_new_tokens=12, ignore_eos=True, logprobs=True, top_logprobs=3)
SAMPLED = replace(GREEDY, temperature=1.0, top_k=50, top_p=0.95, seed=11)
# Short; an answer that grows into the next block of 64; more than one chunk of 128.
PROMPT_LENGTHS = (1, 60, 130)

TALE = "xé🙂<stop>!"
"""What the reciting model says: no byte comes twice, so each has one that follows."""
RECITE = Request(token_ids=(START_ID,), sampling=SamplingParams(max_new_tokens=40))


@dataclass(frozen=True)
class Told:
    """An answer as its client saw it: the streamed tokens, the whole, and the file of its logits, if there is one."""

    tokens: list[StreamedToken]
    completion: Completion
    logits: bytes


def ask(lab: Pipeline, requests: Sequence[Request]) -> list[Told]:
    """Answer requests beside one another."""
    told = []
    for stream in [lab.stream(request) for request in requests]:
        tokens = list(stream)
        logits = (lab.config.capture or Path("none")) / f"{stream.answer().number}.f32"
        told.append(Told(tokens, stream.completion, logits.read_bytes() if logits.exists() else b""))
    return told


def cut(request: Request, whole: Told, count: int) -> Request:
    """The request that is sent elsewhere when `count` tokens had come."""
    return replace(request, forced_token_ids=whole.completion.token_ids[:count])


def assert_goes_on(replayed: Told, whole: Told, count: int) -> None:
    """Tokens, pieces of text and log-probabilities after the cut, and the whole answer, are the uninterrupted one's."""
    assert replayed.tokens == whole.tokens[count:]
    assert replayed.completion.logprobs == whole.completion.logprobs[count:]
    assert comparable(replayed) == comparable(whole)


def comparable(told: Told) -> Completion:
    """The completion without what depends on the cut."""
    return replace(told.completion, ttft_ms=0.0, queue_ms=0.0, tokens_per_s=0.0, logprobs=(), cached_tokens=0)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_every_cut_goes_on_bit_for_bit(
    ranks: int,
    dtype: str,
    sampling: SamplingParams,
    one_rank: Pipeline,
    of_ranks: Callable[[PipelineConfig], Pipeline],
    tiny: Path,
    tmp_path: Path,
) -> None:
    """Answers alone on one rank, against replays from each of their tokens, beside one another and beside others."""
    for folder in ("whole", "replayed"):
        (tmp_path / folder).mkdir()
    config = PipelineConfig(model=str(tiny), dtype=dtype, slots=2, threads=1, capture=tmp_path / "whole")
    one_rank.configure(config)
    generator = torch.Generator().manual_seed(5)
    prompts = [tuple(torch.randint(0, 300, (length,), generator=generator).tolist()) for length in PROMPT_LENGTHS]
    asked = [Request(token_ids=prompt, sampling=sampling) for prompt in prompts]
    wholes = [told for request in asked for told in ask(one_rank, [request])]
    assert len({told.completion.token_ids for told in wholes}) == len(wholes), "answers all alike would prove nothing"

    lab = of_ranks(replace(config, ranks=ranks, capture=tmp_path / "replayed"))
    others = [Request(token_ids=prompt[:50], sampling=SamplingParams(30, temperature=2.0)) for prompt in prompts]
    cuts = [(n, count) for count in range(13) for n in range(len(asked))]
    replays = ask(lab, others + [cut(asked[n], wholes[n], count) for n, count in cuts])[len(others) :]
    for (n, count), replayed in zip(cuts, replays, strict=True):
        assert_goes_on(replayed, wholes[n], count)
        if count < 12:  # the steps that are forced, too, are those that were
            assert replayed.logits == wholes[n].logits
            assert replayed.completion.ttft_ms > 0 < replayed.completion.tokens_per_s
        else:  # the answer had all its tokens: nothing is computed
            assert replayed.logits == b""
            assert (replayed.completion.ttft_ms, replayed.completion.tokens_per_s) == (0.0, 0.0)


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says TALE and ends: its layers add nothing, and its head knows what follows a token."""
    from transformers import LlamaForCausalLM

    folder = tiny_model(tmp_path_factory.mktemp("models") / "reciting", max_position_embeddings=64)
    model = LlamaForCausalLM.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        embedding_VH = model.model.embed_tokens.weight.normal_(generator=generator)
        for token, following in pairwise((START_ID, *TALE.encode(), END_ID)):
            model.lm_head.weight[following] = embedding_VH[token]
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def reciter(reciting: Path, one_rank: Pipeline) -> Pipeline:
    """A pipeline of one rank that recites; its context is 64 tokens."""
    one_rank.configure(PipelineConfig(model=str(reciting), slots=4, threads=1))
    return one_rank


@pytest.mark.parametrize(
    ("prompt", "sampling", "text", "finish"),
    [
        (1, SamplingParams(40), TALE, "stop"),  # by its end token
        (1, SamplingParams(40, stop=("<stop>",)), "xé🙂", "stop"),
        (1, SamplingParams(40, stop=("<stop>", "🙂<s")), "xé", "stop"),
        (1, SamplingParams(9, stop=("<stop>",)), "xé🙂<s", "length"),  # what was held back comes with the last token
        (1, SamplingParams(13, stop=("<stop>",)), "xé🙂", "stop"),  # the last token that may be ends the stop text
        (1, SamplingParams(5), "xé\N{REPLACEMENT CHARACTER}", "length"),  # in the middle of a character
        (60, SamplingParams(40), "xé\N{REPLACEMENT CHARACTER}", "length"),  # by its context
    ],
)
def test_text_goes_on_within_characters_and_stop_texts(
    prompt: int, sampling: SamplingParams, text: str, finish: str, reciter: Pipeline
) -> None:
    request = Request(token_ids=(START_ID,) * prompt, sampling=sampling)
    [whole] = ask(reciter, [request])
    assert (whole.completion.text, whole.completion.finish_reason) == (text, finish)
    assert "".join(map(str, whole.tokens)) == text
    raw = b"".join(token.raw for token in whole.tokens if token.id != END_ID)
    assert raw.decode(errors="replace").startswith(text)
    assert comparable(replace(whole, completion=reciter.generate(request))) == comparable(whole)
    counts = range(len(whole.tokens) + 1)
    for count, replayed in zip(counts, ask(reciter, [cut(request, whole, count) for count in counts]), strict=True):
        assert_goes_on(replayed, whole, count)
    with pytest.raises(InputError, match="are forced"):  # one more, after the end
        reciter.generate(replace(request, forced_token_ids=(*whole.completion.token_ids, ord("y"))))


@pytest.mark.parametrize(
    ("forced", "sampling", "words"),
    [
        ((120, 320), SamplingParams(40), "forced token id 320 is not in the vocabulary of 320"),
        ((-1,), SamplingParams(40), "forced token id is -1: it must be at least 0"),
        ((2**32,), SamplingParams(40), "forced token id is 4294967296: it must be at most"),
        ((7,) * 5, SamplingParams(4), "5 tokens are forced, but max_new_tokens is 4"),
        ((7,) * 64, SamplingParams(80), "the prompt has 1 tokens and 64 are forced, at most 64 fit"),
        ((7, END_ID, 7), SamplingParams(40), "3 tokens are forced, but the answer ends with number 2"),
        (tuple(b"a.b"), SamplingParams(40, stop=("a.",)), "3 tokens are forced, but the answer ends with number 2"),
    ],
)
def test_tokens_that_cannot_have_been_given_are_refused_in_one_line(
    forced: tuple[int, ...], sampling: SamplingParams, words: str, reciter: Pipeline
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        reciter.generate(token_ids=(START_ID,), forced_token_ids=forced, **vars(sampling))
    assert "\n" not in str(caught.value)
    assert reciter.generate(RECITE).text == TALE
    assert reciter.stats().requests == 0


def test_an_end_token_that_is_ignored_ends_no_forced_answer(reciter: Pipeline) -> None:
    answer = reciter.generate(
        token_ids=(1,), forced_token_ids=[END_ID, START_ID, ord("x")], max_new_tokens=5, ignore_eos=True
    )
    assert answer.token_ids == (END_ID, START_ID, *"xé".encode())
    assert answer.text == "xé"


def test_tokens_are_not_forced_for_several_samples(reciter: Pipeline) -> None:
    request = replace(RECITE, forced_token_ids=tuple(b"x"))
    with pytest.raises(InputError, match="tokens are forced and samples is 2: request each sample alone"):
        reciter.samples(request, 2)
    [sample] = reciter.samples(request, 1)
    assert sample.text == TALE


byte_tokens = st.sampled_from(TALE.encode())
forced_tokens = st.one_of(
    st.lists(byte_tokens), st.lists(st.one_of(byte_tokens, st.integers(250, 330), st.integers(0, 2**32 - 1)))
)


@settings(max_examples=60)
@given(forced=forced_tokens, most=st.integers(1, 80), samples=st.integers(0, 3), stop=st.lists(st.sampled_from("xé!")))
def test_any_forced_tokens_begin_the_answer_or_are_refused(
    forced: list[int], most: int, samples: int, stop: list[str], reciter: Pipeline
) -> None:
    request = pb.GenerateRequest(
        token_ids=[START_ID],
        sampling=pb.Sampling(max_new_tokens=most, top_p=1, stop=stop),
        samples=samples,
        forced_token_ids=forced,
    )
    with open_channel(reciter.address) as channel:
        try:
            replies = list(stub_of(channel, PIPELINE_SERVICE).Generate(request))
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
            assert "\n" not in str(error.details())
            return
    tokens = [reply for reply in replies if reply.WhichOneof("event") == "token" and reply.sample == 0]
    assert len(forced) + len(tokens) <= most
    [end] = [reply.end for reply in replies if reply.WhichOneof("event") == "end" and reply.sample == 0]
    assert end.text.endswith("".join(reply.token.text for reply in tokens))
    assert not any(text in end.text for text in stop)
