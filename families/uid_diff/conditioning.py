"""Image features: CLIP tokens of the image, and the Q-Formers that extract structure and blur from them."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from transformers import CLIPVisionModel, InstructBlipQFormerConfig, InstructBlipQFormerModel

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize_matrix(size_in: int, size_out: int, device: torch.device, window: int | None = None) -> Tensor:
    """Rows of the antialiased bicubic filter (a = -0.5) that Pillow and ``F.interpolate(antialias=True)`` apply.

    Returns (size_out, size_in) float32, each row summing to 1. Two matrix products with such matrices resize an image
    of any size, or the ``window`` pixels in its middle, in operators that every backend has; ``size_in`` may be
    symbolic, hence the sums on tensors.
    """
    positions = torch.arange(size_in, dtype=torch.float32, device=device) + 0.5
    whole = positions[-1:] + 0.5
    seen = whole if window is None else whole.clamp(max=window)
    scale = seen / size_out
    centres = 0.5 * (whole - seen) + (torch.arange(size_out, dtype=torch.float32, device=device) + 0.5) * scale
    x = (positions[None, :] - centres[:, None]).abs() / scale.clamp(min=1.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = torch.where(x < 1.0, near, torch.where(x < 2.0, far, torch.zeros_like(x)))
    return weights / weights.sum(dim=1, keepdim=True)


def clip_pixels(image: Tensor, size: int, window: int | None = None) -> Tensor:
    """(B, 3, H, W) float32 in [0, 1] -> (B, 3, size, size), CLIP-normalised.

    The whole image is used, or the ``window`` x ``window`` pixels in its middle.
    """
    height, width = image.shape[-2:]
    rows = resize_matrix(height, size, image.device, window)
    columns = resize_matrix(width, size, image.device, window)
    resized = rows @ image @ columns.T
    mean = torch.tensor(CLIP_MEAN, device=image.device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=image.device).view(1, 3, 1, 1)
    return (resized.clamp(0.0, 1.0) - mean) / std


class QFormer(ModelMixin, ConfigMixin):
    """Learnable queries that read an image's CLIP tokens under a text ("structure" or "blur"), after BLIP-Diffusion.

    Configured by ``InstructBlipQFormerConfig`` fields, the number of queries, and the ``window`` of the image that they
    are to see: a blur is as many pixels wide in a large image as in a small one, and resizing would hide it.
    """

    @register_to_config
    def __init__(
        self,
        queries: int = 16,
        text: str = "structure",
        window: int | None = None,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        cross_attention_frequency: int = 2,
        encoder_hidden_size: int = 1024,
    ) -> None:
        super().__init__()
        # as BLIP-2 does; queries that start equal stay equal
        self.query_tokens = nn.Parameter(0.02 * torch.randn(1, queries, hidden_size))
        self.encoder = InstructBlipQFormerModel(
            InstructBlipQFormerConfig(
                vocab_size=vocab_size,
                hidden_size=hidden_size,
                intermediate_size=intermediate_size,
                num_hidden_layers=num_hidden_layers,
                num_attention_heads=num_attention_heads,
                cross_attention_frequency=cross_attention_frequency,
                encoder_hidden_size=encoder_hidden_size,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )

    def forward(self, tokens: Tensor, text_ids: Tensor) -> Tensor:
        """CLIP tokens (B, T, encoder_hidden_size), text ids (1, L) int64 -> features (B, queries, hidden_size)."""
        batch, queries = tokens.shape[0], self.query_tokens.shape[1]
        out = self.encoder(
            input_ids=text_ids.expand(batch, -1),
            query_embeds=self.query_tokens.expand(batch, -1, -1),
            encoder_hidden_states=tokens,
        )
        return out.last_hidden_state[:, :queries]


def final_norm(image_encoder: CLIPVisionModel) -> nn.Module:
    """The norm after the image encoder's last layer, which CLIP itself applies to the first token alone."""
    norm: nn.Module = getattr(image_encoder, "vision_model", image_encoder).post_layernorm
    return norm


class Extractor(nn.Module):
    """Image -> features: the image encoder, then a Q-Former (structure extractor Q_s or blur extractor Q_b).

    The Q-Former reads all tokens of the last layer. Where the image encoder's configuration has ``normalised_tokens``,
    they go through the final norm first, as in BLIP-2 and BLIP-Diffusion.
    """

    def __init__(self, image_encoder: CLIPVisionModel, q_former: QFormer, text_ids: Tensor) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.q_former = q_former
        self.register_buffer("text_ids", text_ids, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B, queries, hidden_size); f_s or f_b in the paper."""
        size, window = self.image_encoder.config.image_size, self.q_former.config.window
        pixels = clip_pixels(image, size, window).to(self.image_encoder.dtype)
        tokens = self.image_encoder(pixels).last_hidden_state
        if getattr(self.image_encoder.config, "normalised_tokens", False):
            tokens = final_norm(self.image_encoder)(tokens)
        return self.q_former(tokens, self.text_ids)
