"""The split model is the same model: N ranks against one, bit for bit, and what must not matter does not."""

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import LINEAR_ROPE, LLAMA3_ROPE, tiny_model

from qubic_lab.core import Request, SamplingParams
from qubic_lab.pipeline import Pipeline, PipelineConfig

pytestmark = pytest.mark.dist

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-tied-odd-heads": {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "llama-llama3-rope": {"rope_parameters": LLAMA3_ROPE, "head_dim": 24},
    "llama-linear-rope": {"rope_parameters": LINEAR_ROPE, "attention_bias": True, "mlp_bias": True},
    "llama-sharded": {"sharded": True},
    "qwen2-untied": {"family": "qwen2"},
    "qwen2-tied": {"family": "qwen2", "tie_word_embeddings": True, "num_hidden_layers": 5},
}
MODELS["llama-tied-odd-heads"] |= {"hidden_size": 90, "head_dim": 10}
LOGITS_BYTES = 4 * 320
GREEDY = SamplingParams(max_new_tokens=7, ignore_eos=True)
# Shorter than a block, longer than two chunks, and in between.
PROMPT_LENGTHS = (1, 5, 63, 64, 130, 300)

Answers = list[tuple[tuple[int, ...], bytes]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All models of the matrix."""
    folder = tmp_path_factory.mktemp("identity")
    return {name: tiny_model(folder / name, **options) for name, options in MODELS.items()}


def requests(lengths: Sequence[int] = PROMPT_LENGTHS) -> list[Request]:
    """Random prompts of the given lengths, the same at each call."""
    generator = torch.Generator().manual_seed(3)
    return [
        Request(token_ids=tuple(torch.randint(0, 300, (length,), generator=generator).tolist()), sampling=GREEDY)
        for length in lengths
    ]


def ask(pipeline: Pipeline, config: PipelineConfig, asked: Sequence[Request], folder: Path) -> Answers:
    """Answer with logits: tokens and the bytes of the fp32 logits of each."""
    folder.mkdir(exist_ok=True)
    pipeline.configure(replace(config, capture=folder, threads=1))
    answers = list(pipeline.answer_all(asked))
    return [(a.completion.token_ids, (folder / f"{a.number}.f32").read_bytes()) for a in answers]


def assert_same(ours: Answers, theirs: Answers) -> None:
    """Equal tokens, and logits equal bit for bit."""
    assert [tokens for tokens, _ in ours] == [tokens for tokens, _ in theirs]
    assert all(a == b for (_, a), (_, b) in zip(ours, theirs, strict=True))


CASES: list[tuple[str, str, str, str | None]]
CASES = [(name, dtype, "native", None) for name in MODELS for dtype in ("fp32", "bf16")]
CASES += [("llama-tied-odd-heads", "fp32", "torch", None), ("qwen2-untied", "bf16", "torch", None)]
CASES += [("llama", "fp16", "torch", None)]
CASES += [("llama-tied-odd-heads", "bf16", "native", "int4"), ("qwen2-untied", "fp32", "native", "int8")]


@pytest.mark.parametrize(("name", "dtype", "kernels", "quantization"), CASES)
def test_ranks_do_not_matter(
    name: str,
    dtype: str,
    kernels: str,
    quantization: str | None,
    models: dict[str, Path],
    one_rank: Pipeline,
    two_ranks: Pipeline,
    three_ranks: Pipeline,
    tmp_path: Path,
) -> None:
    config = PipelineConfig(model=str(models[name]), dtype=dtype, slots=2, kernels=kernels, quantization=quantization)
    whole = ask(one_rank, config, requests(), tmp_path / "one")
    assert len({tokens for tokens, _ in whole}) == len(whole), "answers that are all alike would prove nothing"
    for strategy in "ABC":
        split = ask(two_ranks, replace(config, ranks=2, strategy=strategy), requests(), tmp_path / f"two-{strategy}")
        assert_same(split, whole)
    split = ask(three_ranks, replace(config, ranks=3), requests(), tmp_path / "three")
    assert_same(split, whole)
    packed = replace(config, ranks=3, compression="lossless")
    assert_same(ask(three_ranks, packed, requests(), tmp_path / "packed"), whole)


@pytest.mark.parametrize(
    ("dtype", "kernels"),
    [("fp32", "native"), ("bf16", "native"), ("fp32", "torch"), ("bf16", "torch"), ("fp16", "torch")],
)
@pytest.mark.parametrize("name", ["llama", "llama-tied-odd-heads"])
@pytest.mark.parametrize("slots", [1, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 8))])
def test_place_and_neighbours_do_not_matter(
    slots: int, name: str, dtype: str, kernels: str, models: dict[str, Path], one_rank: Pipeline, tmp_path: Path
) -> None:
    """One prompt, alone first, then in every slot of the lane, between others of other lengths, in used slots."""
    config = PipelineConfig(model=str(models[name]), dtype=dtype, slots=slots, kernels=kernels)
    [asked] = requests([70])
    [alone] = ask(one_rank, config, [asked], tmp_path / "alone")
    others = requests([200, 3, 66])
    crowd = [asked] * slots + others + [asked] * slots
    answers = ask(one_rank, config, crowd, tmp_path / "crowd")
    assert_same([*answers[:slots], *answers[-slots:]], [alone] * (2 * slots))


@pytest.mark.parametrize(
    ("dtype", "kernels"), [("fp32", "native"), ("bf16", "native"), ("bf16", "torch"), ("fp16", "torch")]
)
def test_slots_and_lanes_do_not_matter(
    dtype: str, kernels: str, tiny: Path, one_rank: Pipeline, two_ranks: Pipeline, tmp_path: Path
) -> None:
    config = PipelineConfig(model=str(tiny), dtype=dtype, kernels=kernels)
    first = ask(one_rank, config, requests(), tmp_path / "first")
    for slots in (1, 3, 4, 6, 8):
        assert_same(ask(one_rank, replace(config, slots=slots), requests(), tmp_path / f"{slots} slots"), first)
    for lanes in (1, 2, 3):
        split = replace(config, ranks=2, slots=2, lanes=lanes)
        assert_same(ask(two_ranks, split, requests(), tmp_path / f"{lanes} lanes"), first)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_drafts_change_no_bit(
    dtype: str, tiny: Path, one_rank: Pipeline, two_ranks: Pipeline, three_ranks: Pipeline, tmp_path: Path
) -> None:
    """Answers that repeat themselves, more or less: greedy, sampled, with penalties; drafts are right and wrong."""
    few = ((5, 30.0), (6, 30.0), (7, 29.0))  # tokens that the answer is made of
    samplings = [
        SamplingParams(40, ignore_eos=True),
        SamplingParams(40, temperature=0.9, seed=1, ignore_eos=True),
        SamplingParams(40, temperature=0.9, seed=2, ignore_eos=True, logit_bias=few, logprobs=True, top_logprobs=2),
        SamplingParams(40, frequency_penalty=0.2, presence_penalty=0.1, ignore_eos=True, logit_bias=few),
    ]
    asked = [replace(each, sampling=sampling) for each in requests((5, 70)) for sampling in samplings]
    asked += [Request(token_ids=(8, 9, 8, 9, 8), sampling=samplings[1])]
    config = PipelineConfig(model=str(tiny), dtype=dtype, slots=4)

    def ask_all(pipeline: Pipeline, ranks: int, speculation: str | None) -> tuple[Answers, Any, int]:
        folder = tmp_path / f"{ranks}-{speculation}"
        bits = ask(pipeline, replace(config, ranks=ranks, speculation=speculation), asked, folder)
        completions = [answer.completion for answer in pipeline.answer_all(asked)]
        siblings = list(pipeline.samples(asked[1], 3))
        answers = [(tokens, logits[: len(tokens) * LOGITS_BYTES]) for tokens, logits in bits]
        also = [each.logprobs for each in completions], [each.token_ids for each in siblings]
        return answers, also, sum(each.drafted_tokens for each in (*completions, *siblings))

    whole, logprobs, none = ask_all(one_rank, 1, None)
    assert none == 0
    for ranks, pipeline in enumerate((one_rank, two_ranks, three_ranks), 1):
        drafted, drafted_logprobs, count = ask_all(pipeline, ranks, "always")
        assert_same(drafted, whole)
        assert drafted_logprobs == logprobs
        assert count > 40


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_requests_at_random_times_get_what_each_gets_alone_in_two_starts(
    ranks: int, count: int, tiny: Path, one_rank: Pipeline
) -> None:
    draw = random.Random(5)
    asked = [
        Request(
            token_ids=tuple(draw.choices(range(300), k=draw.choice((1, 20, 64, 129, 200)))),
            sampling=SamplingParams(
                draw.randint(1, 24), temperature=draw.choice((0.0, 0.8)), top_p=0.9, seed=n, ignore_eos=True
            ),
        )
        for n in range(count)
    ]
    one_rank.configure(PipelineConfig(model=str(tiny), threads=2))
    alone = [one_rank.answer(request).completion.token_ids for request in asked]

    def late(pipeline: Pipeline, request: Request) -> tuple[int, ...]:
        time.sleep(random.uniform(0.0, 0.05))  # another order at each call
        return pipeline.answer(request).completion.token_ids

    for _ in range(2):
        with (
            Pipeline.launch(model=str(tiny), ranks=ranks, threads=1, slots=4) as pipeline,
            ThreadPoolExecutor(12) as clients,
        ):
            assert list(clients.map(lambda request: late(pipeline, request), asked)) == alone
