"""Models of true shapes with random weights: speed and memory are real, answers mean nothing."""

import hashlib
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, check_at_least, did_you_mean
from qubic_lab.model.byte_tokenizer import END_ID, START_ID, check_vocabulary, save_byte_tokenizer
from qubic_lab.model.checkpoint import INDEX, WEIGHTS
from qubic_lab.model.config import MEANINGLESS_KEY, parse_config
from qubic_lab.model.folders import new_folder
from qubic_lab.model.layout import Shape, model_tensors
from qubic_lab.model.safetensors_file import Progress, TensorSpec, advance_to, write_safetensors
from qubic_lab.model.shapes import CONFIGS
from qubic_lab.provenance import usable_cores

STANDARD_DEVIATION = 0.02
CHUNK_VALUES = 4 * 2**20
"""Values made at a time by each core: 16 MiB of float32."""
SHARD_BYTES = 10**9


def write_random_model(
    config: str, out: Path, layers: int | None = None, seed: int = 0, progress: Progress = lambda share: None
) -> None:
    """Write a bfloat16 model of the shapes of `config`: an alias of CONFIGS, a config.json or a folder that holds one.

    Norms are 1, all else is normal with a standard deviation of 0.02. A tensor depends on `seed` and its name alone,
    so a model of fewer `layers` has the first ones of the whole model.

    Raises:
        InputError: unknown config, a count below its limit, or `out` is not empty or cannot be written.
        ModelError: the config is of a kind that the decoder does not know.
    """
    raw = read_shape(config)
    if layers is not None:
        raw["num_hidden_layers"] = check_at_least("layers", layers, 1)
    check_at_least("seed", seed, 0)
    model = parse_config(raw, config)
    check_vocabulary(model.vocab)
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


def read_shape(config: str) -> dict[str, Any]:
    """Return the config.json of a random model of these shapes."""
    path = CONFIGS.get(config, Path(config).expanduser())
    if path.is_dir():
        path = path / "config.json"
    if not path.exists():
        raise InputError(f"config {config!r} is no alias and no file: {did_you_mean(config, CONFIGS)}")
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
    """Yield the bytes of a tensor in order, made by all cores and never more than a few chunks ahead."""
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
