"""Small disks for tests: a memory file system with a limit, which only root can mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Disk:
    """A disk that is mounted at a folder."""

    folder: Path

    def fill(self) -> None:
        """Leave no room on it."""
        with (self.folder / "filler").open("ab", buffering=0) as filler:
            for size in (2**20, 2**12, 1):
                with pytest.raises(OSError, match="No space left"):
                    while True:
                        filler.write(bytes(size))

    def free(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink()


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[Disk]:
    """Mount a disk at a new folder for the time of the block."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=777", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only root can mount a small disk, and not in each container")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
