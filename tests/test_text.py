"""Text to tokens and back: chats, bytes of tokens, and text that streams in whole characters with nothing lost."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from qubic_lab.core import ChatMessage, Request, SamplingParams
from qubic_lab.errors import InputError
from qubic_lab.model.random_model import END, END_ID, START, START_ID, save_byte_tokenizer
from qubic_lab.pipeline.text import TextStream, Tokenizer

NAMES = (START.encode(), END.encode())


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


@pytest.fixture(scope="module")
def of_bytes(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer whose tokens are bytes, with a chat template that prints roles and contents."""
    save_byte_tokenizer(folder := tmp_path_factory.mktemp("bytes"), 512)
    return Tokenizer(folder)


def with_pieces(folder: Path) -> Tokenizer:
    """A tokenizer of the other kind: words with spaces, bytes for what is no word; its template objects."""
    from transformers import PreTrainedTokenizerFast

    tokens = ["<unk>", "<s>", "▁Hello", "▁", "wor", "ld", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Backend(models.BPE({token: id for id, token in enumerate(tokens)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    template = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the first is not the user') }}{% endif %}"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", chat_template=template).save_pretrained(folder)
    return Tokenizer(folder)


@given(text=st.text(min_size=1).filter(str.strip))
def test_the_bytes_of_a_text_s_tokens_are_the_text(text: str, of_bytes: Tokenizer) -> None:
    tokens = of_bytes.encode(Request(text, raw=True))
    assert len(tokens) == len(text.encode())
    assert b"".join(map(of_bytes.raw, tokens)) == text.encode()


def test_special_tokens_have_a_name_and_free_ids_nothing(of_bytes: Tokenizer) -> None:
    assert [of_bytes.raw(id) for id in (ord("!"), START_ID, END_ID, 300)] == [b"!", *NAMES, b""]


def test_bytes_of_words_with_spaces_and_of_single_bytes(tmp_path: Path) -> None:
    tokenizer = with_pieces(tmp_path)
    tokens = [2, 3, 4, 5, *(6 + byte for byte in "é🙂".encode())]
    assert b"".join(map(tokenizer.raw, tokens)) == " Hello worldé🙂".encode()
    assert tokenizer.decode(tokens) == "Hello worldé🙂"
    assert tokenizer.raw(1) == b"<s>"


def test_turns_of_a_chat_go_through_the_model_s_template(of_bytes: Tokenizer) -> None:
    turns = (ChatMessage("system", "Be brief."), ChatMessage("user", "é?"), ChatMessage("assistant", ""))
    tokens = of_bytes.encode(Request(messages=turns))
    start, end = (name.decode() for name in NAMES)
    expected = f"{start}system\nBe brief.{end}\n{start}user\né?{end}\n{start}assistant\n{end}\n{start}assistant\n"
    assert b"".join(map(of_bytes.raw, tokens)).decode() == expected
    assert of_bytes.encode(Request("é?")) == of_bytes.encode(Request(messages=turns[1:2]))


def test_a_chat_that_the_template_refuses_is_one_clear_error(tmp_path: Path, of_bytes: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"unknown role 'usr': did you mean 'user'\?"):
        ChatMessage("usr", "hi")
    with pytest.raises(InputError, match=r"refuses the messages \(the first is not the user\): give others"):
        with_pieces(tmp_path).encode(Request(messages=(ChatMessage("system", "hi"),)))
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="the model has no chat template: send raw prompts"):
        Tokenizer(tmp_path).encode(Request(messages=(ChatMessage("user", "hi"),)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "the prompt is empty"),
        ({"prompt": "hi", "token_ids": (1,)}, "has a prompt and token ids: give one of them"),
        ({"token_ids": (1,), "messages": (ChatMessage("user", "hi"),)}, "has token ids and messages: give one"),
        ({"messages": (ChatMessage("user", "hi"),), "raw": True}, "raw is set with messages"),
        ({"prompt": "hi", "sampling": {"max_new_tokens": 0}}, "max_new_tokens is 0: it must be at least 1 unless"),
        ({"prompt": "hi", "prompt_logprobs": 21}, "prompt_logprobs is 21: it must be at most 20"),
        ({"prompt": "hi", "prompt_logprobs": -1}, "prompt_logprobs is -1"),
        ({"prompt": "hi", "sampling": {"min_p": 1.5}}, "min_p is 1.5: it must be between 0"),
        (
            {"prompt": "hi", "sampling": {"presence_penalty": 2.5}},
            "presence_penalty is 2.5: it must be between -2 and 2",
        ),
        ({"prompt": "hi", "sampling": {"frequency_penalty": math.nan}}, "frequency_penalty is nan"),
        ({"prompt": "hi", "sampling": {"logit_bias": ((1, 101.0),)}}, "logit_bias of token 1 is 101.0: it must be"),
        ({"prompt": "hi", "sampling": {"logit_bias": ((-1, 1.0),)}}, "logit_bias's token id is -1"),
        ({"prompt": "hi", "sampling": {"logit_bias": ((1, 1.0),) * 2}}, "logit_bias has 2 tokens: .* each once"),
    ],
)
def test_requests_that_ask_for_too_much_or_nothing(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Request(**fields | {"sampling": SamplingParams(**fields.get("sampling", {}))})
