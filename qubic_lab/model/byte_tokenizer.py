"""A tokenizer of the 256 bytes and two special tokens, for models with random weights."""

from pathlib import Path

from qubic_lab.errors import ModelError

START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 256, 257
VOCABULARY = 258
"""Number of token ids: bytes 0 to 255, then the special tokens."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{START}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{START}assistant\n{{% endif %}}"
)


def check_vocabulary(vocab: int) -> None:
    """Check that a model has enough token ids for this tokenizer.

    Raises:
        ModelError: it has too few; the message has the required number.
    """
    if vocab < VOCABULARY:
        raise ModelError(f"vocab_size is {vocab}: the byte tokenizer of a random model needs at least {VOCABULARY}")


def save_byte_tokenizer(folder: Path, max_positions: int) -> None:
    """Write tokenizer files and a chat template for a model with `max_positions` positions."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = [*_byte_characters(), START, END]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)


def _byte_characters() -> list[str]:
    """Return the printable characters that byte-level tokenizers use for the bytes, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in printable else next(hidden)) for byte in range(256)]
