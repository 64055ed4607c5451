"""The worker process of `counting`: reads questions as lines of JSON and writes their answers."""

import traceback
from typing import Any

from qubic_lab.killable import answer_lines
from qubic_lab.votes.counting import QUESTION, CountAnswer, answer_to, encoded


def main() -> None:
    """Answer until the input ends."""
    answer_lines(_answer)


def _answer(question: Any) -> Any:
    try:
        return encoded(answer_to(QUESTION.validate_python(question)))
    except Exception:
        return encoded(CountAnswer(failure=traceback.format_exc()))


if __name__ == "__main__":
    main()
