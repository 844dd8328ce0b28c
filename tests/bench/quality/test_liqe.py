"""LIQE on a small CLIP of random weights against a slow reference: patch by patch, sentence by sentence."""

import importlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uid.bench.quality.liqe import LIQE
from uid.bench.quality.metrics import METRICS, file_name, load
from uid.errors import InputError


@pytest.fixture(scope="module")
def clip() -> Any:
    """CLIP with one narrow layer, on images of the real size."""
    library = pytest.importorskip("open_clip", reason="needs pip install 'uid-runtime[metrics]'")
    model = importlib.import_module("open_clip.model")
    importlib.import_module("torch").manual_seed(0)
    vision = model.CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=32, image_size=224)
    text = model.CLIPTextCfg(layers=1, width=32, heads=2)
    return library.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, quick_gelu=True).eval()


def unit(features: Any) -> Any:
    return features / np.linalg.norm(features)


def slow(clip: Any, image: Any) -> float:
    """Mean cosine similarity of 15 patches with each sentence; the softmax says how good the image is."""
    torch, tokenizer = importlib.import_module("torch"), importlib.import_module("open_clip").get_tokenizer("ViT-B-32")
    tops = [range(0, size - 223, 32) for size in image.shape[:2]]
    places = list(itertools.product(*tops))
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    features = []
    for number in range(15):
        top, left = places[number * (len(places) // 15)]
        patch = (image[top : top + 224, left : left + 224] - mean) / deviation
        features.append(unit(clip.encode_image(torch.tensor(patch.transpose(2, 0, 1)[None]).float())[0].numpy()))
    logits: dict[str, list[float]] = {}
    scenes = ("animal", "cityscape", "human", "indoor", "landscape", "night", "plant", "still_life", "others")
    faults = "jpeg2000 compression,jpeg compression,noise,blur,color,contrast,overexposure,underexposure,spatial"
    for quality in ("bad", "poor", "fair", "good", "perfect"):
        for scene, fault in itertools.product(scenes, [*faults.split(","), "quantization", "other"]):
            words = f"a photo of a {scene} with {fault} artifacts, which is of {quality} quality"
            text = unit(clip.encode_text(tokenizer([words]))[0].numpy())
            similarity = np.mean([one @ text for one in features])
            logits.setdefault(quality, []).append(float(clip.logit_scale.exp()) * similarity)
    total = sum(np.exp(value) for values in logits.values() for value in values)
    shares = [sum(np.exp(values)) / total for values in logits.values()]
    return float(np.dot(shares, [1, 2, 3, 4, 5]))


@pytest.mark.parametrize("size", [(224, 224), (256, 352), (420, 300)])
def test_against_a_slow_reference(clip: Any, size: tuple[int, int]) -> None:
    torch = importlib.import_module("torch")
    image = np.random.default_rng(1).random((*size, 3), dtype=np.float32)
    with torch.inference_mode():
        clip.logit_scale.fill_(np.log(100.0))  # as in the trained one
        made = float(LIQE(clip)(torch.tensor(image.transpose(2, 0, 1)[None])))
        wanted = slow(clip, image)
    assert made == pytest.approx(wanted, abs=1e-4)
    assert abs(wanted - 3.0) > 1e-3, "all qualities are as likely"


def test_a_small_image_is_refused(clip: Any) -> None:
    torch = importlib.import_module("torch")
    with pytest.raises(InputError, match="223 x 300 pixels; metric liqe needs 224 x 224"):
        LIQE(clip)(torch.zeros(1, 3, 223, 300))


@pytest.mark.usefixtures("clip")
def test_the_authors_weights_fit_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, library = (importlib.import_module(name) for name in ("torch", "open_clip"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    for name in ("SCENES", "DISTORTIONS"):  # hundreds of sentences would take a minute
        monkeypatch.setattr(f"uid.bench.quality.liqe.{name}", ("other",))
    weights = library.create_model("ViT-B-32-quickgelu", pretrained=None).state_dict()
    openai = {"visual.conv1.weight", "token_embedding.weight", "ln_final.weight", "text_projection", "logit_scale"}
    assert openai <= weights.keys(), "names of OpenAI's CLIP, which the authors' file has"
    torch.save(weights, tmp_path / "hub" / "checkpoints" / file_name(METRICS["liqe"].weights[0]))
    image = np.random.default_rng(2).random((224, 224, 3), dtype=np.float32)
    assert 1.0 <= load(["liqe"])["liqe"](image, image) <= 5.0
