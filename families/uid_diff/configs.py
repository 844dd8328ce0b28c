"""Model sizes as data: one configuration per component, in the vocabulary of diffusers and transformers.

``sd15``  the paper's sizes: Stable Diffusion 1.5, CLIP ViT-L/14, BLIP-Diffusion's Q-Former with 16 queries of width 768
``edge``  the same components at a size that two CPU cores can run; self-attention only where the map is small
``tiny``  the same components at a size for tests
"""

from dataclasses import dataclass, field
from typing import Any

from uid.bundles.declarations import FLAT, NO_COLOUR_FIX

SCHEDULER: dict[str, Any] = {
    # Stable Diffusion's training noise; DDIM over 30 of the 1000 steps (paper, section 4.1)
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}


@dataclass(frozen=True)
class Config:
    """Configurations of every component of one model size, and the defaults it is run with."""

    image_encoder: dict[str, Any]
    text_encoder: dict[str, Any]
    q_former: dict[str, Any]
    unet: dict[str, Any]
    vae: dict[str, Any]
    refiner: dict[str, Any]  # VAERefiner's: for each VAE level the width of its refiners and the blocks in them
    tile: int  # an image of more than tile * tile pixels is run in tiles of this side
    queries: int = 16  # learnable queries of each Q-Former
    blur_window: int | None = None  # side in pixels of what Q_b sees of its image, in the middle; None: all, resized
    steps: int = 30  # DDIM steps (paper: 30)
    guidance: float = 7.5  # classifier-free guidance scale (paper: 7.5)
    qualities: dict[str, dict[str, int]] = field(default_factory=dict)  # the bundle's presets, the best first
    quality: str | None = None  # the default one; None: ``steps``, and one view
    vae_class: str = "AutoencoderKL"  # or "PatchVAE"
    output_residual: bool = False  # of the adapter
    colour_fix: str = NO_COLOUR_FIX  # of the bundle's modes, one of ``COLOUR_FIXES``
    published: bool = False  # whether its training starts from published weights
    scheduler: dict[str, Any] = field(default_factory=lambda: dict(SCHEDULER))


SD15 = Config(
    image_encoder={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,  # of CLIP's 24, then a norm: what BLIP-Diffusion's Q-Former was trained on
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "normalised_tokens": True,
    },
    text_encoder={
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    },
    q_former={
        "vocab_size": 30523,  # BERT's and one for the start of a text
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "cross_attention_frequency": 1,
        "encoder_hidden_size": 1024,
    },
    unet={
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "attention_head_dim": 8,  # diffusers reads this as the number of heads
        "cross_attention_dim": 768,
    },
    vae={
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 512,
    },
    refiner={"hidden": (64,) * 4, "blocks": (0,) * 4},
    tile=1024,
    published=True,
)

EDGE = Config(
    image_encoder={
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 224,
        "patch_size": 14,
    },
    text_encoder={
        "vocab_size": 514,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 32,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    },
    q_former={
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "cross_attention_frequency": 2,
        "encoder_hidden_size": 128,
    },
    unet={
        "sample_size": 64,
        "in_channels": 8,
        "out_channels": 8,
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (1, 2, 3),
        "cross_attention_dim": 128,
        "norm_num_groups": 16,
    },
    vae={
        "in_channels": 48,  # patches of 4 x 4 pixels: two cores have no time for convolutions at full resolution
        "out_channels": 48,
        "latent_channels": 8,
        "block_out_channels": (48, 96),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 128,
        "mid_block_add_attention": False,
    },
    refiner={"hidden": (48, 96), "blocks": (4, 8), "pixel_channels": 48},
    tile=1024,
    blur_window=128,  # as it was trained
    steps=1,  # as trained so far, more steps do not change the image
    guidance=1.0,
    qualities={
        "full": {"steps": 1, "views": 8},
        "balanced": {"steps": 1, "views": 2},
        "fast": {"steps": 1, "views": 1},
    },
    quality="balanced",
    colour_fix=FLAT,
    scheduler=SCHEDULER
    | {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "set_alpha_to_one": True, "steps_offset": 0},
)

# The second generation: the VAE holds a photo, and the diffusion is what deblurs, in one step trained as a whole.
EDGE2 = Config(
    image_encoder=EDGE.image_encoder,
    text_encoder=EDGE.text_encoder,
    q_former=EDGE.q_former,
    unet={
        "sample_size": 64,
        "in_channels": 32,
        "out_channels": 32,
        "block_out_channels": (64, 96, 160),
        "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (2, 3, 5),
        "cross_attention_dim": 128,
        "norm_num_groups": 16,
    },
    vae_class="PatchVAE",
    vae={"in_channels": 48, "latent_channels": 32, "block_out_channels": (48,), "norm_num_groups": 8},
    output_residual=True,
    refiner={"hidden": (16,), "blocks": (0,)},
    tile=1024,
    blur_window=128,
    steps=1,
    guidance=1.0,
    qualities=EDGE.qualities,
    quality="fast",
    colour_fix=FLAT,
    # Noise that ends without a trace of the image, since the first step starts from nothing else.
    scheduler=EDGE.scheduler | {"prediction_type": "sample", "beta_end": 0.03},
)

TINY = Config(
    image_encoder={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    text_encoder={
        "vocab_size": 514,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "bos_token_id": 512,
        "eos_token_id": 513,
        "pad_token_id": 513,
    },
    q_former={
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "cross_attention_frequency": 2,
        "encoder_hidden_size": 32,
    },
    unet={
        "sample_size": 16,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (2, 4),
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
    },
    vae={
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "sample_size": 32,
    },
    refiner={"hidden": (4, 4), "blocks": (0, 0)},
    tile=64,
)

CONFIGS = {"sd15": SD15, "edge": EDGE, "edge2": EDGE2, "tiny": TINY}
