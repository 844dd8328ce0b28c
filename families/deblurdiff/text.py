"""Prompts to token ids, as OpenCLIP's tokenizer makes them.

The vocabulary is not part of the published file. The two prompts that the original uses by default are known here; any
other needs the tokenizer's files (vocab.json and merges.txt, those of Stable Diffusion 1 and 2) beside the weights.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from uid.errors import CheckpointError
from uid.families.deblurdiff.configs import TOKENS

START, END, PADDING = 49406, 49407, 0
DEFAULT_PROMPT = ""
DEFAULT_NEGATIVE = "low quality, blurry, low-resolution, noisy, unsharp, weird textures"
KNOWN: dict[str, tuple[int, ...]] = {
    DEFAULT_PROMPT: (),
    DEFAULT_NEGATIVE: (1042, 3027, 267, 21977, 267, 1042, 268, 9977, 267, 33495, 267, 569, 8157, 267, 5613, 28063),
}
TOKENIZER = "tokenizer"  # folder beside the weights


def tokens(prompt: str, folder: Path, vocabulary: int) -> Tensor:
    """The ids of a prompt, (1, 77) int64: start, text, end, zeros.

    ``folder`` is the checkpoint's; ids beyond ``vocabulary``, as of a small text tower, become those modulo its size.
    Raises ``CheckpointError`` for a prompt that is too long, or that needs the tokenizer's files where there are none.
    """
    ids = [START, *(KNOWN[prompt] if prompt in KNOWN else tokenized(prompt, folder / TOKENIZER)), END]
    if len(ids) > TOKENS:
        raise CheckpointError(
            f"the prompt has {len(ids)} tokens; expected at most {TOKENS}: shorten {prompt[:60]!r} ..."
        )
    padded = torch.tensor([[*ids, *[PADDING] * (TOKENS - len(ids))]])
    return padded % vocabulary


def tokenized(prompt: str, folder: Path) -> list[int]:
    """The ids of a prompt without start and end."""
    if not folder.is_dir():
        raise CheckpointError(
            f"the prompt {prompt[:60]!r} needs the tokenizer's files; put vocab.json and merges.txt of Stable "
            f"Diffusion into {folder}, or leave the prompt out"
        )
    ids: list[int] = CLIPTokenizer.from_pretrained(folder)(prompt, add_special_tokens=False).input_ids
    return ids
