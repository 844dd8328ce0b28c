"""Prompts to token ids, as OpenCLIP's tokenizer makes them.

The vocabulary is not part of the published file. The two prompts that the original uses by default are known here; any
other needs the tokenizer's files (vocab.json and merges.txt, those of Stable Diffusion 1 and 2) beside the weights.
OpenCLIP also mends mojibake, by the ftfy library; that is not done here.
"""

import html
from collections.abc import Mapping
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Split
from torch import Tensor

from uid.bundles.reading import parsed_json, read_limited
from uid.errors import CheckpointError
from uid.families.deblurdiff.configs import TOKENS

AGAIN = "get both of the tokenizer's files again, those of Stable Diffusion 1 or 2"
PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"  # of a prompt, each split by itself
START, END, PADDING = 49406, 49407, 0
DEFAULT_PROMPT = ""
DEFAULT_NEGATIVE = "low quality, blurry, low-resolution, noisy, unsharp, weird textures"
KNOWN: dict[str, tuple[int, ...]] = {
    DEFAULT_PROMPT: (),
    DEFAULT_NEGATIVE: (1042, 3027, 267, 21977, 267, 1042, 268, 9977, 267, 33495, 267, 569, 8157, 267, 5613, 28063),
}
TOKENIZER = "tokenizer"  # folder beside the weights
VOCABULARY, MERGES = "vocab.json", "merges.txt"
LARGEST_FILE = 1 << 23  # bytes of either
WORDS = END + 1
PAIRS = WORDS - 2 * 256 - 2  # merges: each makes a word of its own, beside bytes, bytes at a word's end, start and end


def tokens(prompt: str, folder: Path, vocabulary: int) -> Tensor:
    """The ids of a prompt, (1, 77) int64: start, text, end, zeros.

    ``folder`` is the checkpoint's. A text tower with a smaller ``vocabulary`` than OpenCLIP's, as tests have, gets ids
    modulo its size. Raises ``CheckpointError`` for a prompt that is too long, or that needs the tokenizer's files where
    they are not there or not OpenCLIP's.
    """
    prompt = cleaned(prompt)
    ids = [START, *(KNOWN[prompt] if prompt in KNOWN else tokenized(prompt, folder / TOKENIZER)), END]
    if len(ids) > TOKENS:
        raise CheckpointError(
            f"the prompt has {len(ids)} tokens; expected at most {TOKENS}: shorten {prompt[:60]!r} ..."
        )
    padded = torch.tensor([[*ids, *[PADDING] * (TOKENS - len(ids))]])
    return padded % min(vocabulary, WORDS)


def cleaned(prompt: str) -> str:
    """A prompt without HTML's entities, in lower case, with single spaces between words."""
    return " ".join(html.unescape(html.unescape(prompt)).split()).lower()


def tokenized(prompt: str, folder: Path) -> list[int]:
    """The ids of a cleaned prompt without start and end; all are below ``WORDS``."""
    missing = [name for name in (VOCABULARY, MERGES) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"the prompt {prompt[:60]!r} needs the tokenizer's files, and {folder} lacks {' and '.join(missing)}; put "
            f"{VOCABULARY} and {MERGES} of Stable Diffusion there, or leave the prompt out"
        )
    words = vocabulary_of(folder / VOCABULARY)
    tokenizer = Tokenizer(
        BPE(vocab=words, merges=merges_of(folder / MERGES, words), end_of_word_suffix="</w>", fuse_unk=False)
    )
    tokenizer.normalizer = NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [Split(Regex(PIECES), behavior="removed", invert=True), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False).ids
    return ids


def vocabulary_of(file: Path) -> dict[str, int]:
    """The words and their ids, which are OpenCLIP's in number."""
    try:
        words = parsed_json(read_limited(file, LARGEST_FILE))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; {AGAIN}") from error
    ids = list(words.values()) if isinstance(words, dict) else []
    if not all(type(one) is int for one in ids) or sorted(ids) != list(range(WORDS)):
        raise CheckpointError(f"{file} has {len(ids)} words; expected {WORDS}, with the ids 0 to {WORDS - 1}: {AGAIN}")
    if (words.get("<|startoftext|>"), words.get("<|endoftext|>")) != (START, END):
        raise CheckpointError(f"{file} has no start and end of text with the ids {START} and {END}; {AGAIN}")
    return dict(words)


def merges_of(file: Path, words: Mapping[str, int]) -> list[tuple[str, str]]:
    """The pairs that become one word, in order; a line that begins with "#version" comes first."""
    try:
        lines = read_limited(file, LARGEST_FILE).decode("utf-8").strip().split("\n")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {file}: {error}; {AGAIN}") from error
    pairs = [line.split() for line in lines if not line.startswith("#version")][:PAIRS]  # those after it are not used
    if len(pairs) < PAIRS:
        raise CheckpointError(f"{file} has {len(pairs)} merges; expected {PAIRS}: {AGAIN}")
    found = [
        (pair[0], pair[1]) for pair in pairs if len(pair) == 2 and all(one in words for one in (*pair, "".join(pair)))
    ]
    if len(found) < PAIRS:
        raise CheckpointError(
            f"{file} has {PAIRS - len(found)} merges of words that {VOCABULARY} beside it lacks; {AGAIN}"
        )
    return found
