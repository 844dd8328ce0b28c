"""Each stage of training: what it trains, and its loss against the paper's equations."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from uid.families.uid_diff import checkpoint
from uid.families.uid_diff.model import BLURRY_PROMPT, UIDDiff
from uid.train.blur import Random, RgbImage
from uid.train.data import Blurred, BlurredAlike, Examples
from uid.train.diffusion import PROMPT_DROPOUT, DiffusionStage
from uid.train.loop import TrainingSettings, collated, train
from uid.train.stage import Choices, Draws
from uid.train.stages import STAGES


def smooth(rng: Random, height: int, width: int) -> RgbImage:
    """A few soft blobs."""
    blobs = rng.random((5, 5, 3), dtype=np.float32)
    return cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


EXAMPLES = Examples(Blurred(smooth), 16, 1, BlurredAlike(smooth))
CHOICES = Choices(steps=2, guidance=1.5)
BACKBONE = {"step.unet", "structure.image_encoder"}
ENCODER, DECODER = "refiner.encoder", "refiner.decoder"
STRUCTURE, BLUR = {"structure.q_former", "step.adapter"}, {"blur.q_former", "blur_projections"}
# stage, choices -> what it trains, by its first name in the model
TRAINED: list[tuple[str, dict[str, Any], set[str]]] = [
    ("vae", {}, {"encoder.vae"}),
    ("encoder-refiner", {}, {ENCODER}),
    ("refiner", {}, {ENCODER, DECODER}),
    ("base", {}, {"step.unet", "text_encoder"}),
    ("deblur", {}, STRUCTURE),
    ("deblur", {"backbone": True}, STRUCTURE | BACKBONE),
    ("restore", {}, STRUCTURE | BACKBONE),
    ("blur-transfer", {}, BLUR),
    ("joint", {}, STRUCTURE | BLUR),
    ("joint", {"backbone": True}, STRUCTURE | BLUR | BACKBONE),
    ("joint", {"without": frozenset({"Q_s"})}, {"step.adapter"} | BLUR),
    ("joint", {"without": frozenset({"T_2", "T_3"})}, STRUCTURE),
    ("decoder-refiner", {}, {DECODER}),
]
# the same modules under their other names
ALIASES = {"encoder.refiners": ENCODER, "decoder.refiners": DECODER, "decoder.vae": "encoder.vae"}
ALIASES |= {"blur.image_encoder": "structure.image_encoder"}


def own_name(name: str) -> str:
    for alias, own in ALIASES.items():
        if name.startswith(alias):
            return own + name.removeprefix(alias)
    return name


@pytest.mark.parametrize(("name", "choices", "learns"), TRAINED, ids=["-".join([one[0], *one[1]]) for one in TRAINED])
def test_stages_train_what_they_say_and_nothing_else(
    tmp_path: Path, tiny_checkpoint: Path, name: str, choices: dict[str, Any], learns: set[str]
) -> None:
    """Without the backbone, as at sd15, all that the paper freezes stays as it was, to the bit."""
    model = checkpoint.load(tiny_checkpoint)
    before = {own_name(n): p.clone() for n, p in model.named_parameters(remove_duplicate=False)}
    settings = TrainingSettings(steps=3, batch=2, workers=0, warm_up=0, learning_rate=1e-3)
    train(STAGES[name].make(model, Choices(2, 1.0, **choices)), EXAMPLES, settings, tmp_path, lambda line: None)
    after = {own_name(n): p for n, p in model.named_parameters(remove_duplicate=False)}
    changed = {n for n, p in before.items() if not torch.equal(p, after[n])}
    assert {n for n in changed if not n.startswith(tuple(learns))} == set()
    assert {part for part in learns if any(n.startswith(part) for n in changed)} == learns
    assert cv2.imread(str(tmp_path / "sheet-000003.png")) is not None


@pytest.mark.parametrize("name", ["vae", "encoder-refiner", "refiner", "joint", "decoder-refiner"])
def test_stages_learn(tmp_path: Path, tiny_checkpoint: Path, name: str) -> None:
    module = STAGES[name].make(checkpoint.load(tiny_checkpoint), Choices(2, 1.0, backbone=True))
    batch = collated([EXAMPLES[i] for i in range(4)])
    with torch.no_grad():
        first = float(module(batch)["loss"])
    settings = TrainingSettings(steps=40, batch=4, workers=0, warm_up=5, learning_rate=2e-3, average=0.9)
    train(module, EXAMPLES, settings, tmp_path, lambda line: None)
    with torch.no_grad():
        assert float(module(batch)["loss"]) < 0.95 * first


def scrambled(module: nn.Module) -> None:
    checkpoint.randomise(module, torch.Generator().manual_seed(9))


def diffusion(model: UIDDiff, name: str, **choices: Any) -> DiffusionStage:
    stage = STAGES[name].make(model, Choices(2, 1.5, **choices))
    assert isinstance(stage, DiffusionStage)
    return stage


@torch.no_grad()
def test_eq_6_sees_the_prompt_and_the_blur_of_another_image_and_nothing_else(tiny_checkpoint: Path) -> None:
    model = checkpoint.load(tiny_checkpoint)
    stage, batch = diffusion(model, "blur-transfer"), collated([EXAMPLES[i] for i in range(2)])
    loss = stage(batch)["T_2"]
    z = stage.latents(batch["y_3"], draws := Draws(batch["key"], torch.device("cpu")))
    empty, blurry = model.prompts(BLURRY_PROMPT)
    text = torch.stack([empty if dropped else blurry for dropped in draws.uniform() < PROMPT_DROPOUT])
    t, eps = draws.below(1000), draws.normal(z.shape[1:])
    alpha_bar = model.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = alpha_bar.sqrt() * z + (1 - alpha_bar).sqrt() * eps
    f_b = model.blur(batch["y_2"])
    predicted = torch.cat(
        [
            model.step.unet(
                x_t[i : i + 1], t[i], text[i : i + 1], cross_attention_kwargs={"f_b": f_b[i : i + 1]}
            ).sample
            for i in range(2)
        ]
    )
    assert float(loss) == pytest.approx(float(F.mse_loss(predicted, eps)), rel=1e-4)
    scrambled(model.step.adapter)
    scrambled(model.structure.q_former)
    assert torch.equal(stage(batch)["T_2"], loss)
    scrambled(model.blur.q_former)
    assert not torch.allclose(stage(batch)["T_2"], loss)


@torch.no_grad()
def test_structured_transfer_sees_the_structure_too(tiny_checkpoint: Path) -> None:
    """Of y_3, or of what it was before its blur."""
    model, batch = checkpoint.load(tiny_checkpoint), collated([EXAMPLES[i] for i in range(8)])
    stage = diffusion(model, "blur-transfer", structured_transfer=True)
    given = stage.transferred(batch, Draws(batch["key"], torch.device("cpu")))
    own = [torch.equal(image, y_3) for image, y_3 in zip(given, batch["y_3"], strict=True)]
    before = [torch.equal(image, x_3) for image, x_3 in zip(given, batch["x_3"], strict=True)]
    assert all(a or b for a, b in zip(own, before, strict=True))
    assert 0 < sum(own) < 8
    loss = stage(batch)["T_2"]
    assert not torch.allclose(loss, diffusion(model, "blur-transfer")(batch)["T_2"])
    scrambled(model.step.adapter)
    assert not torch.allclose(loss, stage(batch)["T_2"])


@torch.no_grad()
def test_eq_8_is_the_mean_of_its_tasks(tiny_checkpoint: Path) -> None:
    model, batch = checkpoint.load(tiny_checkpoint), collated([EXAMPLES[i] for i in range(2)])
    for without, tasks in (((), {"T_1", "T_2", "T_3"}), (("T_3",), {"T_1", "T_2"}), (("T_2", "T_3"), {"T_1"})):
        terms = diffusion(model, "joint", without=frozenset(without))(batch)
        assert set(terms) == tasks | {"loss"}
        assert float(terms["loss"]) == pytest.approx(
            float(torch.stack([terms[task] for task in tasks]).mean()), rel=1e-5
        )
    scrambled(model.step.adapter)  # which T_1 and T_3 hear, and T_2 does not
    before, after = terms | diffusion(model, "joint")(batch), diffusion(model, "joint")(batch)
    assert torch.equal(before["T_2"], after["T_2"])


@torch.no_grad()
def test_each_task_is_what_it_is_alone(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That tasks share a batch, with zeros for the f_b of T_1 and for the residuals of T_2, changes none of them."""
    model, batch = checkpoint.load(tiny_checkpoint), collated([EXAMPLES[i] for i in range(2)])
    constant = {"normal": lambda self, shape: torch.linspace(-1, 1, int(np.prod(shape))).view(1, *shape)}
    for name, make in constant.items():
        monkeypatch.setattr(
            Draws, name, lambda self, shape, make=make: make(self, shape).repeat(2 * self.times, 1, 1, 1)
        )
    monkeypatch.setattr(Draws, "below", lambda self, high: torch.full((2 * self.times,), high // 3))
    monkeypatch.setattr(Draws, "uniform", lambda self: torch.full((2 * self.times,), 0.5))
    together = diffusion(model, "joint")(batch)
    for task in ("T_1", "T_2", "T_3"):
        others = {"T_1", "T_2", "T_3"} - {task}
        assert float(diffusion(model, "joint", without=others)(batch)[task]) == pytest.approx(
            float(together[task]), rel=1e-4
        )


@torch.no_grad()
def test_eq_10_is_the_squared_error_of_what_the_diffusion_delivers(tiny_checkpoint: Path) -> None:
    model, batch = checkpoint.load(tiny_checkpoint), collated([EXAMPLES[i] for i in range(2)])
    stage = diffusion(model, "decoder-refiner")
    noise = Draws(batch["key"], torch.device("cpu")).normal(model.encoder(batch["blurred"])[0].shape[1:])
    sampled = model.deblur(batch["blurred"], noise, steps=2, guidance=1.5)
    torch.testing.assert_close(stage.sampled(batch["blurred"], batch["key"]), sampled)
    z, skips = stage.delivered(batch["blurred"], batch["key"])
    error = (model.decoder.unclamped(z, skips) - batch["sharp"]).square().mean()
    assert float(stage(batch)["loss"]) == pytest.approx(float(error), rel=1e-5)


def test_timesteps_are_uniform_unless_a_share_is_the_samplers(tiny_checkpoint: Path) -> None:
    model, draws = checkpoint.load(tiny_checkpoint), Draws(list(range(4000)), torch.device("cpu"))
    uniform = diffusion(model, "deblur").timesteps(draws)
    assert float(uniform.float().mean()) == pytest.approx(499.5, abs=20)
    assert len(uniform.unique()) > 900
    t = diffusion(model, "deblur", visited=0.5).timesteps(draws)
    model.scheduler.set_timesteps(2)
    shares = [float((t == visited).float().mean()) for visited in model.scheduler.timesteps]
    assert shares == pytest.approx([0.25, 0.25], abs=0.03)


@pytest.mark.parametrize("name", STAGES)
def test_every_tensor_of_a_stage_is_on_its_device(tiny_checkpoint: Path, name: str) -> None:
    """On PyTorch's meta device, which refuses to add, multiply or join tensors of two devices."""
    stage = STAGES[name].make(checkpoint.load(tiny_checkpoint), Choices(2, 1.5, visited=0.5)).to("meta")
    images = {name: torch.empty(2, 3, 16, 16, device="meta") for name in ("sharp", "blurred", "y_2", "y_3")}
    losses = stage({**images, "key": [1, 2]})
    losses["loss"].backward()
    assert {loss.device.type for loss in losses.values()} == {"meta"}
    assert stage.sheet({**images, "key": [1, 2]}).device.type == "meta"
