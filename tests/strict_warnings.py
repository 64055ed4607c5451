"""The mark of tests of numbers: a warning, such as of a division by zero, fails them."""

import pytest

# What other tests left to the garbage collector may come to its end, and warn, while one of these runs.
WARNINGS_ARE_ERRORS = pytest.mark.filterwarnings("error", "default::pytest.PytestUnraisableExceptionWarning")
