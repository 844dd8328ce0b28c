"""The training loop on real stages at tiny size."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from uid.errors import InputError
from uid.reference import checkpoint
from uid.reference.presets import TINY
from uid.runtime.images import Picture, write_image
from uid.train.blur import Pixels, Random
from uid.train.data import Pairs, PictureFolder
from uid.train.loop import Settings, Stage, train
from uid.train.vae import BaseVAE, DecoderRefiner, EncoderRefiner


def smooth(rng: Random, height: int, width: int) -> Pixels:
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
    refined = EncoderRefiner if name == "encoder-refiner" else DecoderRefiner
    return refined(modules["vae"], modules["vae_refiner"])


def losses(folder: Path) -> list[str]:
    with (folder / "losses.csv").open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def settings(steps: int) -> Settings:
    return Settings(steps=steps, batch=4, save_every=4, warm_up=5, workers=0, learning_rate=1e-3)


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


@pytest.mark.parametrize("name", ["vae", "encoder-refiner", "decoder-refiner"])
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


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    write_image(Picture(pixels, None, False, None, None, "png"), tmp_path / "deep" / "a.png")
    crop = PictureFolder(tmp_path)(rng, 8, 16)
    assert crop.shape == (8, 16, 3)
    assert crop.dtype == np.float32
    whole = pixels / 65535
    both = np.concatenate([whole, whole[:, ::-1]])
    assert any(
        np.allclose(both[y : y + 8, x : x + 16], crop, atol=1e-4)
        for y in range(both.shape[0] - 7)
        for x in range(50 - 15)
    )
    with pytest.raises(InputError, match="expected at least 64 x 64"):
        PictureFolder(tmp_path)(rng, 64, 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no pictures"):
        PictureFolder(tmp_path / "empty")
