"""Our kernels of the CPU: right for every feature of both families, and bits that depend on a request alone."""

import ctypes
import platform
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from threading import Barrier

import pytest
import torch
from models import tiny_model
from safetensors.torch import load_file, save_file
from test_decoder import CUTS, FEATURES, TOKENS, reference_logits

from qubic_lab.errors import InputError, ModelError
from qubic_lab.model.checkpoint import Checkpoint, run_hash
from qubic_lab.model.cost import quantised_bytes
from qubic_lab.model.decoder import Segment
from qubic_lab.model.kernels import build
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.native import PAGE, NativeDecoder
from qubic_lab.pipeline.config import PipelineConfig, resolve_config


def decoder_of(
    folder: Path, dtype: torch.dtype = torch.bfloat16, threads: int = 1, quantization: str = ""
) -> NativeDecoder:
    checkpoint = Checkpoint.open(folder)
    return NativeDecoder(checkpoint, stage_ranges((checkpoint.config.layers,))[0], dtype, threads, quantization)


def run(decoder: NativeDecoder, parts: Sequence[tuple[int, int, Sequence[int]]]) -> list[torch.Tensor]:
    """Run parts of requests (slot, start, tokens) as one micro-batch; return the logits (tokens, V) of each."""
    segments = [Segment(slot, start, len(tokens)) for slot, start, tokens in parts]
    hidden = decoder.embed([token for _, _, tokens in parts for token in tokens])
    logits = decoder.logits(decoder.forward(hidden, segments, prompt=True))
    return list(logits.split([len(tokens) for _, _, tokens in parts]))


def logits_alone(decoder: NativeDecoder, tokens: Sequence[int], cuts: Sequence[int], slot: int = 0) -> torch.Tensor:
    """Logits (tokens, V) of a request that is cut into chunks, and decoded one by one after the last cut."""
    bounds = [*cuts, *range(cuts[-1] + 1, len(tokens) + 1)]
    return torch.cat([run(decoder, [(slot, start, tokens[start:end])])[0] for start, end in pairwise(bounds)])


@pytest.fixture
def compile_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, set_settings: Callable[..., None]) -> Iterator[None]:
    """Let a test choose how the kernels are compiled."""
    set_settings(cache=tmp_path / "cache")
    build.kernels.cache_clear()
    yield
    build.kernels.cache_clear()


@pytest.mark.parametrize("name", FEATURES)
def test_fp32_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", **FEATURES[name])
    ours = logits_alone(decoder_of(folder, torch.float32), TOKENS, CUTS)
    theirs = reference_logits(folder, torch.float32)
    assert (ours - theirs).abs().max() < 5e-5  # logits are of the order of 5
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("name", ["llama", "llama odd heads", "qwen2"])
def test_bf16_logits_are_as_near_to_fp32_as_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", **FEATURES[name])
    exact = reference_logits(folder, torch.float32)
    ours = (logits_alone(decoder_of(folder), TOKENS, CUTS) - exact).abs().mean()
    theirs = (reference_logits(folder, torch.bfloat16) - exact).abs().mean()
    assert ours < theirs


@pytest.mark.parametrize(
    ("dtype", "threads", "quantization"),
    [(dtype, threads, "") for dtype in (torch.float32, torch.bfloat16) for threads in (1, 2, 3)]
    + [(torch.float32, 2, "int4"), (torch.bfloat16, 3, "int4"), (torch.bfloat16, 2, "int8")],
)
def test_bits_depend_on_a_request_alone(dtype: torch.dtype, threads: int, quantization: str, tiny: Path) -> None:
    """Requests of other lengths share micro-batches at random, prompts and answers mixed, in dirty slots."""
    draw = random.Random(threads)
    requests = [draw.choices(range(300), k=draw.choice((1, 2, 63, 64, 65, 130))) for _ in range(12)]
    reference = decoder_of(tiny, dtype, 1, quantization)
    alone = [logits_alone(reference, tokens, (0, len(tokens))) for tokens in requests]
    decoder = decoder_of(tiny, dtype, threads, quantization)
    decoder.reset(slots=len(requests))
    for _ in range(2):
        done = [0] * len(requests)
        found: list[list[torch.Tensor]] = [[] for _ in requests]
        while waiting := [slot for slot, tokens in enumerate(requests) if done[slot] < len(tokens)]:
            slots = draw.sample(waiting, k=draw.randint(1, len(waiting)))
            sizes = {slot: min(draw.choice((1, 1, 7, 70)), len(requests[slot]) - done[slot]) for slot in slots}
            parts = [(slot, done[slot], requests[slot][done[slot] : done[slot] + size]) for slot, size in sizes.items()]
            for slot, logits in zip(slots, run(decoder, parts), strict=True):
                found[slot].append(logits)
                done[slot] += len(logits)
        assert all(torch.equal(torch.cat(mine), other) for mine, other in zip(found, alone, strict=True))


def test_stages_together_have_the_bits_of_the_whole(tiny: Path) -> None:
    checkpoint = Checkpoint.open(tiny)
    first, second = (NativeDecoder(checkpoint, stage, torch.bfloat16, 1) for stage in stage_ranges((1, 3)))
    whole = decoder_of(tiny)
    assert first.weight_bytes + second.weight_bytes == whole.weight_bytes
    segments = [Segment(0, 0, len(TOKENS))]
    hidden = first.forward(first.embed(TOKENS), segments, prompt=True)
    logits = second.logits(second.forward(hidden, segments, prompt=True))
    assert torch.equal(logits, run(whole, [(0, 0, TOKENS)])[0])


def test_dense_weights_have_the_bits_of_packed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of all magnitudes, zeros, and a row of 1 to 130 tokens: every form of the inner loop."""
    folder = tiny_model(tmp_path / "model", hidden_size=64)
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(0)
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            odd = torch.rand_like(weight, dtype=torch.float32) < 3e-4
            weight[odd] *= torch.randint(-60, 4, (int(odd.sum()),)).exp2().to(weight.dtype)
            weight[torch.rand_like(weight, dtype=torch.float32) < 1e-4] = 0
    save_file(weights, folder / "model.safetensors")
    monkeypatch.setattr("qubic_lab.model.native.PIECE_BYTES", 2**14)  # several pieces, each of a few groups
    dense = decoder_of(folder, threads=2)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert dense._layers[1].down.base > 0 and dense._layers[1].gate_up.exception_count > 0
    monkeypatch.setattr(NativeDecoder, "_pack_densely", lambda *_: False)
    packed = decoder_of(folder)
    assert packed._layers[1].down.base == 0
    tokens = random.Random(0).choices(range(300), k=130)
    for rows in (1, 6, 7, 33, 65, 130):
        assert torch.equal(*(run(each, [(0, 0, tokens[:rows])])[0] for each in (dense, packed)))


@pytest.mark.parametrize("calm", [0, 0.5])
def test_weights_with_too_many_exponents_stay_packed(
    calm: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample shows it at once, or the dense form has come to a later piece when it is given up."""
    library = build.kernels()
    assert library is not None
    values = torch.arange(2**16).to(torch.uint16)  # all there are
    assert library.dense_base(values.data_ptr(), len(values) // 128) == 0
    folder = tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("proj.weight"):
            wild = weight[int(calm * len(weight)) :]
            wild *= (-(torch.arange(wild.numel()) % 40).view(wild.shape)).exp2().to(weight.dtype)
    save_file(weights, folder / "model.safetensors")
    monkeypatch.setattr("qubic_lab.model.native.PIECE_BYTES", 1)  # each piece is a group
    tried = decoder_of(folder)
    assert tried._layers[1].gate_up.base == 0
    monkeypatch.setattr(NativeDecoder, "_pack_densely", lambda *_: False)
    assert torch.equal(*(run(each, [(0, 0, list(TOKENS))])[0] for each in (tried, decoder_of(folder))))


@pytest.mark.parametrize(("bits", "kind"), [(8, "Q8_0"), (4, "Q4_0")])
def test_values_of_gguf_get_its_own_numbers_and_scales_again(bits: int, kind: str, tiny: Path) -> None:
    """Blocks as gguf writes them, from their values alone: nothing is lost if such a file is quantised here."""
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    format = GGMLQuantizationType[kind]
    values = np.random.default_rng(0).normal(0, 0.02, (70, 96)).astype(np.float32)
    values[3, 5:40] = 0
    blocks = quants.quantize(values, format).reshape(70, 3, 2 + 4 * bits)
    weights = torch.from_numpy(quants.dequantize(blocks.reshape(70, -1), format).astype(np.float32))
    library = build.kernels()
    assert library is not None
    words = torch.empty(quantised_bytes(70, 96, bits), dtype=torch.uint8)
    assert library.quantise(weights.data_ptr(), weights.itemsize, 70, 96, bits, words.data_ptr())
    packed = words.view(2, 3, 2 + 4 * bits, 64).numpy()
    scales = packed[:, :, :2].reshape(2, 3, 64, 2).transpose(0, 2, 1, 3).reshape(128, 3, 2)
    assert np.array_equal(scales[:70], blocks[:, :, :2])
    # Of 16 columns the words of four bytes follow each other.
    numbers = packed[:, :, 2:].reshape(2, 3, 4, bits, 16, 4).transpose(0, 2, 4, 1, 3, 5).reshape(128, 3, 4 * bits)
    zero = (scales[:70] == 0).all(axis=-1)  # a block without values has any numbers
    assert np.array_equal((numbers[:70] ^ (128 if bits == 8 else 0))[~zero], blocks[:, :, 2:][~zero])


@pytest.mark.parametrize(("name", "quantization", "most"), [("llama odd heads", "int8", 0.1), ("qwen2", "int4", 0.6)])
def test_quantised_logits_are_near_those_of_the_model(
    name: str, quantization: str, most: float, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "model", **FEATURES[name])
    ours = logits_alone(decoder_of(folder, torch.float32, 1, quantization), TOKENS, CUTS)
    theirs = reference_logits(folder, torch.float32)
    error = ((ours - theirs).square().mean() / theirs.square().mean()).sqrt()
    assert 0 < error < most


def test_weights_that_are_not_finite_are_refused_when_they_are_quantised(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ModelError, match="weights that are not finite: fetch them again"):
        decoder_of(folder, quantization="int8")


def test_a_tied_matrix_is_counted_once(tmp_path: Path) -> None:
    tied, untied = (
        decoder_of(tiny_model(tmp_path / str(kept), tie_word_embeddings=kept)).weight_bytes for kept in (True, False)
    )
    assert untied - tied == 320 * 64 * 2


def test_a_copied_slot_goes_on_like_its_source(tiny: Path) -> None:
    decoder = decoder_of(tiny)
    decoder.reset(slots=3)
    run(decoder, [(0, 0, TOKENS[: PAGE + 5])])
    decoder.copy_slot(0, 2, PAGE + 5)
    mine, copy = run(decoder, [(0, PAGE + 5, [7]), (2, PAGE + 5, [7])])
    assert torch.equal(mine, copy)


@pytest.mark.parametrize("threads", [1, 2])
def test_last_rows_alone_have_the_same_bits_and_leave_the_same_cache(tiny: Path, threads: int) -> None:
    decoder = decoder_of(tiny, threads=threads)
    segments = [Segment(0, 0, 70), Segment(1, 0, 1), Segment(2, 0, 9)]
    ends = [69, 70, 79]
    hidden = decoder.embed([*TOKENS[:70], *TOKENS[:1], *TOKENS[:9]])
    steps = [(0, 70, [7]), (1, 1, [7]), (2, 9, [7])]

    def outputs(ends_only: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        decoder.reset(slots=3)
        return decoder.forward(hidden.clone(), segments, prompt=True, ends_only=ends_only), run(decoder, steps)

    (whole, after_whole), (cut, after_cut) = outputs(False), outputs(True)
    assert torch.equal(whole[ends], cut[ends])
    assert not torch.equal(whole[:69], cut[:69])  # so that something was saved
    assert all(map(torch.equal, after_whole, after_cut))


@pytest.mark.parametrize("quantization", ["", "int8"])
def test_infinities_reach_only_their_own_rows_and_a_cleared_slot_forgets_them(tiny: Path, quantization: str) -> None:
    decoder = decoder_of(tiny, quantization=quantization)
    decoder.reset(slots=2)
    [expected] = run(decoder, [(0, 0, TOKENS[:9])])
    hidden = decoder.embed([*TOKENS[:9], *TOKENS[:70]])
    hidden[9:] = torch.inf
    rows = decoder.forward(hidden, [Segment(0, 0, 9), Segment(1, 0, 70)], prompt=True)
    assert torch.equal(decoder.logits(rows[:9]), expected)
    assert not rows[9:].isfinite().any(dim=-1).any()
    decoder.place_pages([(-1, 0, page) for page in (1, 2)])
    assert torch.equal(run(decoder, [(1, 0, TOKENS[:9])])[0], expected)


@pytest.mark.slow
def test_kernels_for_older_processors_are_right(
    tiny: Path, compile_with: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same source without AVX-512, as for processors that lack it."""
    if platform.machine() == "x86_64":  # elsewhere there is none
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-mno-avx512f"))
    exact = reference_logits(tiny, torch.float32)
    assert (logits_alone(decoder_of(tiny, torch.float32), TOKENS, CUTS) - exact).abs().max() < 5e-5
    bf16 = logits_alone(decoder_of(tiny), TOKENS, CUTS)
    theirs = (reference_logits(tiny, torch.bfloat16) - exact).abs().mean()
    assert (bf16 - exact).abs().mean() < theirs
    assert torch.equal(bf16, logits_alone(decoder_of(tiny, threads=2), TOKENS, (0, len(TOKENS))))
    for quantization, most in (("int8", 0.1), ("int4", 0.6)):
        quantised = logits_alone(decoder_of(tiny, torch.float32, 2, quantization), TOKENS, CUTS)
        assert ((quantised - exact).square().mean() / exact.square().mean()).sqrt() < most


@pytest.fixture
def compile_little(compile_with: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the kernels be a few empty functions, which are compiled in no time."""
    names = ("decoder_create", "decoder_page_words", "decoder_destroy", "decoder_run", "decoder_logits")
    names += ("dense_base", "dense_pack", "quantise", "draw_tokens", "all_finite")
    (source := tmp_path / "little.cpp").write_text("".join(f'extern "C" void {name}() {{}}\n' for name in names))
    monkeypatch.setattr(build, "SOURCE", source)


def test_kernels_are_compiled_once(compile_little: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(build.kernels(), ctypes.CDLL)
    build.kernels.cache_clear()
    monkeypatch.setattr("subprocess.Popen", None)
    assert build.failure() == ""


def test_those_who_start_together_compile_once(
    compile_little: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    both, alone_in = Barrier(2), build._alone_in

    def alone_once_both_are_here(folder: Path) -> AbstractContextManager[None]:
        both.wait(60)
        return alone_in(folder)

    monkeypatch.setattr(build, "_alone_in", alone_once_both_are_here)
    monkeypatch.setattr(build, "compiler", lambda: ("sh", "-c", 'echo >> "$0"; exec g++ "$@"', f"{tmp_path}/compiled"))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: build._built(), range(2))
    assert first == second
    assert (tmp_path / "compiled").read_text() == "\n"


@pytest.mark.parametrize("damage", [lambda content: content[:3_000], lambda content: content[:-1], lambda content: b""])
def test_a_damaged_library_is_compiled_again(compile_little: None, damage: Callable[[bytes], bytes]) -> None:
    library = build._built()
    whole = library.read_bytes()
    library.write_bytes(damage(whole))
    assert isinstance(build.kernels(), ctypes.CDLL)
    assert library.read_bytes() == whole
    assert list(library.parent.iterdir()) == [library]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (None, "no C\\+\\+ compiler was found: install g\\+\\+, or `pip install ziglang`"),
        (("sh", "-c", "echo 'x.cpp:1: error: bad' >&2; exit 1"), "sh failed: x.cpp:1: error: bad"),
        (("false",), "false failed: exit status 1"),
    ],
)
def test_without_kernels_torchs_are_used_and_said_to_be(
    command: tuple[str, ...] | None,
    problem: str,
    tiny: Path,
    compile_with: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "compiler", lambda: command)
    with pytest.warns(UserWarning, match=f"torch's slower kernels are used: {problem}"):
        assert resolve_config(PipelineConfig(model=str(tiny))).kernels == "torch"
    with pytest.raises(InputError, match=f"native kernels cannot run: {problem}"):
        resolve_config(PipelineConfig(model=str(tiny), kernels="native"))
    with pytest.raises(ModelError, match=f"native kernels cannot run: {problem}"):
        decoder_of(tiny)


def test_quantised_weights_are_another_model_and_need_native_kernels(tiny: Path) -> None:
    assert len({run_hash(tiny, quantization) for quantization in (None, "int8", "int4")}) == 3
    with pytest.raises(InputError, match="unknown quantization 'int3': did you mean"):
        resolve_config(PipelineConfig(model=str(tiny), quantization="int3"))
    with pytest.raises(InputError, match=r"quantization=int8 needs native kernels .*: leave it out"):
        resolve_config(PipelineConfig(model=str(tiny), quantization="int8", dtype="fp16"))


def test_kernels_are_native_where_they_can_be(tiny: Path) -> None:
    def chosen(**options: str) -> str:
        return resolve_config(PipelineConfig(model=str(tiny), **options)).kernels  # type: ignore[arg-type]

    assert chosen() == chosen(dtype="fp32") == "native"
    assert chosen(dtype="fp16") == chosen(device="cuda") == chosen(kernels="torch") == "torch"
    with pytest.raises(InputError, match="for fp32 and bf16 on a CPU, not for fp16 on cpu; leave kernels out"):
        chosen(dtype="fp16", kernels="native")
    with pytest.raises(InputError, match="unknown kernels 'nativ': did you mean 'native'"):
        chosen(kernels="nativ")
