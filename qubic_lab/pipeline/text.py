"""Text to tokens and back, by the model's own tokenizer and chat template."""

from pathlib import Path
from typing import Any

from qubic_lab.core import Request
from qubic_lab.errors import InputError, ModelError


class Tokenizer:
    """A model folder's tokenizer, as transformers loads it."""

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer.

        Raises:
            ModelError: the folder has none that can be loaded.
        """
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        # AutoTokenizer would rebuild the tokenizer by the class that goes with the architecture; what the file says
        # is what the model was trained with.
        loader: Any = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else AutoTokenizer
        try:
            self._tokenizer: Any = loader.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(f"{folder}: no tokenizer can be loaded ({reason}): add its tokenizer.json") from error

    def encode(self, request: Request) -> tuple[int, ...]:
        """Return the tokens of a request's prompt: as they are, raw text, or as the user's turn of a chat.

        Raises:
            InputError: the model has no chat template.
        """
        if request.token_ids:
            return request.token_ids
        if request.raw:
            return tuple(self._tokenizer.encode(request.prompt))
        if not self._tokenizer.chat_template:
            raise InputError("the model has no chat template: send prompts as they are (raw, `generate --raw`)")
        chat = [{"role": "user", "content": request.prompt}]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, special ones included."""
        return str(self._tokenizer.decode([token_id]))

    def decode(self, token_ids: list[int]) -> str:
        """Return the text of an answer's tokens, without special ones."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str | None:
    """Return the text before the first stop string in it, or None when it holds none."""
    positions = [position for string in stop if (position := text.find(string)) >= 0]
    return text[: min(positions)] if positions else None
