"""The optimizers that a run may use, and what each stores for a parameter."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from uid.errors import BackendError
from uid.install import how_to_install

OPTIMIZERS = {"adamw": 8.0, "adamw-8bit": 2.03}  # bytes of state for each weight
BETAS = (0.9, 0.99)


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW as PyTorch has it, or bitsandbytes' with moments of 8 bits in blocks of 256.

    Raises ``BackendError`` where bitsandbytes is not installed.
    """
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=learning_rate, betas=BETAS, fused=True)
    return eight_bit().AdamW8bit(parameters, lr=learning_rate, betas=BETAS)


def eight_bit() -> Any:
    """The optimizers of bitsandbytes."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise BackendError(
            f"the optimizer adamw-8bit needs bitsandbytes, which cannot be imported ({error}); "
            f"{how_to_install('train-8bit')}, or use adamw",
            option="optimizer",
        ) from error
    return bitsandbytes.optim
