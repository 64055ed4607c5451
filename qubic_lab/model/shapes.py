"""Configurations of models without their weights: config.json files in the package, or in a folder."""

from pathlib import Path

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.model.config import ModelConfig, load_config, parse_config, read_json

CONFIGS = {file.stem: file for file in sorted((Path(__file__).parent / "configs").glob("*.json"))}
"""Config.json files of known models, by alias."""


def resolve_shape(model: str) -> ModelConfig:
    """Return the configuration of an alias or of a model folder, which needs no weights.

    Raises:
        InputError: it is neither an alias nor a folder.
        ModelError: the folder's config.json is missing or of an unknown kind.
    """
    if model in CONFIGS:
        return parse_config(read_json(CONFIGS[model]), model)
    folder = Path(model).expanduser()
    if not model or not folder.is_dir():
        raise InputError(f"model {model!r} is neither a folder nor a known alias: {did_you_mean(model, CONFIGS)}")
    return load_config(folder)
