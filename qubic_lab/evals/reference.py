"""The transformers implementation as the reference: greedy answers to the same prompts, one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ReferenceAnswer:
    """Tokens and fp32 logits (tokens, V) of one greedy answer."""

    token_ids: tuple[int, ...]
    logits_TV: npt.NDArray[np.float32]


def library() -> str:
    """Return the reference's name and version."""
    return f"transformers {version('transformers')}"


def reference_answers(
    folder: Path, dtype: str, prompts: Sequence[Sequence[int]], max_new_tokens: int, threads: int
) -> Iterator[ReferenceAnswer]:
    """Answer prompts, given as token ids, greedily with transformers' own model and generate."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging as transformers_logging

    from qubic_lab.model.config import load_config
    from qubic_lab.model.decoder import torch_dtype

    transformers_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch_dtype(dtype), local_files_only=True)
    eos = list(load_config(folder).eos_token_ids) or None
    # A fresh config: the model's own may ask for sampling or penalties, and the comparison is of plain greedy decoding.
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=eos[0] if eos else 0)
    for prompt in prompts:
        tokens = torch.tensor([list(prompt)])
        with torch.inference_mode():
            output = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        answer = output.sequences[0, len(prompt) :].tolist()
        logits = np.stack([step[0].float().numpy() for step in output.logits])
        yield ReferenceAnswer(tuple(answer), logits)
