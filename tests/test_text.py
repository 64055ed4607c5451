"""Text as it streams: whole characters only, stop texts found across tokens, and nothing lost or added."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.pipeline.text import TextStream


def decode(token_ids: list[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(token_ids).decode(errors="replace")


def pieces(text: bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The pieces of a text that comes byte by byte, the held back rest last, and whether a stop text ended it."""
    stream = TextStream(decode, stop)
    found = []
    for byte in text:
        found.append(stream.add(byte))
        if stream.stopped:
            return found, True
    return [*found, stream.end()], stream.stopped


@given(st.text())
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pieces(text.encode())[0]) == text


@given(st.binary())
def test_broken_utf8_loses_nothing_that_decoding_as_a_whole_gives(data: bytes) -> None:
    found, _ = pieces(data)
    assert "".join(found).replace("\ufffd", "") == data.decode(errors="ignore")


def test_a_character_comes_whole_with_its_last_byte() -> None:
    found, _ = pieces("né🙂".encode())
    assert found == ["n", "", "é", "", "", "", "🙂", ""]


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=3), st.text("ab", min_size=1, max_size=4))
def test_stop_texts_end_the_text_where_they_begin(text: str, first: str, second: str) -> None:
    found, stopped = pieces(text.encode(), (first, second))
    ends = [end for end in range(1, len(text) + 1) if text[:end].endswith((first, second))]
    assert stopped == bool(ends)
    seen = text[: ends[0]] if ends else text
    cuts = [position for stop in (first, second) if (position := seen.find(stop)) >= 0]
    assert "".join(found) == seen[: min(cuts, default=len(seen))]


@pytest.mark.parametrize(("text", "held"), [("<", "<"), ("<e", "<e"), ("x<", "<"), ("<x", ""), ("e", "")])
def test_what_may_begin_a_stop_text_waits(text: str, held: str) -> None:
    stream = TextStream(decode, ("<end>",))
    shown = "".join(stream.add(byte) for byte in text.encode())
    assert shown + held == text
    assert stream.end() == held
