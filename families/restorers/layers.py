"""What the networks share: normalisation, names of weights that are published, and sizes read from weights."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel. Without a bias the mean is not subtracted either."""

    def __init__(self, channels: int, epsilon: float, *, bias: bool = True) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        if self.bias is None:
            return self.divided(x)
        # Channels last and back: engines have this as one operator, several times as fast as its parts.
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)  # what is normalised may stay float32
        last = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, self.epsilon)
        return last.permute(0, 3, 1, 2)

    def divided(self, x: Tensor) -> Tensor:
        """(B, C, H, W) over its standard deviation."""
        values = x.float()  # the squares of ordinary values overflow float16
        variance = (values - values.mean(1, keepdim=True)).square().mean(1, keepdim=True)
        scale = torch.rsqrt(variance + self.epsilon)
        return (values * scale * self.weight.float()[:, None, None]).to(x.dtype)


def named(**modules: nn.Module) -> nn.Sequential:
    """Modules in a row, whose weights have these names in front of their own."""
    return nn.Sequential(OrderedDict(modules))


def numbers(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many different numbers follow "prefix." in the names of weights: the modules of a row.

    1 where there is none: the comparison of all names then tells what is missing.
    """
    places = {key.removeprefix(f"{prefix}.").partition(".")[0] for key in weights if key.startswith(f"{prefix}.")}
    return max(1, sum(place.isdecimal() for place in places))


def size(weights: Mapping[str, Tensor], key: str, axis: int, default: int = 1) -> int:
    """A size of a weight; ``default`` where there is none: the comparison of all shapes then names the weight."""
    shape = weights[key].shape if key in weights else ()
    return max(1, shape[axis]) if len(shape) > axis else default
