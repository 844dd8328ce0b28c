"""LIQE (Zhang et al., CVPR 2023): how good an image looks by itself, by a CLIP that was trained to tell.

CLIP compares patches of the image with sentences, one for each scene, distortion and level of quality. The sentences
are those of the authors' repository, under the MIT licence; open_clip has the network and the tokens.
"""

import importlib
from itertools import product
from typing import Any

from uid.bench.quality.metrics import torch_hub
from uid.errors import InputError

WEIGHTS = "LIQE.pt"
NETWORK = "ViT-B-32-quickgelu"  # OpenAI's CLIP
QUALITIES = ("bad", "poor", "fair", "good", "perfect")
SCENES = ("animal", "cityscape", "human", "indoor", "landscape", "night", "plant", "still_life", "others")
DISTORTIONS = (
    "jpeg2000 compression",
    "jpeg compression",
    "noise",
    "blur",
    "color",
    "contrast",
    "overexposure",
    "underexposure",
    "spatial",
    "quantization",
    "other",
)
SENTENCE = "a photo of a {scene} with {distortion} artifacts, which is of {quality} quality"
SIDE, STRIDE, PATCHES = 224, 32, 15  # of the patches, in pixels; how many are looked at
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's images


class LIQE:
    """Called with an image, gives its quality from 1 to 5."""

    def __init__(self, model: Any = None) -> None:
        """``model``: another CLIP of open_clip's; None: the authors', whose weights are in torch's folder."""
        self.torch, clip = importlib.import_module("torch"), importlib.import_module("open_clip")
        if model is None:
            model = clip.create_model(NETWORK, pretrained=None)
            model.load_state_dict(self.torch.load(torch_hub() / WEIGHTS, map_location="cpu", weights_only=True))
        self.model = model.eval()
        sentences = [
            SENTENCE.format(scene=scene, distortion=distortion, quality=quality)
            for quality, scene, distortion in product(QUALITIES, SCENES, DISTORTIONS)
        ]
        with self.torch.inference_mode():
            self.texts = self.model.encode_text(clip.get_tokenizer(NETWORK)(sentences), normalize=True)

    def __call__(self, image: Any) -> Any:
        """(1, 3, H, W) float32 tensor in [0, 1] -> a tensor of one number. A side has at least ``SIDE`` pixels."""
        height, width = image.shape[2:]
        if min(height, width) < SIDE:
            raise InputError(f"an image is {height} x {width} pixels; metric liqe needs {SIDE} x {SIDE} at least")
        mean, deviation = (self.torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
        windows = ((image - mean) / deviation).unfold(2, SIDE, STRIDE).unfold(3, SIDE, STRIDE)
        patches = windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, SIDE, SIDE)
        chosen = patches[[number * (len(patches) // PATCHES) for number in range(PATCHES)]]
        features = self.model.encode_image(chosen, normalize=True)
        logits = self.model.logit_scale.exp() * features @ self.texts.T
        shares = logits.mean(dim=0).softmax(dim=0).view(len(QUALITIES), -1).sum(dim=1)
        return shares @ self.torch.arange(1.0, 1.0 + len(QUALITIES))
