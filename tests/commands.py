"""What became of a command line; the fixture `here` runs one in this process."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout of a command that ended well and had nothing else to say."""
        assert (self.status, self.err) == (0, "")
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    def failed(self, status: int) -> str:
        """The one line of a command that failed, which left stdout empty."""
        assert (self.status, self.out) == (status, "")
        assert self.err.startswith("error: ") and self.err.endswith("\n") and self.err.count("\n") == 1
        return self.err


Run = Callable[[str], Ended]
