"""The U-Net under several prompts, with what comes before its first look at the prompt computed once.

diffusers' ``UNet2DConditionModel`` holds the modules and the weights. Its own forward pass takes one latent per prompt,
and so computes the first residual block and the first self-attention, which is among the costliest, once per prompt.

``shallow`` computes the outermost level alone and takes the rest from an earlier step ("DeepCache", Ma et al., 2023).
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor


def predict(
    unet: UNet2DConditionModel,
    x_t: Tensor,
    timestep: Tensor,
    prompt: Tensor,
    down: Sequence[Tensor],
    middle: Tensor,
    f_b: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The U-Net's output under each of P prompts, (P * B, C, h, w), prompt by prompt, and what its last level reads.

    x_t (B, C, h, w), timestep (1,) or (B,), prompt (P * B, L, D), f_b (B, 16, D); residuals ``down`` and ``middle`` of
    a batch of B. A tensor that holds B examples stays so until it meets one that holds P * B.
    """
    time = embedded(unet, timestep, x_t)
    x = unet.conv_in(x_t)
    features = [x]
    for block in unet.down_blocks:
        features += descended(block, x, time, prompt, f_b)
        for downsample in block.downsamplers or ():
            features.append(downsample(features[-1]))
        x = features[-1]
    features = added(features, down)
    x = unet.mid_block.resnets[0](x, spread(time, x))
    for attention, resnet in zip(unet.mid_block.attentions, unet.mid_block.resnets[1:], strict=True):
        x = resnet(transformed(attention, x, prompt, f_b), spread(time, x))
    x = x + like(middle, x)
    for block in unet.up_blocks[:-1]:
        x = ascended(block, x, features, time, prompt, f_b)
        for upsample in block.upsamplers or ():
            x = upsample(x)
    return output(unet, ascended(unet.up_blocks[-1], x, features, time, prompt, f_b)), x


def shallow(
    unet: UNet2DConditionModel,
    x_t: Tensor,
    timestep: Tensor,
    prompt: Tensor,
    down: Sequence[Tensor],
    deep: Tensor,
    f_b: Tensor | None,
) -> Tensor:
    """The same output from the outermost level alone; ``deep`` is what the last level read in an earlier step.

    ``down`` are the first residuals, as many as ``level_size`` says; the others have gone into ``deep``.
    """
    time = embedded(unet, timestep, x_t)
    x = unet.conv_in(x_t)
    features = added([x, *descended(unet.down_blocks[0], x, time, prompt, f_b)], down)
    return output(unet, ascended(unet.up_blocks[-1], deep, features, time, prompt, f_b))


def level_size(unet: UNet2DConditionModel) -> int:
    """How many features, and so residuals, the outermost level of the down-sampling half has."""
    return 1 + len(unet.down_blocks[0].resnets)


def embedded(unet: UNet2DConditionModel, timestep: Tensor, x_t: Tensor) -> Tensor:
    """The embedding of the timestep."""
    embedding: Tensor = unet.time_embedding(unet.time_proj(timestep).to(x_t.dtype))
    return embedding


def descended(block: Any, x: Tensor, time: Tensor, prompt: Tensor, f_b: Tensor | None) -> list[Tensor]:
    """The features that one level of the down-sampling half writes, before it makes them smaller."""
    features = []
    for resnet, attention in zip(block.resnets, attentions(block), strict=True):
        x = resnet(x, spread(time, x))
        x = transformed(attention, x, prompt, f_b) if attention is not None else x
        features.append(x)
    return features


def added(features: Sequence[Tensor], residuals: Sequence[Tensor]) -> list[Tensor]:
    """The features with the adapter's residuals."""
    return [feature + like(residual, feature) for feature, residual in zip(features, residuals, strict=True)]


def ascended(block: Any, x: Tensor, features: list[Tensor], time: Tensor, prompt: Tensor, f_b: Tensor | None) -> Tensor:
    """One level of the up-sampling half, which takes its features off the list's end."""
    for resnet, attention in zip(block.resnets, attentions(block), strict=True):
        x = resnet(torch.cat([x, like(features.pop(), x)], dim=1), spread(time, x))
        x = transformed(attention, x, prompt, f_b) if attention is not None else x
    return x


def output(unet: UNet2DConditionModel, x: Tensor) -> Tensor:
    """What the U-Net predicts, from its last level's features."""
    predicted: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    return predicted


def attentions(block: Any) -> Sequence[Transformer2DModel | None]:
    """A block's transformers, one after each of its residual blocks; None where it has none."""
    found: Sequence[Transformer2DModel | None] = getattr(block, "attentions", None) or [None] * len(block.resnets)
    return found


def transformed(module: Transformer2DModel, x: Tensor, prompt: Tensor, f_b: Tensor | None) -> Tensor:
    """Self-attention, cross-attention and feed-forward on the pixels of (B, C, h, w), or of (P * B, C, h, w)."""
    height, width = x.shape[-2:]
    linear = module.config.use_linear_projection
    y = module.norm(x)
    y = y if linear else module.proj_in(y)
    y = y.permute(0, 2, 3, 1).flatten(1, 2)
    y = module.proj_in(y) if linear else y
    for block in module.transformer_blocks:
        y = attended(block, y, prompt, f_b)
    y = module.proj_out(y) if linear else y
    y = y.unflatten(1, (height, width)).permute(0, 3, 1, 2)
    y = y if linear else module.proj_out(y)
    return y + like(x, y)


def attended(block: BasicTransformerBlock, y: Tensor, prompt: Tensor, f_b: Tensor | None) -> Tensor:
    """One transformer block on (B, T, C) or (P * B, T, C); its second attention is the first to read the prompt."""
    y = y + block.attn1(block.norm1(y))
    y = like(y, prompt)
    y = y + block.attn2(block.norm2(y), prompt, f_b=None if f_b is None else like(f_b, y))
    attended: Tensor = block.ff(block.norm3(y)) + y
    return attended


def spread(time: Tensor, x: Tensor) -> Tensor:
    """The embedding of the timestep as a residual block takes it: one for the whole batch, or one for each of ``x``."""
    return time if time.shape[0] == 1 else like(time, x)


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor`` as often as it takes to match the batch of ``other``."""
    times = other.shape[0] // tensor.shape[0]
    return tensor if times == 1 else torch.cat([tensor] * times)
