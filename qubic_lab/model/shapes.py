"""The shapes of models whose weights need not be here: config.json files that come with the package, or in a folder."""

from pathlib import Path

from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.model.config import ModelConfig, load_config, parse_config, read_json

CONFIGS = {file.stem: file for file in sorted((Path(__file__).parent / "configs").glob("*.json"))}
"""The config.json files of known models, by alias."""


def resolve_shape(model: str) -> ModelConfig:
    """Return the shape of an alias or of the model in a folder, whether or not its weights are there.

    Raises:
        InputError: neither an alias nor a folder.
        ModelError: the folder's config.json is missing or of an unknown kind.
    """
    if model in CONFIGS:
        return parse_config(read_json(CONFIGS[model]), model)
    folder = Path(model).expanduser()
    if not model or not folder.is_dir():
        raise InputError(
            f"model {model!r} is no folder and no shape that is known here: {did_you_mean(model, CONFIGS)}"
        )
    return load_config(folder)
