"""Drafts of an answer's next tokens: what followed its last ones before, in its prompt, itself and its siblings.

The step that computes drafted tokens verifies them, so a draft never changes an answer; it only makes the step longer.
Whether that pays depends on how many drafts are right and on what a row costs, and both are learned as a pipeline runs.
Source of the idea: prompt lookup decoding (Saxena, 2023); exact verification: Leviathan et al. (arXiv 2211.17192).
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

PLACES = 4
"""The newest occurrences of the last two tokens that are compared."""
LONGEST_MATCH = 16
"""Most tokens of a match that are counted."""
FORGET_TOKENS, FORGET_STEPS = 0.95, 0.99
"""What remains of the weight of earlier tokens or steps with each new one."""
ROW_SHARE = 0.05
"""Assumed share that a further row adds to the time of a one-row step, until it is measured."""


@dataclass
class Texts:
    """The prompt followed by each sibling's answer, with an index of the places of each pair of tokens."""

    prompt: tuple[int, ...]
    answers: list[list[int]] = field(default_factory=list)
    _places: defaultdict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    def begin(self) -> "Lookup":
        """Add an answer without tokens."""
        self.answers.append(list(self.prompt))
        return Lookup(self, len(self.answers) - 1)

    def extend(self, answer: int, tokens: Sequence[int]) -> None:
        """Add tokens to an answer."""
        text = self.answers[answer]
        start = len(text) if self._places else 1  # the prompt is read once, for its first token
        text += tokens
        for end in range(max(start, 1), len(text)):
            places = self._places[text[end - 1], text[end]]
            places.append((answer, end))
            del places[:-PLACES]

    def draft(self, answer: int, most: int) -> tuple[list[int], int]:
        """Return what followed the last tokens of an answer at the place with the longest match, and its length."""
        text = self.answers[answer]
        last, longest, source, after = len(text) - 1, 0, text, 0
        for other, end in self._places.get((text[last - 1], text[last]), ()):
            if (other, end) == (answer, last):
                continue
            length = _common_end(text, last, self.answers[other], end)
            if length >= longest:
                longest, source, after = length, self.answers[other], end + 1
        if not longest:
            return [], 0
        drafted = source[after : after + most]
        while source is text and drafted and len(drafted) < most:  # it repeats itself up to its end
            drafted.append(drafted[len(drafted) - (len(text) - after)])
        return drafted, longest


def _common_end(text: Sequence[int], end: int, other: Sequence[int], other_end: int) -> int:
    """Return how many tokens up to these places are the same, at most LONGEST_MATCH."""
    most = min(LONGEST_MATCH, end + 1, other_end + 1)
    return next((i for i in range(most) if text[end - i] != other[other_end - i]), most)


class Lookup:
    """The drafts of one answer, and how often they were right, by the length of their match."""

    def __init__(self, texts: Texts, answer: int) -> None:
        self._texts, self._answer = texts, answer
        self._known = 0  # tokens of the answer that the texts have
        self._drafted: list[int] = []
        self._level = 0
        self._right = [1.0] * (LONGEST_MATCH.bit_length() + 1)  # as if one of two had been right before
        self._tried = [2.0] * (LONGEST_MATCH.bit_length() + 1)

    def draft(self, tokens: Sequence[int], most: int) -> tuple[list[int], float]:
        """Return at most this many tokens that may come after an answer's `tokens`, and the chance of each to be right.

        What came since the last draft shows how right that was, whether or not it was computed.
        """
        new = tokens[self._known :]
        for drafted, token in zip(self._drafted, new, strict=False):
            self._right[self._level] = FORGET_TOKENS * self._right[self._level] + (drafted == token)
            self._tried[self._level] = FORGET_TOKENS * self._tried[self._level] + 1
            if drafted != token:
                break
        self._texts.extend(self._answer, new)
        self._known = len(tokens)
        self._drafted, match = self._texts.draft(self._answer, most)
        self._level = match.bit_length()
        return self._drafted, self._right[self._level] / self._tried[self._level]


class StepTime:
    """The time of a decode step by its rows: a line through the steps so far, the newest with the most weight."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._variance = self._covariance = 0.0

    def observe(self, rows: int, seconds: float) -> None:
        """Learn from a step; one that took far longer than expected was held up by something else."""
        if self._weight > 1:
            seconds = min(seconds, 3 * self(rows))
        self._weight = FORGET_STEPS * self._weight + 1
        change = rows - self._rows, seconds - self._seconds
        self._rows += change[0] / self._weight
        self._seconds += change[1] / self._weight
        self._variance = FORGET_STEPS * self._variance + change[0] * (rows - self._rows)
        self._covariance = FORGET_STEPS * self._covariance + change[0] * (seconds - self._seconds)

    def __call__(self, rows: int) -> float:
        """Return the expected time of a step, in seconds; before the first one in steps of one row."""
        usual = self._seconds or 1.0
        expected = usual * ROW_SHARE / (1 + ROW_SHARE * max(self._rows - 1, 0))
        slope = max(0.0, (self._covariance + expected) / (self._variance + 1))  # as if one row more was tried once
        return usual + slope * (rows - (self._rows or 1))


def draft_lengths(
    chances: Sequence[float], most: Sequence[int], room: int, seconds: Callable[[int], float]
) -> list[int]:
    """Return how many drafted tokens of each answer to compute, at most `most` of each and `room` in all.

    A draft's i-th token is right by the i-th power of its chance. Rows are added as long as they raise the expected
    tokens per second of the step, which has a row for each answer anyhow.
    """
    lengths = [0] * len(chances)
    tokens, rows = float(len(chances)), len(chances)
    worths = [(-chance, index) for index, chance in enumerate(chances) if most[index]]
    heapq.heapify(worths)
    while worths and room:
        worth, index = worths[0]
        if (tokens - worth) * seconds(rows) <= tokens * seconds(rows + 1):
            break
        tokens, rows, room = tokens - worth, rows + 1, room - 1
        lengths[index] += 1
        if lengths[index] < most[index]:
            heapq.heapreplace(worths, (worth * chances[index], index))
        else:
            heapq.heappop(worths)
    return lengths
