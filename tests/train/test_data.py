"""Training images: made ones, and files as people have them."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from uid.errors import InputError
from uid.runtime.media.encode import write_image
from uid.runtime.media.formats import DecodedImage
from uid.train import files
from uid.train.blur import Random, RgbImage
from uid.train.cli import main
from uid.train.data import Blurred, BlurredAlike, Examples, FilePairs, Images, ProceduralImages, TwoOf


def test_made_images_are_made_once_and_a_domain_shares_its_blur(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "images.npy"
    first, again = (ProceduralImages(path, 3, seed=5, report=told.append) for _ in range(2))
    assert len(told) == 1
    np.testing.assert_array_equal(first.images, again.images)
    assert first(np.random.default_rng(0), 32, 48).shape == (32, 48, 3)

    def points(rng: Random, height: int, width: int) -> RgbImage:
        rng.random()
        image = np.zeros((height, width, 3), np.float32)
        image[height // 2, width // 2] = 1.0
        return image

    for index in range(8):  # the blur of a point is the kernel; what differs is noise and what JPEG makes of it
        example = Examples(Blurred(points), 64, 0, BlurredAlike(points))[index]
        assert float((example["y_2"] - example["y_3"]).abs().mean()) < 0.02
        spread = [float((example[name] > 0.25).sum()) for name in ("y_2", "y_3")]
        assert max(spread) - min(spread) <= 0.25 * max(spread) + 6


def save(pixels: NDArray[np.unsignedinteger], path: Path) -> Path:
    write_image(DecodedImage(pixels, None, False, None, None, "png"), path)
    return path


def plain(path: Path, level: int, side: int = 20) -> Path:
    """An image of one level."""
    return save(np.full((side, side, 3), level, np.uint8), path)


def test_crops_of_images_in_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    path = save(pixels, tmp_path / "a.png")
    crop = Images([path])(rng, 8, 16)
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
        Images([path])(rng, 64, 64)
    other = save(255 - (pixels >> 8).astype(np.uint8), tmp_path / "b.png")
    for _ in range(8):  # the same place and the same mirror in both
        sharp, blurred = FilePairs([(path, other)])(rng, 8, 16)
        np.testing.assert_allclose(sharp, 1.0 - blurred, atol=0.005)
    with pytest.raises(InputError, match="expected 50 x 40, as"):
        FilePairs([(path, plain(tmp_path / "c.png", 1))])(rng, 8, 8)


def test_a_domain_gives_two_different_images(tmp_path: Path) -> None:
    paths = [plain(tmp_path / f"{level}.png", level) for level in (10, 20, 30)]
    seen = {tuple(round(float(x.max() * 255)) for x in TwoOf(paths)(np.random.default_rng(i), 8, 8)) for i in range(60)}
    assert seen == {(a, b) for a in (10, 20, 30) for b in (10, 20, 30) if a != b}
    with pytest.raises(InputError, match="expected two or more"):
        TwoOf(paths[:1])


# The layouts of the data sets: (folder, folders' and files' names, what a pair has in common)
GOPRO = [f"GOPR0372_07_00/{kind}/00004{i}.png" for kind in ("blur", "blur_gamma", "sharp") for i in (7, 8)]
REDS = [f"{kind}/00{i}/00000000.png" for kind in ("train_blur", "train_sharp", "train_blur_comp") for i in (0, 1)]
REALBLUR = [f"RealBlur-J_ECC/scene00{i}/{kind}/{kind}_1.png" for kind in ("blur", "gt") for i in (1, 2)]


def laid_out(folder: Path, names: list[str]) -> Path:
    for name in names:
        plain(folder / name, 200 if "sharp" in name or "gt" in name else 100)
    return folder


@pytest.mark.parametrize("names", [GOPRO, REDS, REALBLUR], ids=["GoPro", "REDS", "RealBlur"])
def test_sharp_and_blurred_images_of_a_data_set_are_told_apart(tmp_path: Path, names: list[str]) -> None:
    folder, told = laid_out(tmp_path / "data", names), list[str]()
    for kind, words in ((files.SHARP, ("sharp", "gt_")), (files.BLURRED, ("blur/", "blur_1", "train_blur/"))):
        found = [str(path.relative_to(folder)) for path in files.images(folder, kind, told.append)]
        assert len(found) == 2
        assert all(any(word in path for word in words) for path in found)
    assert all("left out" in line for line in told)
    pairs = files.pairs(folder, folder)
    assert len(pairs) == 2
    for sharp, blurred in pairs:
        example = Examples(FilePairs([(sharp, blurred)]), 16, 0)[0]
        assert round(float(example["sharp"].mean() * 255)) == 200
        assert round(float(example["blurred"].mean() * 255)) == 100


def test_folders_that_say_nothing_are_taken_as_they_are(tmp_path: Path) -> None:
    sharp, blurred = laid_out(tmp_path / "fine", ["a/1.png", "2.png"]), laid_out(tmp_path / "bad", ["a/1.jpg", "3.png"])
    assert len(files.images(sharp, files.SHARP)) == len(files.images(sharp, files.BLURRED)) == 2
    told: list[str] = []
    assert files.pairs(blurred, sharp, told.append) == [(sharp / "a/1.png", blurred / "a/1.jpg")]
    assert "1 blurred images have no sharp one" in told[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        files.images(tmp_path / "empty", files.SHARP)
    with pytest.raises(InputError, match="no blurred image in"):
        files.pairs(laid_out(tmp_path / "else", ["b/9.png"]), sharp)
    with pytest.raises(InputError, match="holds no sharp images"):
        files.images(laid_out(tmp_path / "one", ["blur/1.png"]), files.SHARP)


def test_lists_of_files_as_realblur_has_them(tmp_path: Path) -> None:
    laid_out(tmp_path, REALBLUR)
    lines = [f"RealBlur-J_ECC/scene00{i}/gt/gt_1.png RealBlur-J_ECC/scene00{i}/blur/blur_1.png" for i in (1, 2)]
    path = tmp_path / "RealBlur_J_train_list.txt"
    path.write_text("\n".join(lines) + "\n")
    pairs = files.listed_pairs(path)
    assert [[image.name for image in pair] for pair in pairs] == [["gt_1.png", "blur_1.png"]] * 2
    assert files.images(path, files.BLURRED) == [blurred for _, blurred in pairs]
    assert files.images(path, files.SHARP) == [sharp for sharp, _ in pairs]
    wrong = {
        " ".join(reversed(lines[0].split())): "has blurred images first",
        "nothing.png": "which is no file",
        lines[0].split()[0]: "line 1 of .* has one path",
        "": "is empty",
    }
    for text, message in wrong.items():
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            files.listed_pairs(path)


def test_the_splits_are_written_as_lists_that_training_reads(tmp_path: Path) -> None:
    gopro = laid_out(tmp_path / "GOPRO Large" / "train", GOPRO).parent
    reds = laid_out(tmp_path / "REDS", REDS)
    laid_out(tmp_path / "RealBlur", REALBLUR)
    line = "RealBlur-J_ECC/scene001/gt/gt_1.png RealBlur-J_ECC/scene001/blur/blur_1.png\n"
    (tmp_path / "RealBlur" / "RealBlur_J_test_list.txt").write_text(line)
    given = ["--gopro", gopro, "--reds", reds, "--realblur", tmp_path / "RealBlur"]
    result = CliRunner().invoke(main, ["lists", str(tmp_path / "out"), *map(str, given)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "gopro-train: 2 pairs; published: 2103" in result.output
    assert "gopro-test: left out" in result.output
    written = {path.stem for path in (tmp_path / "out").iterdir()}
    assert written == {
        f"{name}{end}" for name in ("gopro-train", "reds-train", "realblur-j-test") for end in ("", "-blurred")
    }
    assert sorted(files.listed_pairs(tmp_path / "out" / "gopro-train.txt")) != []
    taken = files.listed_pairs(tmp_path / "out" / "gopro-train.txt")
    assert [(a.resolve(), b.resolve()) for a, b in taken] == files.pairs(gopro / "train", gopro / "train")
    blurred = files.images(tmp_path / "out" / "gopro-train-blurred.txt", files.BLURRED)
    assert [path.resolve() for path in blurred] == [path.resolve() for _, path in taken]
    assert CliRunner().invoke(main, ["lists", str(tmp_path / "out")]).exit_code == 2
