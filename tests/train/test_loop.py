"""The training loop on real stages at tiny size."""

import csv
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from uid.errors import InputError
from uid.families.uid_diff import checkpoint
from uid.families.uid_diff.configs import TINY
from uid.families.uid_diff.model import UIDDiff
from uid.runtime.media.encode import write_image
from uid.runtime.media.formats import DecodedImage
from uid.train.blur import Random, RgbImage
from uid.train.cli import default_learning_rate, main
from uid.train.data import Domains, ImageFolder, Pairs, ProceduralImages
from uid.train.diffusion import BaseDiffusion, BlurTransfer, Deblurring, Delivery, DiffusionStage, Joint
from uid.train.loop import Stage, TrainingSettings, train
from uid.train.vae import BaseVAE, DecoderRefiner, EncoderRefiner, JointRefiner


def smooth(rng: Random, height: int, width: int) -> RgbImage:
    """A few soft blobs."""
    blobs = rng.random((5, 5, 3), dtype=np.float32)
    return cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def stage(name: str) -> Stage:
    """A stage of the tiny preset with seeded random weights."""
    modules = checkpoint.build(TINY)
    generator = torch.Generator().manual_seed(0)
    for part in ("vae", "vae_refiner"):
        checkpoint.randomise(modules[part], generator)
    if name == "vae":
        return BaseVAE(modules["vae"])
    refined = {"refiner": JointRefiner, "encoder-refiner": EncoderRefiner, "decoder-refiner": DecoderRefiner}
    return refined[name](modules["vae"], modules["vae_refiner"])


def losses(folder: Path) -> list[str]:
    with (folder / "losses.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def settings(steps: int) -> TrainingSettings:
    return TrainingSettings(steps=steps, batch=4, save_every=4, warm_up=5, workers=0, learning_rate=1e-3)


def test_same_seed_same_losses_and_a_resumed_run_goes_on_as_it_would_have(tmp_path: Path) -> None:
    examples = Pairs(smooth, 16, seed=1)
    train(stage("vae"), examples, settings(20), tmp_path / "whole")
    train(stage("vae"), examples, settings(20), tmp_path / "again")
    assert len(losses(tmp_path / "whole")) == 20
    assert losses(tmp_path / "whole") == losses(tmp_path / "again")

    class KilledError(Exception):
        pass

    class Deadly(Pairs):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            if index >= 4 * 10:  # in the eleventh batch, two after a checkpoint
                raise KilledError
            return super().__getitem__(index)

    with pytest.raises(KilledError):
        train(stage("vae"), Deadly(smooth, 16, seed=1), settings(20), tmp_path / "killed")
    resumed = stage("vae")
    train(resumed, examples, settings(20), tmp_path / "killed")
    np.testing.assert_allclose(
        [float(x) for x in losses(tmp_path / "killed")[-12:]],
        [float(x) for x in losses(tmp_path / "whole")[-12:]],
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["vae", "refiner", "encoder-refiner", "decoder-refiner"])
def test_each_stage_learns_and_leaves_the_frozen_alone(tmp_path: Path, name: str) -> None:
    trained = stage(name)
    frozen = {n: p.clone() for n, p in trained.named_parameters() if not p.requires_grad}
    free = {n: p.clone() for n, p in trained.named_parameters() if p.requires_grad}
    train(trained, Pairs(smooth, 16, seed=1), settings(60), tmp_path)
    after = dict(trained.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items())
    assert all(not torch.equal(after[n], p) for n, p in free.items())
    assert bool(frozen) == (name != "vae")
    if name == "decoder-refiner":
        assert not any("encoder" in n for n in free)
    history = [float(x) for x in losses(tmp_path)]
    assert np.mean(history[-10:]) < 0.9 * np.mean(history[:10])
    sheet = cv2.imread(str(tmp_path / "sheet-000060.png"))
    assert sheet is not None
    assert sheet.shape[0] in (2 * 16, 3 * 16)


PAPER = {"structure.q_former", "step.adapter", "blur.q_former", "blur_projections"}
BACKBONE = {"step.unet", "structure.image_encoder"}
DIFFUSION_STAGES: dict[str, tuple[Callable[[UIDDiff], DiffusionStage], set[str]]] = {
    "base": (partial(BaseDiffusion, steps=2), {"step.unet", "text_encoder"}),
    "deblur": (lambda m: Deblurring(m, steps=2, backbone=False), {"structure.q_former", "step.adapter"}),
    "deblur, backbone": (
        lambda m: Deblurring(m, steps=2, backbone=True),
        {"structure.q_former", "step.adapter"} | BACKBONE,
    ),
    "blur-transfer": (partial(BlurTransfer, steps=2), {"blur.q_former", "blur_projections"}),
    "joint": (lambda m: Joint(m, steps=2, backbone=False), PAPER),
    "joint, backbone": (lambda m: Joint(m, steps=2, backbone=True), PAPER | BACKBONE),
    "joint without Q_s": (lambda m: Joint(m, steps=2, backbone=False, without={"Q_s"}), PAPER - {"structure.q_former"}),
    "joint without T_2, T_3": (
        lambda m: Joint(m, steps=2, backbone=False, without={"T_2", "T_3"}),
        {"structure.q_former", "step.adapter"},
    ),
    "delivery": (lambda m: Delivery(m, steps=2), {"refiner"}),
}


@pytest.mark.parametrize("name", DIFFUSION_STAGES)
def test_diffusion_stages_train_what_they_say_and_nothing_else(
    tmp_path: Path, tiny_checkpoint: Path, name: str
) -> None:
    """Without the backbone, as at sd15, all that the paper freezes stays as it was, to the bit."""
    model = checkpoint.load(tiny_checkpoint)
    make, learns = DIFFUSION_STAGES[name]
    before = {n: p.clone() for n, p in model.named_parameters(remove_duplicate=False)}
    steps = 30 if name == "joint, backbone" else 3  # one that goes on long enough to see that it learns
    train(make(model), Domains(smooth, 16, seed=1), settings(steps), tmp_path)
    after = dict(model.named_parameters(remove_duplicate=False))
    changed = {n for n, p in before.items() if not torch.equal(p, after[n])}
    own = {n for n in changed if n.startswith(tuple(learns))}
    # the same modules under their other names
    others = ("encoder.refiners", "decoder.refiners", "blur.image_encoder")
    assert {n for n in changed if not n.startswith(others)} == own
    assert all(any(n.startswith(part) for n in own) for part in learns)
    assert not any(n.startswith("encoder.vae.") for n in changed)
    history = [float(x) for x in losses(tmp_path)]
    assert steps < 30 or np.mean(history[-10:]) < 0.99 * np.mean(history[:10])
    assert steps < 30 or (tmp_path / "sheet-000030.png").is_file()


def test_joint_losses_are_the_sum_of_its_tasks(tiny_checkpoint: Path) -> None:
    model = checkpoint.load(tiny_checkpoint)
    batch = {name: torch.rand(2, 3, 16, 16) for name in ("sharp", "blurred", "y_2", "y_3")}
    for without, tasks in (((), {"T_1", "T_2", "T_3"}), (("T_3",), {"T_1", "T_2"}), (("T_2", "T_3"), {"T_1"})):
        stage = Joint(model, steps=2, backbone=False, without=without)
        terms = {name: loss.detach() for name, loss in stage(batch).items()}
        assert set(terms) == tasks | {"loss"}
        assert float(terms["loss"]) == pytest.approx(sum(float(terms[task]) for task in tasks), rel=1e-5)


def test_zeros_for_f_b_are_no_blur_at_all(tiny_checkpoint: Path) -> None:
    """So that T_1, which has none, runs in one batch with the tasks that have."""
    model = checkpoint.load(tiny_checkpoint)
    stage = Joint(model, steps=2, backbone=False)
    z, text = torch.randn(3, 4, 8, 8), stage.text(["blurry image"] * 3)
    f_b = model.blur(torch.rand(3, 3, 16, 16))
    torch.manual_seed(0)
    without = stage.noise_losses(z, text, None)
    for given, equal in ((torch.zeros_like(f_b), True), (f_b, False)):
        torch.manual_seed(0)
        assert torch.allclose(stage.noise_losses(z, text, None, given), without, rtol=1e-5) == equal


def test_half_of_the_timesteps_are_those_of_the_sampler(tiny_checkpoint: Path) -> None:
    stage = Joint(checkpoint.load(tiny_checkpoint), steps=2, backbone=False)
    torch.manual_seed(0)
    t = stage.timesteps(4000)
    stage.model.scheduler.set_timesteps(2)
    shares = [float((t == visited).float().mean()) for visited in stage.model.scheduler.timesteps]
    assert shares == pytest.approx([0.25, 0.25], abs=0.03)
    assert len(t.unique()) > 700


def test_queries_of_a_new_q_former_differ(tmp_path: Path) -> None:
    """Equal ones have equal gradients, and would stay one query for ever."""
    checkpoint.write_untrained(tmp_path / "new", "tiny")
    model = checkpoint.load(tmp_path / "new")
    for extractor in (model.structure, model.blur):
        features = extractor(torch.rand(1, 3, 16, 16))[0]
        assert torch.pdist(features).min() > 1e-3


def test_the_papers_rate_is_the_default_but_for_the_small_presets() -> None:
    assert [default_learning_rate(name) for name in ("sd15", "edge", "a user's own")] == [5e-5, 3e-4, 5e-5]


def run(*words: str | Path, code: int = 0) -> str:
    """The output of ``uid-train`` at tiny size, which must end with this status."""
    small = ["--size", "16", "--batch", "2", "--workers", "0", "--images", "8"]
    result = CliRunner().invoke(main, [*map(str, words), *small], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_checkpoint_is_written_and_the_first_stays_as_it_is(tmp_path: Path, tiny_checkpoint: Path) -> None:
    source, new = Path(shutil.copytree(tiny_checkpoint, tmp_path / "released")), tmp_path / "new"
    before = contents(source)
    assert "give one of -o FOLDER" in run("vae", source, "--steps", "3", code=2)
    assert "lies in the checkpoint itself" in run("vae", source, "-o", source / "new", "--steps", "3", code=1)
    run("vae", source, "-o", new, "--steps", "3")
    assert contents(source) == before
    assert set(contents(new)) == set(before)
    assert contents(new)["vae/config.json"] != before["vae/config.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"released", "new", "new.training"}
    assert (tmp_path / "new.training" / ".gitignore").read_text() == "*\n"
    assert "new is in use" in run("vae", source, "-o", new, "--steps", "4", code=1)


def test_training_in_place_is_asked_for_and_the_result_exports_as_it_is(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    before = checkpoint.load(folder).encoder.vae.state_dict()
    (folder / "training").mkdir()
    assert "earlier version's training; move it to" in run("vae", folder, "--in-place", "--steps", "3", code=1)
    (folder / "training").rmdir()
    run("vae", folder, "--in-place", "--steps", "3")
    loaded = checkpoint.load(folder)
    assert any(not torch.equal(before[key], value) for key, value in loaded.encoder.vae.state_dict().items())
    z = torch.cat([loaded.encoder(torch.rand(1, 3, 16, 16))[0].flatten() for _ in range(4)])
    assert 0.01 < z.std() < 100.0
    assert loaded.encoder.vae.config.scaling_factor != 0.18215
    assert set(contents(folder)) == set(contents(tiny_checkpoint))


def test_made_images_are_made_once_and_a_domain_shares_its_blur(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "images.npy"
    first, again = (ProceduralImages(path, 3, seed=5, report=told.append) for _ in range(2))
    assert len(told) == 1
    np.testing.assert_array_equal(first.images, again.images)
    assert first(np.random.default_rng(0), 32, 48).shape == (32, 48, 3)

    def points(rng: Random, height: int, width: int) -> RgbImage:
        rng.random()
        picture = np.zeros((height, width, 3), np.float32)
        picture[height // 2, width // 2] = 1.0
        return picture

    for index in range(8):  # the blur of a point is the kernel; what differs is noise and what JPEG makes of it
        example = Domains(points, 64, seed=0)[index]
        assert float((example["y_2"] - example["y_3"]).abs().mean()) < 0.02
        spread = [float((example[name] > 0.25).sum()) for name in ("y_2", "y_3")]
        assert max(spread) - min(spread) <= 0.25 * max(spread) + 6


def test_a_folder_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    write_image(DecodedImage(pixels, None, False, None, None, "png"), tmp_path / "deep" / "a.png")
    crop = ImageFolder(tmp_path)(rng, 8, 16)
    assert crop.shape == (8, 16, 3)
    assert crop.dtype == np.float32
    whole = pixels / 65535
    both = np.concatenate([whole, whole[:, ::-1]])
    assert any(
        np.allclose(both[y : y + 8, x : x + 16], crop, atol=1e-4)
        for y in range(both.shape[0] - 7)
        for x in range(50 - 15)
    )
    y_2, y_3 = (Domains(smooth, 16, seed=0, blurry=ImageFolder(tmp_path))[0][name] for name in ("y_2", "y_3"))
    assert y_2.shape == y_3.shape == (3, 16, 16)
    with pytest.raises(InputError, match="expected at least 64 x 64"):
        ImageFolder(tmp_path)(rng, 64, 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        ImageFolder(tmp_path / "empty")
