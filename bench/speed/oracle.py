"""An image that others are held against, kept on disk: so runs that follow each other share one, made once."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from uid.bundles.files import written_whole
from uid.bundles.tensors import Array
from uid.errors import InputError


@dataclass(frozen=True)
class Terms:
    """How an image was made, which another must have in common with it to be compared."""

    height: int  # pixels
    width: int
    steps: int
    guidance: float
    seed: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}, {self.steps} steps, guidance {self.guidance:g}, seed {self.seed}"


@dataclass(frozen=True)
class Oracle:
    """The image, (H, W, 3) uint8, what made it in words, and its terms."""

    image: Array
    against: str
    terms: Terms

    def write(self, path: Path) -> None:
        """To a ``.npz`` file, which appears whole. Raises ``OutputError``."""
        about = json.dumps({"against": self.against, "terms": asdict(self.terms)})
        with written_whole(path) as temporary, temporary.open("wb") as file:
            np.savez(file, image=self.image, about=np.array(about))

    def check(self, wanted: Terms) -> None:
        """Raise ``InputError`` unless it was made on these terms."""
        if self.terms != wanted:
            raise InputError(f"the oracle is an image of {self.terms}; this run makes {wanted}: make one for it")


def read_oracle(path: Path) -> Oracle:
    """What ``write`` wrote. Raises ``InputError`` for anything else."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            return Oracle(stored["image"], about["against"], Terms(**about["terms"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {path}, expected what `uid-bench oracle -o` writes: {error}") from error
