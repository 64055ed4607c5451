"""The events of a simulated run, one line each; the same seed gives the same bytes."""

import hashlib
from pathlib import Path
from typing import IO


class EventLog:
    """Hashes its lines and, with a path, writes them; `count` is their number."""

    def __init__(self, path: Path | None = None) -> None:
        self.count = 0
        self._hash = hashlib.sha256()
        self._lines: list[str] = []
        self._file: IO[bytes] | None = None if path is None else path.open("wb")

    def add(self, at_s: float, who: str, what: str) -> None:
        """Add an event of a process at a virtual time."""
        self.count += 1
        self._lines.append(f"{at_s:.6f} {who} {what}\n")
        if len(self._lines) > 1_000:
            self._flush()

    def close(self) -> str:
        """Return the hash of all lines."""
        self._flush()
        if self._file is not None:
            self._file.close()
        return self._hash.hexdigest()

    def _flush(self) -> None:
        lines = "".join(self._lines).encode()
        self._hash.update(lines)
        if self._file is not None:
            self._file.write(lines)
        self._lines.clear()
