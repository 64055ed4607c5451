"""Text to tokens and back, by the model's own tokenizer and chat template."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from qubic_lab.core import Request
from qubic_lab.errors import InputError, ModelError
from qubic_lab.model.random_model import byte_characters

_BYTES = {character: bytes([byte]) for byte, character in enumerate(byte_characters())}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """The tokenizer of a model folder, loaded by transformers."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer; a ModelError if the folder has no tokenizer that can be loaded."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # AutoTokenizer would rebuild the tokenizer with the class of the architecture, but the model was trained with
        # what the file says.
        loader: Any = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else AutoTokenizer
        try:
            self._tokenizer: Any = loader.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # tokenizers raises nothing more specific
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{folder}: no tokenizer can be loaded ({reason}): add its tokenizer.json") from error
        self._names = {id: str(token) for id, token in self._tokenizer.added_tokens_decoder.items()}
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        self._byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))
        self._raw: dict[int, bytes] = {}

    def encode(self, request: Request) -> tuple[int, ...]:
        """Return the tokens of a request's prompt: as they are, raw text, or as a chat.

        Raises:
            InputError: the model has no chat template, or it refuses the messages.
            ModelError: the template cannot be used.
        """
        if request.token_ids:
            return request.token_ids
        if request.raw:
            return tuple(self._tokenizer.encode(request.prompt))
        if not self._tokenizer.chat_template:
            raise InputError("the model has no chat template: send raw prompts (`generate --raw`)")
        turns = [(message.role, message.content) for message in request.messages] or [("user", request.prompt)]
        chat = [{"role": role, "content": content} for role, content in turns]
        try:
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            if type(error) is TemplateError:  # raised by the template itself, about the messages
                raise InputError(
                    f"the model's chat template refuses the messages ({error}): give others, or other roles"
                ) from error
            raise ModelError(
                f"the model's chat template cannot be used ({error}): fetch its tokenizer again"
            ) from error
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def encode_text(self, text: str, special: bool) -> list[int]:
        """Return the tokens of a text, with the `special` ones that the model wants around each, or without."""
        return list(self._tokenizer.encode(text, add_special_tokens=special))

    def whole_text(self, token_ids: list[int]) -> str:
        """Return the text of tokens, special ones included; an InputError if an id is not in the vocabulary."""
        if (largest := max(token_ids)) >= (size := len(self._tokenizer)):
            raise InputError(f"token id {largest} is not in the vocabulary of {size}")
        return str(self._tokenizer.decode(token_ids))

    def about(self) -> dict[str, str | None]:
        """Return the special tokens of texts, which may be None, and the chat template."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
        return {name: getattr(self._tokenizer, name) for name in names}

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, special ones included."""
        return str(self._tokenizer.decode([token_id]))

    def raw(self, token_id: int) -> bytes:
        """Return the bytes of one token: a part of a text's UTF-8, a special token's name, or none of a free id."""
        if (raw := self._raw.get(token_id)) is None:
            raw = self._raw[token_id] = self._bytes_of(token_id)
        return raw

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self._names:
            return self._names[token_id].encode()
        token = self._tokenizer.convert_ids_to_tokens(token_id) or ""
        if self._byte_level:
            return b"".join(_BYTES.get(character) or character.encode() for character in token)
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        return str(token).replace("▁", " ").encode()

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of an answer's tokens, without special ones."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


class TextStream:
    """Turns the tokens of an answer into pieces of text, which together are the text of all tokens.

    Incomplete characters, and text that may be the beginning of a stop text, are held back until the next tokens.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        # Tokens from `_start` to `_read` are decoded again with each new one: the text depends on neighbours.
        self._start = self._read = 0
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token and return the text that is complete; `stopped` is set when a stop text has come."""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._start : self._read])
        text = self._decode(self._tokens[self._start :])
        if text.endswith(_INCOMPLETE) or len(text) <= len(known):
            return ""
        self._start, self._read = self._read, len(self._tokens)
        return self._release(text[len(known) :])

    def end(self) -> str:
        """Return the held-back text at the end of the answer."""
        if self.stopped:
            return ""
        known = self._decode(self._tokens[self._start : self._read])
        rest = self._release(self._decode(self._tokens[self._start :])[len(known) :])
        return rest if self.stopped else rest + self._held

    def _release(self, text: str) -> str:
        text = self._held + text
        cuts = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if cuts:
            self.stopped = True
            self._held = ""
            return text[: min(cuts)]
        kept = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
