"""Models with real shapes and random weights: speed and memory are real, answers are meaningless."""

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, ModelError, check_at_least, did_you_mean
from qubic_lab.model.config import CONFIGS, MEANINGLESS_KEY, parse_config
from qubic_lab.model.folders import new_folder
from qubic_lab.model.layout import model_tensors
from qubic_lab.model.safetensors_file import INDEX, WEIGHTS, Progress, Shape, TensorSpec, advance_to, write_safetensors
from qubic_lab.provenance import usable_cores

STANDARD_DEVIATION = 0.02
CHUNK_VALUES = 4 * 2**20
"""Values that each core generates at a time: 16 MiB of float32."""
SHARD_BYTES = 10**9

START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 256, 257
VOCABULARY = 258
"""Token ids of the byte tokenizer: bytes 0 to 255, then the special tokens."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{START}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{START}assistant\n{{% endif %}}"
)


def write_random_model(
    config: str, out: Path, layers: int | None = None, seed: int = 0, progress: Progress = lambda share: None
) -> None:
    """Write a bfloat16 model with the shapes of `config`: an alias in CONFIGS, a config.json, or a folder with one.

    Norms are 1; all other values are normal with a standard deviation of 0.02. A tensor depends only on `seed` and its
    name, so a model with fewer `layers` has the first layers of the whole model.

    Raises:
        InputError: the config is unknown, a number is out of range, or `out` is not empty or cannot be written.
        ModelError: the decoder does not support the config, or it has fewer token ids than the tokenizer needs.
    """
    raw = read_shape(config)
    if layers is not None:
        raw["num_hidden_layers"] = check_at_least("layers", layers, 1)
    check_at_least("seed", seed, 0)
    model = parse_config(raw, config)
    if model.vocab < VOCABULARY:
        raise ModelError(f"vocab_size is {model.vocab}: the byte tokenizer of a random model needs {VOCABULARY}")
    specs = {name: TensorSpec("BF16", shape) for name, shape in model_tensors(model).items()}
    files = _shards(specs)
    size = sum(spec.nbytes for spec in specs.values())
    advance = advance_to(progress, size)
    with new_folder(out) as partial, ThreadPoolExecutor(usable_cores()) as pool:
        for file, names in files.items():
            write_safetensors(
                partial / file,
                {name: specs[name] for name in names},
                lambda name: _random_values(pool, seed, name, specs[name].shape),
                advance,
            )
        if len(files) > 1:
            weight_map = {name: file for file, names in files.items() for name in names}
            _write_json(partial / INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})
        _write_json(partial / "config.json", raw)
        save_byte_tokenizer(partial, model.max_positions)


def save_byte_tokenizer(folder: Path, max_positions: int) -> None:
    """Write a tokenizer of the 256 bytes and two special tokens, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*byte_characters(), START, END]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)


def byte_characters() -> list[str]:
    """Return the printable characters that byte-level tokenizers use for the bytes, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in printable else next(hidden)) for byte in range(256)]


def read_shape(config: str) -> dict[str, Any]:
    """Return the config.json of a random model of these shapes."""
    path = CONFIGS.get(config, Path(config).expanduser())
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        raise InputError(f"config {config!r} is neither an alias nor a file: {did_you_mean(config, CONFIGS)}")
    try:
        raw = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path} cannot be read as the object of a config.json ({error})") from error
    for key in ("torch_dtype", "layer_types"):
        raw.pop(key, None)
    return raw | {"dtype": "bfloat16", "bos_token_id": START_ID, "eos_token_id": END_ID, MEANINGLESS_KEY: True}


def _shards(specs: Mapping[str, TensorSpec]) -> dict[str, list[str]]:
    """Group tensor names, in their order, into files of about SHARD_BYTES at most."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, spec in specs.items():
        if groups[-1] and size + spec.nbytes > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += spec.nbytes
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    return {f"model-{part:05}-of-{len(groups):05}.safetensors": names for part, names in enumerate(groups, start=1)}


def _random_values(pool: ThreadPoolExecutor, seed: int, name: str, shape: Shape) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in order, generated by all cores a few chunks ahead."""
    count = math.prod(shape)
    ahead: deque[Future[memoryview]] = deque()
    for index, begin in enumerate(range(0, count, CHUNK_VALUES)):
        ahead.append(pool.submit(_random_chunk, seed, name, index, min(CHUNK_VALUES, count - begin)))
        if len(ahead) > 2 * usable_cores():
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _random_chunk(seed: int, name: str, index: int, count: int) -> memoryview:
    import numpy as np
    import torch

    if name.endswith("norm.weight"):
        values = torch.ones(count)
    else:
        name_key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        generator = np.random.default_rng([seed, name_key, index])
        values = torch.from_numpy(generator.standard_normal(count, dtype=np.float32)).mul_(STANDARD_DEVIATION)
    return values.to(torch.bfloat16).view(torch.uint8).numpy().data


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
