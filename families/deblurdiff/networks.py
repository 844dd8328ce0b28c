"""The networks of a denoising step: kernel prediction, adaptive convolution, ControlNet and U-Net."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, DownBlock2D
from torch import Tensor, nn

from uid.families.deblurdiff.configs import KERNEL, LATENT_CHANNELS
from uid.families.deblurdiff.operators import Cover, window_cover
from uid.families.deblurdiff.windows import averaged, cut, windows_of


def adaptive_convolution(x: Tensor, kernels: Tensor) -> Tensor:
    """Element-wise adaptive convolution: every position of every channel has a kernel of its own.

    ``x`` is (B, C, H, W), ``kernels`` (B, C * 25, H, W) with rows before columns. Outside lie zeros; nothing is
    flipped. Slices are multiplied and added in a chain: of the forms that ``uid.bench.speed.adaptive_convolution``
    times, it is fast on every backend.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (KERNEL // 2,) * 4)
    own = torch.unflatten(kernels, 1, (x.shape[1], KERNEL**2))
    shifts = [(row, column) for row in range(KERNEL) for column in range(KERNEL)]
    total = torch.zeros_like(x)
    for index, (r, s) in enumerate(shifts):
        total = total + own[:, :, index] * padded[:, :, r : r + height, s : s + width]
    return total


class Control(NamedTuple):
    """What the ControlNet adds to the U-Net."""

    skips: tuple[Tensor, ...]  # one for each skip of the U-Net
    middle: Tensor


class ControlNet(nn.Module):
    """The encoder of the U-Net on the latent joined to its hint, each of its outputs through a 1 x 1 convolution."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        whole = UNet2DConditionModel(**{**config, "in_channels": 3 * LATENT_CHANNELS})
        self.time_proj, self.time_embedding = whole.time_proj, whole.time_embedding
        self.conv_in, self.down_blocks, self.mid_block = whole.conv_in, whole.down_blocks, whole.mid_block
        widths = [config["block_out_channels"][0]]
        for width in config["block_out_channels"]:
            widths += [width] * (config["layers_per_block"] + 1)
        self.outputs = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths[:-1])
        self.middle_output = nn.Conv2d(widths[-1], widths[-1], 1)

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Control:
        """Latent and hint (B, 12, h, w), timestep (B,), text (B, L, D)."""
        embedded = self.time_embedding(self.time_proj(t).to(x.dtype))
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            if isinstance(block, CrossAttnDownBlock2D):
                x, more = block(x, temb=embedded, encoder_hidden_states=text)
            else:
                assert isinstance(block, DownBlock2D)
                x, more = block(x, temb=embedded)
            skips += more
        x = self.mid_block(x, temb=embedded, encoder_hidden_states=text)
        return Control(tuple(out(skip) for out, skip in zip(self.outputs, skips, strict=True)), self.middle_output(x))


class Predicted(NamedTuple):
    """What one call of the networks gives."""

    noise: Tensor  # the U-Net's estimate, (B, 4, h, w)
    sharpened: Tensor  # c_img after the adaptive convolution, added to c_img
    kernels: Tensor  # (B, 100, h, w)
    control: Control


class Denoiser(nn.Module):
    """All networks that a step calls, in order."""

    def __init__(self, unet: Mapping[str, Any], kernel_network: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**unet)
        self.kernel_network = UNet2DConditionModel(**kernel_network)
        self.control_net = ControlNet(unet)
        self.covers = Covers()

    def run_in_windows(self, windows: Sequence[int], control_windows: Sequence[int]) -> None:
        """Let the transformers run on windows, whose sides are given by level. Once, after loading."""
        run_in_windows(self.unet, windows, self.covers)
        run_in_windows(self.kernel_network, windows, self.covers)
        run_in_windows(self.control_net, control_windows, self.covers)

    def forward(self, x: Tensor, c_img: Tensor, t: Tensor, text: Tensor) -> Predicted:
        """The noise in ``x`` at timestep ``t`` (B,), given the blurred image's latent and the text (B, L, D).

        ``x`` and ``c_img`` are (B, 4, h, w), both sides multiples of 8.
        """
        with self.covers.of(x):
            kernels = self.kernel_network(torch.cat([c_img, x], 1), t, text).sample
            sharpened = adaptive_convolution(c_img, kernels) + c_img
            control = self.control_net(torch.cat([x, c_img, sharpened], 1), t, text)
            noise = self.unet(
                x,
                t,
                text,
                down_block_additional_residuals=control.skips,
                mid_block_additional_residual=control.middle,
            ).sample
        return Predicted(noise, sharpened, kernels, control)


class Covers:
    """The windows of a latent's feature maps; transformers whose maps and windows are of one size share them."""

    def __init__(self) -> None:
        self.latent: Tensor | None = None
        self.made: dict[tuple[int, int], Cover] = {}

    @contextmanager
    def of(self, latent: Tensor) -> Iterator[None]:
        """Those of this latent."""
        self.latent = latent
        yield
        self.latent, self.made = None, {}

    def get(self, factor: int, window: int) -> Cover:
        """Windows of the maps at a ``factor``-th of the latent's sides."""
        assert self.latent is not None, "transformers run inside Denoiser.forward"
        if (factor, window) not in self.made:
            self.made[factor, window] = window_cover(self.latent, factor, window)
        return self.made[factor, window]


class Windowed(nn.Module):
    """A transformer that runs on windows of a feature map, normalisation and all; their results are averaged."""

    def __init__(self, transformer: nn.Module, window: int, factor: int, covers: Covers) -> None:
        super().__init__()
        self.transformer, self.window, self.factor, self.covers = transformer, window, factor, covers

    def forward(self, x: Tensor, encoder_hidden_states: Tensor, **others: object) -> tuple[Tensor, ...]:
        """(B, C, H, W) and the text (B, L, D) -> the same shape, in a tuple as diffusers has it."""
        if not all(isinstance(side, int) for side in x.shape[-2:]):  # traced: the graph serves every size
            cover = self.covers.get(self.factor, self.window)
            text = encoder_hidden_states[cover.image]
            (pieces,) = self.transformer(cover.cut(x), encoder_hidden_states=text, **others)
            return (cover.merge(pieces, x),)
        grid = windows_of(x.shape, self.window)
        if grid.count == 1:
            result: tuple[Tensor, ...] = self.transformer(x, encoder_hidden_states=encoder_hidden_states, **others)
            return result
        text = encoder_hidden_states.repeat_interleave(grid.count, dim=0)
        (pieces,) = self.transformer(cut(x, grid), encoder_hidden_states=text, **others)
        return (averaged(pieces, grid, x.shape[-2:]),)


def run_in_windows(network: UNet2DConditionModel | ControlNet, windows: Sequence[int], covers: Covers) -> None:
    """Let each transformer of a U-Net or ControlNet run on windows, by its level; the middle has the last level's."""
    levels = [(window, 2**level) for level, window in enumerate(windows)]
    blocks = list(zip(network.down_blocks, levels, strict=True))
    if isinstance(network, UNet2DConditionModel):
        blocks += zip(network.up_blocks, reversed(levels), strict=True)
    for block, (window, factor) in [*blocks, (network.mid_block, levels[-1])]:
        if hasattr(block, "attentions"):
            block.attentions = nn.ModuleList(Windowed(one, window, factor, covers) for one in block.attentions)
