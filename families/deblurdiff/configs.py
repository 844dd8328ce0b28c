"""Model sizes as data: one configuration per network, in the vocabulary of diffusers and transformers.

``deblurdiff``       the published model: Stable Diffusion 2.1 base, OpenCLIP ViT-H
``deblurdiff-tiny``  the same networks at a size for tests
"""

from dataclasses import dataclass
from typing import Any

SCHEDULE: dict[str, Any] = {
    "sampler": "ddpm",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "respaced",
}
LATENT_SCALE = 0.18215
LATENT_FACTOR = 8  # image pixels per latent pixel, along each side
SIZE_MULTIPLE = 64
KERNEL = 5  # side of the kernels that are predicted for each latent pixel
LATENT_CHANNELS = 4
TOKENS = 77
STEPS, GUIDANCE = 50, 1.0
TILE = 1024  # an image of more than tile * tile pixels is run in tiles of this side
# Latent pixels that a transformer sees at once along each side: U-Net and kernel prediction network halve it with each
# downsampling, the ControlNet does not.
WINDOWS, CONTROL_WINDOWS = (64, 32, 16, 8), (64, 64, 64, 64)


@dataclass(frozen=True)
class Tiling:
    """Tiles of the latent, as the original code has them with ``--tiled``."""

    side: int  # latent pixels
    stride: int


@dataclass(frozen=True)
class Config:
    """Configurations of every network of one model size."""

    unet: dict[str, Any]  # the ControlNet's too
    kernel_network: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]
    min_side: int = SIZE_MULTIPLE  # of an image, in pixels
    tiling: Tiling = Tiling(64, 32)  # of the mode that has it


def unet(widths: tuple[int, ...], head: int, context: int, outputs: int = 4, inputs: int = 4) -> dict[str, Any]:
    """A U-Net with attention at all levels but the lowest, with heads of ``head`` channels."""
    return {
        "in_channels": inputs,
        "out_channels": outputs,
        "block_out_channels": widths,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "attention_head_dim": tuple(width // head for width in widths),  # diffusers reads it as the number of heads
        "cross_attention_dim": context,
        "use_linear_projection": True,
    }


def vae(width: int, multiples: tuple[int, ...]) -> dict[str, Any]:
    """An autoencoder of images to latents of an eighth of the size."""
    return {
        "block_out_channels": tuple(width * multiple for multiple in multiples),
        "down_block_types": ("DownEncoderBlock2D",) * len(multiples),
        "up_block_types": ("UpDecoderBlock2D",) * len(multiples),
        "latent_channels": LATENT_CHANNELS,
        "layers_per_block": 2,
    }


def text_encoder(vocabulary: int, width: int, heads: int, layers: int, projection: int | None = None) -> dict[str, Any]:
    """OpenCLIP's text tower. Its last layer is left out, as the model reads the last but one.

    ``projection`` is the width of the head, which is not read either; None: any.
    """
    return {
        **({} if projection is None else {"projection_dim": projection}),
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers - 1,
        "num_attention_heads": heads,
        "max_position_embeddings": TOKENS,
        "hidden_act": "gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


OUTPUTS = LATENT_CHANNELS * KERNEL**2
CONFIGS = {
    "deblurdiff": Config(
        unet=unet((320, 640, 1280, 1280), 64, 1024),
        kernel_network=unet((128, 256, 512, 512), 64, 1024, OUTPUTS, 2 * LATENT_CHANNELS),
        vae=vae(128, (1, 2, 4, 4)),
        text_encoder=text_encoder(49408, 1024, 16, 24, 1024),
    ),
    "deblurdiff-tiny": Config(
        unet=unet((64, 64, 64, 64), 16, 64),
        kernel_network=unet((32, 64, 32, 32), 16, 64, OUTPUTS, 2 * LATENT_CHANNELS),
        vae=vae(32, (1, 2, 1, 1)),
        text_encoder=text_encoder(512, 64, 4, 3),
        min_side=2 * SIZE_MULTIPLE,  # groups of one channel have nothing to normalise where a map is 1 x 1
        tiling=Tiling(16, 12),
    ),
}
