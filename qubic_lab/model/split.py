"""Splitting a model's files into one folder per rank, which has all that the rank needs and can be verified."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qubic_lab.errors import InputError, ModelError
from qubic_lab.model.checkpoint import Checkpoint, model_hash, text_files
from qubic_lab.model.folders import (
    MANIFEST,
    new_folder,
    problems,
    rank_folders,
    rank_name,
    read_manifest,
    write_manifest,
)
from qubic_lab.model.layout import StageRange, stage_ranges, stage_tensors
from qubic_lab.model.safetensors_file import WEIGHTS, Progress, TensorSpec, advance_to, write_safetensors


@dataclass(frozen=True)
class SplitManifest:
    """How a model was split; `model_hash` is that of the whole model's config and weights."""

    strategy: str
    layers_per_rank: tuple[int, ...]
    model_hash: str

    @property
    def ranks(self) -> int:
        """Number of ranks, whether or not their folders are on this host."""
        return len(self.layers_per_rank)


def text_folder(folder: Path) -> Path:
    """Return the folder with config and tokenizer: a model's own, or that of a split's rank 0.

    Raises:
        ModelError: as for read_split.
    """
    return folder if read_split(folder) is None else rank_folder(folder, 0)


def split_checkpoint(
    source: Path, out: Path, layers_per_rank: tuple[int, ...], strategy: str, progress: Progress = lambda share: None
) -> None:
    """Write `out/rank-<r>/` for each rank, with its tensors as stored, config, tokenizer and a manifest.

    Raises:
        ModelError: the source's files are missing, damaged or contradictory.
        InputError: `out` is not empty, or cannot be written.
    """
    checkpoint = Checkpoint.open(source)
    assert sum(layers_per_rank) == checkpoint.config.layers, layers_per_rank
    stages = stage_ranges(layers_per_rank)
    held = [checkpoint.tensors[name].nbytes for stage in stages for name in stage_tensors(checkpoint.config, stage)]
    with new_folder(out) as partial:
        manifest = SplitManifest(strategy, layers_per_rank, model_hash(source))
        advance = advance_to(progress, sum(held))
        for rank, stage in enumerate(stages):
            folder = partial / rank_name(rank)
            folder.mkdir()
            _write_stage(checkpoint, stage, folder, advance)
            write_manifest(folder, {"kind": "split", "rank": rank, **asdict(manifest)})


def read_split(folder: Path) -> SplitManifest | None:
    """Return how a folder was split, from the ranks on this host, or None if it is not a split.

    Raises:
        ModelError: a manifest is missing or damaged, or the ranks' manifests disagree.
    """
    manifests = [_rank_manifest(rank_path) for rank_path in rank_folders(folder)]
    if not manifests:
        return None
    if len(set(manifests)) > 1:
        raise ModelError(f"{folder} mixes ranks of several splits: their manifests disagree; split the model again")
    return manifests[0]


def rank_folder(folder: Path, rank: int) -> Path:
    """Return the folder of one rank of a split; a ModelError if the folder is not on this host."""
    path = folder / rank_name(rank)
    if not path.is_dir():
        raise ModelError(
            f"{path} is missing: copy it from the host where the model was split, or split the model again"
        )
    return path


def verify(folder: Path) -> list[str]:
    """Compare a split, a rank's folder or a converted model with its manifests; return the problems, one line each.

    Raises:
        InputError: the folder is missing or has no manifest.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one that `qubic-lab split` has written")
    if (folder / MANIFEST).exists():
        return problems(folder)
    ranks = rank_folders(folder)
    if not ranks:
        raise InputError(f"{folder} has no {MANIFEST} to compare with: `qubic-lab split` writes one for each rank")
    if found := [problem for rank in ranks for problem in problems(rank)]:
        return found
    try:
        split = read_split(folder)
    except ModelError as error:
        return [str(error)]
    assert split is not None
    expected = [folder / rank_name(rank) for rank in range(split.ranks)]
    return [f"{path} is missing" for path in expected if path not in ranks]


def remake_ranks(folder: Path, source: Path, progress: Progress = lambda share: None) -> list[Path]:
    """Write the damaged ranks of a split again from the model that it was made of; return their folders.

    Raises:
        ModelError: no rank's manifest is intact, or the source's files are missing or damaged.
        InputError: the source is another model, or the folder cannot be written.
    """
    bad = [rank for rank in rank_folders(folder) if problems(rank)]
    split = surviving_manifest(folder)
    if model_hash(source) != split.model_hash:
        raise InputError(f"{folder} was split from another model than {source}: give that one")
    with TemporaryDirectory(prefix=".remade-", dir=folder) as place:
        split_checkpoint(source, Path(place) / "all", split.layers_per_rank, split.strategy, progress)
        for rank in bad:
            rank.rename(Path(place) / f"bad-{rank.name}")
            (Path(place) / "all" / rank.name).rename(rank)
    return bad


def surviving_manifest(folder: Path) -> SplitManifest:
    """Return how a folder was split by the first manifest that is intact; a ModelError if none is."""
    for rank in rank_folders(folder):
        with suppress(ModelError):
            return _rank_manifest(rank)
    raise ModelError(f"{folder} has no intact {MANIFEST}: split the model again")


def _write_stage(checkpoint: Checkpoint, stage: StageRange, folder: Path, advance: Callable[[int], None]) -> None:
    for file in text_files(checkpoint.folder):
        shutil.copyfile(file, folder / file.name)
    tensors = {
        name: TensorSpec(checkpoint.tensors[name].dtype, shape)
        for name, shape in stage_tensors(checkpoint.config, stage).items()
    }
    write_safetensors(folder / WEIGHTS, tensors, checkpoint.chunks, advance)


def _rank_manifest(folder: Path) -> SplitManifest:
    content = read_manifest(folder)
    if content is None or content.get("kind") != "split" or rank_name(content["rank"]) != folder.name:
        raise ModelError(f"{folder} is another rank by its {MANIFEST} than by its name: split the model again")
    return SplitManifest(content["strategy"], tuple(content["layers_per_rank"]), content["model_hash"])
