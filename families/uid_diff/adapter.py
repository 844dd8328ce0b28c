"""The adapter A: structure features f_s become residuals for the Stable Diffusion U-Net."""

from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2DCrossAttn, get_down_block
from torch import Tensor, nn

from uid.families.uid_diff.vae import zeroed


class Residuals(NamedTuple):
    """What the adapter adds to the U-Net."""

    down: list[Tensor]  # to each feature of the down-sampling half
    middle: Tensor
    output: Tensor | None  # (B, C, h, w), to what the U-Net predicts; None at Stable Diffusion's size


class Adapter(ModelMixin, ConfigMixin):
    """A ControlNet whose cross-attention reads f_s and whose input is x_t and the blurry latent z_y side by side.

    The down-sampling half and the middle of a U-Net, each output led out through a 1 x 1 convolution. Parameter names
    are diffusers' ``ControlNetModel``'s, so that its weights (and a U-Net's) carry over.

    With ``output_residual`` z_y reaches the U-Net's prediction of x_0 too, through a 1 x 1 convolution that starts as
    the identity. So no norm stands between the image that comes in and the one that goes out, and the network learns
    what differs.
    """

    _supports_gradient_checkpointing = True  # by its blocks, which are diffusers'

    @register_to_config
    def __init__(
        self,
        in_channels: int = 8,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        down_block_types: tuple[str, ...] = (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        layers_per_block: int = 2,
        attention_head_dim: int | tuple[int, ...] = 8,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
        output_residual: bool = False,
    ) -> None:
        super().__init__()
        channels = block_out_channels
        levels = len(channels)
        heads = (attention_head_dim,) * levels if isinstance(attention_head_dim, int) else attention_head_dim
        time_dim = 4 * channels[0]
        shared: dict[str, Any] = {
            "temb_channels": time_dim,
            "resnet_eps": 1e-5,
            "resnet_act_fn": "silu",
            "resnet_groups": norm_num_groups,
            "cross_attention_dim": cross_attention_dim,
        }
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_proj = Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(channels[0], time_dim)
        self.down_blocks = nn.ModuleList(
            get_down_block(
                down_block_types[i],
                num_layers=layers_per_block,
                in_channels=channels[max(i - 1, 0)],
                out_channels=channels[i],
                add_downsample=i < levels - 1,
                num_attention_heads=heads[i],
                attention_head_dim=heads[i],
                downsample_padding=1,
                **shared,
            )
            for i in range(levels)
        )
        self.mid_block = UNetMidBlock2DCrossAttn(in_channels=channels[-1], num_attention_heads=heads[-1], **shared)
        led_out = [channels[0]]
        for i in range(levels):
            led_out += [channels[i]] * (layers_per_block + (i < levels - 1))
        self.controlnet_down_blocks = nn.ModuleList(zeroed(nn.Conv2d(c, c, 1)) for c in led_out)
        self.controlnet_mid_block = zeroed(nn.Conv2d(channels[-1], channels[-1], 1))
        self.controlnet_output = identity(in_channels // 2) if output_residual else None

    def forward(self, x_t: Tensor, z_y: Tensor, timestep: Tensor, f_s: Tensor) -> Residuals:
        """What is added to the U-Net's features and, with ``output_residual``, to its prediction.

        x_t, z_y (B, 4, h, w), timestep (1,) or (B,), f_s (B, 16, D).
        """
        time = self.time_embedding(self.time_proj(timestep).to(x_t.dtype))
        x = self.conv_in(torch.cat([x_t, z_y], dim=1))
        outputs = [x]
        for block in self.down_blocks:
            if getattr(block, "has_cross_attention", False):
                x, hidden = block(hidden_states=x, temb=time, encoder_hidden_states=f_s)
            else:
                x, hidden = block(hidden_states=x, temb=time)
            outputs += hidden
        x = self.mid_block(x, time, encoder_hidden_states=f_s)
        residuals = [lead(h) for lead, h in zip(self.controlnet_down_blocks, outputs, strict=True)]
        output = None if self.controlnet_output is None else self.controlnet_output(z_y)
        return Residuals(residuals, self.controlnet_mid_block(x), output)


def identity(channels: int) -> nn.Conv2d:
    """A 1 x 1 convolution that gives x."""
    conv = nn.Conv2d(channels, channels, 1)
    zeroed(conv)
    with torch.no_grad():
        conv.weight.copy_(torch.eye(channels)[:, :, None, None])
    return conv
