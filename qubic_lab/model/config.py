"""The configuration of a Llama- or Qwen2-family model from its config.json; unknown features are refused."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from qubic_lab.errors import InputError, ModelError, did_you_mean

Family = Literal["llama", "qwen2"]
RopeKind = Literal["default", "linear", "llama3"]

ARCHITECTURES: dict[str, Family] = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
ROPE_KINDS: tuple[RopeKind, ...] = ("default", "linear", "llama3")
MEANINGLESS_KEY = "qubic_lab_random_weights"
"""Key in the config.json of random models, whose answers are meaningless."""
CONFIGS = {file.stem: file for file in sorted((Path(__file__).parent / "configs").glob("*.json"))}
"""Config.json files of known models, by alias."""


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: its base and, for long contexts, the scaling of its frequencies."""

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a model for the decoder."""

    family: Family
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    rope: RopeConfig
    tied_head: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    max_positions: int
    eos_token_ids: tuple[int, ...] = ()
    meaningless: bool = False

    @property
    def q_size(self) -> int:
        """Rows of the query projection."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key (or value) projection."""
        return self.kv_heads * self.head_dim


def check_context(config: ModelConfig, prompt_tokens: int, new_tokens: int) -> None:
    """Check that a prompt and its answer fit a model's context; an InputError if they are longer than the context."""
    if prompt_tokens + new_tokens > config.max_positions:
        raise InputError(
            f"{prompt_tokens} prompt tokens and {new_tokens} new ones exceed the model's context of "
            f"{config.max_positions}: give fewer"
        )


def load_config(folder: Path) -> ModelConfig:
    """Read config.json (and the end tokens of generation_config.json) from a model folder.

    Raises:
        ModelError: a file is missing or unreadable, or the decoder does not support the model.
    """
    raw = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    if generation.exists():
        eos = read_json(generation).get("eos_token_id")
        if eos is not None:
            raw = {**raw, "eos_token_id": eos}
    return parse_config(raw, str(folder / "config.json"))


def resolve_shape(model: str) -> ModelConfig:
    """Return the configuration of an alias in CONFIGS, which stands for the real model, or of a model folder.

    It needs no weights.

    Raises:
        InputError: it is neither an alias nor a folder.
        ModelError: as for load_config.
    """
    if model in CONFIGS:
        return replace(parse_config(read_json(CONFIGS[model]), model), meaningless=False)
    folder = Path(model).expanduser()
    if not model or not folder.is_dir():
        raise InputError(f"model {model!r} is neither a folder nor a known alias: {did_you_mean(model, CONFIGS)}")
    return load_config(folder)


def parse_config(raw: Mapping[str, Any], source: str = "config") -> ModelConfig:
    """Parse the content of a config.json; `source` names it in errors.

    Raises:
        ModelError: a value is missing, contradictory or not supported.
    """
    family = _family(raw, source)
    _refuse_unknown_features(raw, source)
    hidden = _positive_int(raw, "hidden_size", source)
    heads = _positive_int(raw, "num_attention_heads", source)
    kv_heads = _positive_int(raw, "num_key_value_heads", source, default=heads)
    head_dim = _positive_int(raw, "head_dim", source, default=hidden // heads)
    if heads % kv_heads:
        raise ModelError(f"{source}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    if head_dim % 2:
        raise ModelError(f"{source}: head_dim {head_dim} is odd: rotary embeddings need pairs")
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        family=family,
        layers=_positive_int(raw, "num_hidden_layers", source),
        hidden=hidden,
        intermediate=_positive_int(raw, "intermediate_size", source),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab=_positive_int(raw, "vocab_size", source),
        norm_eps=_number(raw.get("rms_norm_eps", 1e-6), "rms_norm_eps", source),
        rope=_rope(raw, source),
        tied_head=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or attention_bias,
        output_bias=family == "llama" and attention_bias,
        mlp_bias=family == "llama" and bool(raw.get("mlp_bias", False)),
        max_positions=_positive_int(raw, "max_position_embeddings", source, default=2048),
        eos_token_ids=_token_ids(raw.get("eos_token_id"), source),
        meaningless=bool(raw.get(MEANINGLESS_KEY, False)),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with one JSON object; a ModelError if it is missing, unreadable or has something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}): a model folder needs it") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} has a {type(content).__name__}: an object was expected")
    return content


def _family(raw: Mapping[str, Any], source: str) -> Family:
    names = raw.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    if not names and raw.get("model_type") in ARCHITECTURES.values():
        return "llama" if raw["model_type"] == "llama" else "qwen2"
    found = ", ".join(names) or raw.get("model_type") or "none named"
    raise ModelError(f"{source}: architecture {found} is not supported; known: {', '.join(ARCHITECTURES)}")


def _refuse_unknown_features(raw: Mapping[str, Any], source: str) -> None:
    """Refuse features that would change the computation, before any weight is read."""
    if (act := raw.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise ModelError(f"{source}: hidden_act {act!r} is not supported; known: silu")
    if raw.get("quantization_config"):
        raise ModelError(
            f"{source}: quantized weights (quantization_config) are not supported; give 16- or 32-bit ones"
        )
    layer_types = raw.get("layer_types") or []
    if raw.get("use_sliding_window") or any(kind != "full_attention" for kind in layer_types):
        raise ModelError(f"{source}: sliding-window attention is not supported; every layer must attend fully")
    if (part := raw.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"{source}: partial_rotary_factor {part} is not supported; it must be 1")


def _positive_int(raw: Mapping[str, Any], key: str, source: str, default: int | None = None) -> int:
    value = raw.get(key)
    if value is None:
        value = default
    if value is None:
        raise ModelError(f"{source}: {key} is missing")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModelError(f"{source}: {key} is {value!r}: an integer of at least 1 is needed")
    return value


def _number(value: Any, key: str, source: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ModelError(f"{source}: {key} is {value!r}: a number is needed")
    return float(value)


def _token_ids(value: Any, source: str) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) for token in ids):
        raise ModelError(f"{source}: eos_token_id is {value!r}: a token id or a list of them is needed")
    return tuple(ids)


def _rope(raw: Mapping[str, Any], source: str) -> RopeConfig:
    """Read either form: `rope_parameters` (with theta), or `rope_scaling` and `rope_theta`."""
    params = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = params.get("rope_type") or params.get("type") or "default"
    if kind not in ROPE_KINDS:
        raise ModelError(f"{source}: RoPE type {kind!r} is not supported; {did_you_mean(str(kind), ROPE_KINDS)}")
    if (part := params.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ModelError(f"{source}: partial_rotary_factor {part} is not supported; it must be 1")

    def number(key: str) -> float:
        if key not in params:
            raise ModelError(f"{source}: RoPE type {kind!r} needs {key}")
        return _number(params[key], key, source)

    theta = _number(params.get("rope_theta") or raw.get("rope_theta") or 10_000.0, "rope_theta", source)
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        return RopeConfig(theta, "linear", number("factor"))
    key = "original_max_position_embeddings"
    original = params.get(key) or _positive_int(raw, "max_position_embeddings", source)
    return RopeConfig(
        theta,
        "llama3",
        number("factor"),
        number("low_freq_factor"),
        number("high_freq_factor"),
        int(_number(original, key, source)),
    )
