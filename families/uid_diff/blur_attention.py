"""The second cross-attention of eq. 5: Z' = Attention(Q, K, V) + Attention(Q, K', V'), K' = f_b W'_k, V' = f_b W'_v.

Its projections live beside the U-Net, not in it, so that Stable Diffusion's own ``unet`` folder loads unchanged.
"""

from typing import Any

import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


class BlurProjections(ModelMixin, ConfigMixin):
    """W'_k and W'_v for every text cross-attention of a U-Net, in the order the U-Net declares them."""

    @register_to_config
    def __init__(self, blur_dim: int = 768, inner_dims: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.to_k = nn.ModuleList(nn.Linear(blur_dim, inner, bias=False) for inner in inner_dims)
        self.to_v = nn.ModuleList(nn.Linear(blur_dim, inner, bias=False) for inner in inner_dims)

    @classmethod
    def for_unet(cls, unet: UNet2DConditionModel, blur_dim: int) -> "BlurProjections":
        """Projections that fit ``unet``, freshly initialised."""
        return cls(blur_dim=blur_dim, inner_dims=tuple(a.inner_dim for a in text_cross_attentions(unet)))


def text_cross_attentions(unet: UNet2DConditionModel) -> list[Attention]:
    """The U-Net's cross-attentions on the text (``attn2``), in declaration order."""
    return [module for name, module in unet.named_modules() if name.endswith("attn2")]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, heads * D) -> (B, heads, T, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class BlurAttentionProcessor:
    """diffusers attention processor: attends to the text, and to ``f_b`` when it is given (eq. 5)."""

    def __init__(self, to_k: nn.Module, to_v: nn.Module) -> None:
        self.to_k, self.to_v = to_k, to_v

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        f_b: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """(B, T, C), text (B, L, D_text), f_b (B, 16, D) -> (B, T, C)."""
        query = split_heads(attn.to_q(hidden_states), attn.heads)

        def attend(key: Tensor, value: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, split_heads(key, attn.heads), split_heads(value, attn.heads))

        z = attend(attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        if f_b is not None:
            z = z + attend(self.to_k(f_b), self.to_v(f_b))
        return attn.to_out[0](z.transpose(1, 2).flatten(2))


class SelfAttentionProcessor:
    """diffusers attention processor for the self-attentions, which are handed ``f_b`` too and leave it alone."""

    def __call__(
        self, attn: Attention, hidden_states: Tensor, attention_mask: None = None, f_b: Tensor | None = None, **_: Any
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        q, k, v = (split_heads(to(hidden_states), attn.heads) for to in (attn.to_q, attn.to_k, attn.to_v))
        z = F.scaled_dot_product_attention(q, k, v)
        return attn.to_out[0](z.transpose(1, 2).flatten(2))


def attach(unet: UNet2DConditionModel, projections: BlurProjections) -> None:
    """Give every attention of ``unet`` its processor. Without ``f_b`` the U-Net computes what it did before."""
    cross = iter(zip(projections.to_k, projections.to_v, strict=True))
    processors: dict[str, object] = {}
    for name in unet.attn_processors:
        processors[name] = SelfAttentionProcessor() if ".attn1." in name else BlurAttentionProcessor(*next(cross))
    unet.set_attn_processor(processors)
