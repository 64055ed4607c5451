"""A tokenizer of the 256 bytes and two marks, for models whose weights are random and whose text means nothing."""

from pathlib import Path

from qubic_lab.errors import ModelError

START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 256, 257
VOCABULARY = 258
"""Token ids of the tokenizer: bytes 0 to 255, then the marks."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    f"{START}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}\n"
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{START}assistant\n{{% endif %}}"
)


def check_vocabulary(vocab: int) -> None:
    """Refuse a model that has too few token ids for this tokenizer.

    Raises:
        ModelError: with the number that is needed.
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
    """Return the printable character by which byte-level tokenizers write each byte, in the order of the bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in printable else next(hidden)) for byte in range(256)]
