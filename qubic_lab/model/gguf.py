"""Conversion of GGUF files into folders of safetensors in the cache, so that other code handles one format."""

import fcntl
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qubic_lab.errors import InputError, ModelError
from qubic_lab.model.config import ARCHITECTURES, ModelConfig, parse_config
from qubic_lab.model.folders import file_hash, new_folder, problems, read_manifest, write_manifest
from qubic_lab.model.layout import EMBEDDING, FINAL_NORM, HEAD, model_tensors
from qubic_lab.model.safetensors_file import BLOCK_BYTES, WEIGHTS, TensorSpec, write_safetensors
from qubic_lab.settings import settings

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

    Tensors = Mapping[str, ReaderTensor]

OUTER_NAMES = {"token_embd.weight": EMBEDDING, "output_norm.weight": FINAL_NORM, "output.weight": HEAD}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SIZE_FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
}


def convert_gguf(file: Path, keep_blocks: bool = False) -> Path:
    """Return the cached safetensors folder of a GGUF file; convert it if the folder is missing or damaged.

    The folder has float32 weights, because the values of quantized weights are not exact in 16 bits. With `keep_blocks`
    matrices in Q8_0 and Q4_0 stay as they are, for kernels that compute with them, if most values are in such ones.
    Other libraries cannot read that.

    Raises:
        ModelError: the file is truncated, not GGUF, or a model that the decoder does not support.
        InputError: the cache cannot be written.
    """
    source = file_hash(file)
    folder = converted_folder(file, source)
    blocks = folder.with_name(f"{folder.name}-blocks")
    if keep_blocks and _is_good(blocks, source):
        return blocks
    reader = None
    if keep_blocks:
        reader = _open(file)
        values = [int(tensor.n_elements) * (_kept(tensor, True) is not None) for tensor in reader.tensors]
        keep_blocks = 2 * sum(values) > sum(int(tensor.n_elements) for tensor in reader.tensors)
    folder = blocks if keep_blocks else folder
    if not _is_good(folder, source):
        reader = reader or _open(file)
        with _locked(folder):
            if not _is_good(folder, source):  # otherwise another process has converted it meanwhile
                shutil.rmtree(folder, ignore_errors=True)
                with new_folder(folder) as partial:
                    _convert(file, reader, partial, keep_blocks)
                    write_manifest(partial, {"kind": "gguf", "source": file.name, "source_sha256": source})
    return folder


def converted_folder(file: Path, source: str | None = None) -> Path:
    """Return where the conversion of a GGUF file is kept; `source` is its SHA-256, if it is known."""
    return settings().cache / "models" / f"{file.stem}-{(source or file_hash(file))[:12]}"


def _is_good(folder: Path, source: str) -> bool:
    """Check the manifest without hashes, which take seconds; `qubic-lab verify` checks those."""
    manifest = None if problems(folder, hash_of=None) else read_manifest(folder)
    return manifest is not None and manifest["source_sha256"] == source


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock for `folder`; the system releases it if this process dies."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        stream = (folder.parent / f".{folder.name}.lock").open("w")
    except OSError as error:
        raise InputError(
            f"{folder.parent} cannot be written ({error.strerror}): set QUBIC_LAB_CACHE to a folder that can"
        ) from error
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _open(file: Path) -> "GGUFReader":
    import gguf

    with _told_of(file):
        return gguf.GGUFReader(file)


@contextmanager
def _told_of(file: Path) -> Iterator[None]:
    """Turn what the reader raises at a damaged file into one line; it reads some fields when they are asked for."""
    try:
        yield
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
        raise ModelError(f"{file} is truncated or not GGUF ({error}): fetch it again") from error


def _convert(file: Path, reader: "GGUFReader", out: Path, keep_blocks: bool) -> None:
    with _told_of(file):
        tensors = {_checkpoint_name(file, tensor.name): tensor for tensor in reader.tensors}
        raw = _raw_config(file, reader, tensors)
        config = parse_config(raw, str(file))
    needed = model_tensors(config)
    found = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
    if found != needed:
        name = min(name for name in found | needed if found.get(name) != needed.get(name))
        there, called_for = found.get(name, "nothing"), needed.get(name, "nothing")
        raise ModelError(f"{file}: its header calls for {called_for} as {name}, but {there} is there; fetch it again")
    write_safetensors(
        out / WEIGHTS,
        {name: TensorSpec(_kept(tensors[name], keep_blocks) or "F32", shape) for name, shape in needed.items()},
        lambda name: [_values(file, config, name, tensors[name], keep_blocks)],
    )
    ends = {key: raw[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in raw}
    for name, content in (("config.json", raw), ("generation_config.json", ends)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _save_tokenizer(file, reader, out, config.max_positions)


def _checkpoint_name(file: Path, name: str) -> str:
    """Translate a tensor's name; unknown ones such as RoPE factors are refused, because they change the model."""
    if name in OUTER_NAMES:
        return OUTER_NAMES[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in LAYER_NAMES:
        raise ModelError(f"{file}: tensor {name} is not supported; give the model as safetensors instead")
    return f"model.layers.{match[1]}.{LAYER_NAMES[match[2]]}.{match[3]}"


def _raw_config(file: Path, reader: "GGUFReader", tensors: "Tensors") -> dict[str, Any]:
    """Return the content of a config.json from the file's header."""
    kind = _field(reader, "general.architecture")
    if kind not in ARCHITECTURES.values():
        raise ModelError(f"{file}: architecture {kind} is not supported; known: {', '.join(ARCHITECTURES.values())}")
    if (scaling := _field(reader, f"{kind}.rope.scaling.type", "none")) != "none":
        raise ModelError(f"{file}: RoPE scaling {scaling} is not supported in GGUF; give the model as safetensors")
    raw = {
        "architectures": [name for name, family in ARCHITECTURES.items() if family == kind],
        "model_type": kind,
        "dtype": "float32",
        "hidden_act": "silu",
        "vocab_size": int(tensors[EMBEDDING].shape[1]) if EMBEDDING in tensors else None,
        "rms_norm_eps": _shortest(_field(reader, f"{kind}.attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": _shortest(_field(reader, f"{kind}.rope.freq_base", 10_000.0)),
        },
        "tie_word_embeddings": HEAD not in tensors,
        "attention_bias": "model.layers.0.self_attn.q_proj.bias" in tensors,
        "mlp_bias": "model.layers.0.mlp.gate_proj.bias" in tensors,
        **{key: _field(reader, f"{kind}.{name}") for key, name in SIZE_FIELDS.items()},
        "bos_token_id": _field(reader, "tokenizer.ggml.bos_token_id"),
        "pad_token_id": _field(reader, "tokenizer.ggml.padding_token_id"),
    }
    # Some models have separate tokens for the end of a text and of a turn; both end an answer.
    ends = {_field(reader, f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot")} - {None}
    return {key: value for key, value in raw.items() if value is not None} | {"eos_token_id": sorted(ends)}


def _field(reader: "GGUFReader", name: str, default: Any = None) -> Any:
    field = reader.get_field(name)
    return default if field is None else field.contents()


def _shortest(value: float) -> float:
    """Return the shortest decimal of a float32: 1e-5 is stored as 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _kept(tensor: "ReaderTensor", keep_blocks: bool) -> str | None:
    """Return the type of blocks that are kept as they are, or None."""
    name: str = tensor.tensor_type.name
    return name if keep_blocks and name in BLOCK_BYTES else None


def _values(
    file: Path, config: ModelConfig, name: str, tensor: "ReaderTensor", keep_blocks: bool = False
) -> memoryview:
    """Return a tensor's float32 values, or its blocks, in the order of checkpoints."""
    import numpy as np
    from gguf.quants import dequantize

    kept = _kept(tensor, keep_blocks)
    try:
        values = tensor.data if kept else dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ModelError(
            f"{file}: quantization {tensor.tensor_type.name} is not supported; give a Q8_0 file"
        ) from error
    if config.family == "llama" and ("q_proj" in name or "k_proj" in name):
        # GGUF interleaves the two halves of each head that RoPE rotates; checkpoints store them one after the other.
        pairs = values.reshape(-1, config.head_dim // 2, 2, *values.shape[1:])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    return np.ascontiguousarray(values, dtype=np.uint8 if kept else np.float32).reshape(-1).view(np.uint8).data


def _save_tokenizer(file: Path, reader: "GGUFReader", out: Path, max_positions: int) -> None:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # transformers has no specific error for this
        raise ModelError(
            f"{file}: its tokenizer is not supported ({error!r}); give the model as safetensors"
        ) from error
    if _field(reader, "tokenizer.ggml.pre") == "smollm":
        # transformers does not know that this family's tokenizer splits numbers into digits.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.model_max_length = max_positions
    tokenizer.save_pretrained(out)
