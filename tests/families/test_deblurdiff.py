"""DeblurDiff against numbers of the original code, run in float32 with every random draw stored (MIT licence).

``deblurdiff_fixture`` has a small random model with the published names, and what each part of it gave.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402  (torch is there)
from tokenizers.pre_tokenizers import ByteLevel  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

from uid.errors import CheckpointError  # noqa: E402
from uid.families import registry  # noqa: E402
from uid.families.deblurdiff import checkpoint, windows  # noqa: E402
from uid.families.deblurdiff.configs import CONFIGS, SCHEDULE, Tiling, text_encoder  # noqa: E402
from uid.families.deblurdiff.family import index_of  # noqa: E402
from uid.families.deblurdiff.model import Branch, Coefficients, DeblurDiff  # noqa: E402
from uid.families.deblurdiff.networks import adaptive_convolution  # noqa: E402
from uid.families.deblurdiff.text import DEFAULT_NEGATIVE, cleaned, tokens  # noqa: E402
from uid.runtime.colour import colour_fixed  # noqa: E402
from uid.runtime.pixels import like, pad, planes, to_float  # noqa: E402
from uid.runtime.schedule import coefficients  # noqa: E402

FIXTURE = Path(__file__).with_name("deblurdiff_fixture")
TOLERANCE = 1e-4  # of the largest value
PUBLISHED = "8c938f041724ebd0"  # of the published file's keys and shapes
TILING = Tiling(16, 12)
# The fixture's text tower is narrower than its context, which stands in the cases.
CONFIG = replace(CONFIGS["deblurdiff-tiny"], text_encoder=text_encoder(512, 32, 4, 3))

Case = Mapping[str, Tensor]


def case(name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(array) for key, array in np.load(FIXTURE / f"{name}.npz").items()}


def weights() -> dict[str, Tensor]:
    return {key: tensor.float() for key, tensor in load_file(FIXTURE / "weights.safetensors").items()}


@pytest.fixture(scope="module")
def model() -> DeblurDiff:
    """The fixture's model."""
    model = checkpoint.loaded(CONFIG, weights(), "the fixture")
    model.run_in_windows()
    return model


def assert_near(got: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) <= tolerance * float(expected.abs().max())


def padded(image: Tensor) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) in [0, 1], padded."""
    return torch.from_numpy(pad(to_float(planes(image.numpy())), 64, "zeros"))[None]


def rows(steps: int) -> list[Coefficients]:
    found = [dict(row) for row in coefficients(SCHEDULE, steps)]
    return [Coefficients(**{name: torch.tensor([value]) for name, value in row.items()}) for row in found]


# -- parts ------------------------------------------------------------------------------------------------------------


def test_adaptive_convolution() -> None:
    known = case("adaptive_conv")
    assert_near(adaptive_convolution(known["x"], known["kernel"]), known["out_without_residual"], 1e-6)


def test_text(model: DeblurDiff) -> None:
    known = case("clip_text")
    with torch.inference_mode():
        assert_near(model.embedded(known["tokens"]), known["penultimate_ln"])


@pytest.mark.parametrize("steps", [4, 10, 50])
def test_schedule(steps: int) -> None:
    known = np.load(FIXTURE / "schedule.npz")
    found = [dict(row) for row in coefficients(SCHEDULE, steps)][::-1]
    names = {
        "timesteps": "timestep",
        "sqrt_recip_alphas_cumprod": "sqrt_recip_alpha_bar",
        "sqrt_recipm1_alphas_cumprod": "sqrt_recipm1_alpha_bar",
        "posterior_mean_coef1": "posterior_mean_x0",
        "posterior_mean_coef2": "posterior_mean_latent",
    }
    for theirs, ours in names.items():
        np.testing.assert_allclose([row[ours] for row in found], known[f"{theirs}_{steps}"], rtol=1e-6)
    variances = [row["posterior_std"] ** 2 for row in found]
    np.testing.assert_allclose(variances, known[f"posterior_variance_{steps}"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    ("length", "window", "starts"),
    [
        (72, 64, (0, 8)),
        (136, 64, (0, 36, 72)),
        (160, 64, (0, 48, 96)),
        (96, 64, (0, 32)),
        (64, 64, (0,)),
        (8, 64, (0,)),
    ],
)
def test_windows_start_where_the_originals_do(length: int, window: int, starts: tuple[int, ...]) -> None:
    assert windows.window_starts(length, window) == starts


@pytest.mark.parametrize("shape", [(40, 9), (16, 16), (17, 33), (70, 3)])
def test_windows_that_change_nothing_put_the_map_together_again(shape: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    grid = windows.windows_of(shape, 16)
    pieces = windows.cut(x, grid)
    assert pieces.shape == (2 * grid.count, 3, *grid.side)
    first = x[:, :, : grid.side[0], : grid.side[1]]
    torch.testing.assert_close(pieces[:: grid.count], first)
    for weights in (windows.UNIFORM, windows.GAUSSIAN, windows.LAST):
        ways = windows.placements(grid, shape, weights, like=x)
        torch.testing.assert_close(windows.put_together(pieces, grid.counts, *ways), x)


# -- a step -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["case_small", "case_window"])
@torch.inference_mode()
def test_every_network_of_every_step(model: DeblurDiff, name: str) -> None:
    known = case(name)
    for i, t in enumerate(known["timesteps"]):
        got = model.denoiser(known["x_t"][i : i + 1], known["c_img"], t.float()[None], known["context"])
        assert_near(got.noise, known["eps"][i : i + 1])
        assert_near(got.sharpened, known["lkpn"][i : i + 1])
        maps = [*got.control.skips, got.control.middle]
        for number, map_ in enumerate(maps):
            if (key := f"control_step{i}_{number:02}") in known:
                assert_near(map_, known[key])
        if i == 0 and "kernel_step0" in known:
            assert_near(got.kernels, known["kernel_step0"])


@torch.inference_mode()
def test_guidance_has_a_latent_of_its_own(model: DeblurDiff) -> None:
    known = case("case_cfg")
    negative, positive = Branch(known["c_img_neg"], known["context_neg"]), Branch(known["c_img"], known["context"])
    scale = torch.tensor([2.5])
    for i, t in enumerate(known["timesteps"]):
        x, at = known["x_t"][i : i + 1], t.float()[None]
        assert_near(model.noise_estimate(x, at, [negative, positive], scale), known["eps"][i : i + 1])
        if i == 0:
            assert_near(model.noise_estimate(x, at, [positive], None), known["eps_cond"])
            assert_near(model.noise_estimate(x, at, [negative], None), known["eps_uncond"])


# -- whole images -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def sampled(model: DeblurDiff, known: Case, tiling: Tiling | None) -> tuple[Tensor, Tensor]:
    """Last latent and image of a case, from its blurred image and its noise."""
    image = padded(known["lq_u8"])
    branches = [Branch(model.encode(image, known.get("posterior_noise"), tiling), known["context"])]
    assert_near(branches[0].c_img, known["c_img"])
    guidance = None
    if "context_neg" in known:
        guidance = torch.tensor([2.5])
        branches = [Branch(model.encode(image, known["posterior_noise_neg"]), known["context_neg"]), *branches]
    if "better_start_q_noise" in known:
        x = model.better_start(image, known["better_start_posterior_noise"], known["better_start_q_noise"])
    else:
        x = known["x_T"]
    for i, row in enumerate(rows(len(known["timesteps"]))):
        assert_near(x, known["x_t"][i : i + 1])
        x = model.step(x, branches, row, known["step_noise"][i], guidance, tiling)
    return x, model.decode(x, tiling)


@pytest.mark.parametrize(("name", "tiling"), [("small", None), ("window", None), ("tiled", TILING), ("cfg", None)])
def test_whole_images(model: DeblurDiff, name: str, tiling: Tiling | None) -> None:
    known = case(f"case_{name}")
    latent, image = sampled(model, known, tiling)
    assert_near(latent, known["latent_final"])
    blurred = known["lq_u8"].numpy()
    height, width = blurred.shape[:2]
    cropped = image[:, :, :height, :width]
    for key, stride in (("decoded", 1), ("decoded_cropped", 1), ("decoded_cropped_stride2", 2)):
        if key in known:
            assert_near(2 * cropped[:, :, ::stride, ::stride] - 1, known[key])
    fixed = colour_fixed(cropped[0].numpy(), to_float(planes(blurred)), "adain")
    differing = like(fixed, blurred, "down") != known["image_u8"].numpy()
    assert differing.mean() < 1e-3
    rounded = like(fixed, blurred) != known["image_u8"].numpy()
    assert rounded.mean() > 0.3, "rounding shows, so it would be noticed"


# -- the published file -----------------------------------------------------------------------------------------------


def test_the_full_model_has_the_published_keys_and_shapes() -> None:
    with torch.device("meta"):
        full = DeblurDiff(CONFIGS["deblurdiff"])
    found = {source.key: source.shape for source in checkpoint.sources(full).values()}
    text = "".join(f"{key} {list(shape)}\n" for key, shape in sorted(found.items()))
    assert (len(found), hashlib.sha256(text.encode()).hexdigest()[:16]) == (2224, PUBLISHED)


def test_a_folder_has_the_index_that_convert_writes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shutil.copyfile(FIXTURE / "weights.safetensors", folder / "model.safetensors")
    whole = index_of("deblurdiff-tiny", trained=False)
    for change, message in (
        ({"config": "large"}, "has 'large' for 'config'; expected one of deblurdiff, deblurdiff-tiny"),
        ({"prompt": 5}, "has 5 for 'prompt'; expected text"),
        ({"steps": 1}, "has 1 for 'steps'; expected a whole number, 2 to 1000"),
        ({"steps": "50"}, "has '50' for 'steps'; expected a whole number, 2 to 1000"),
        ({"tile": None}, "has None for 'tile'; expected a whole number"),
        ({"tile": 64}, "has 64 for 'tile'; expected a whole number, 128 to 65536"),
        ({"negativ_prompt": "x"}, "the unknown key 'negativ_prompt'; .* did you mean 'negative_prompt'"),
        ({"name": 3}, "has 3 for 'name'; expected at most 64 ASCII letters"),
        ({"prompt": "a sharp photo"}, "needs the tokenizer's files"),
    ):
        (folder / "model_index.json").write_text(json.dumps(whole | change))
        with pytest.raises(CheckpointError, match=message):
            registry.load(folder)


def test_prompts_have_the_originals_tokens() -> None:
    known = tokens(DEFAULT_NEGATIVE, Path(), 49408)[0].tolist()
    assert known[:4] == [49406, 1042, 3027, 267]
    assert known[16:] == [28063, 49407, *[0] * 59]
    assert tokens("", Path(), 49408)[0].tolist() == [49406, 49407, *[0] * 75]


@pytest.mark.parametrize("prompt", ["  ", "", "\n"])
def test_a_prompt_of_spaces_is_the_empty_one(prompt: str) -> None:
    assert torch.equal(tokens(prompt, Path(), 49408), tokens("", Path(), 49408))


def test_a_prompt_is_cleaned_as_openclip_does() -> None:
    assert cleaned("  A &amp;amp; B\n\tÉ ") == "a & b é"
    shouted = f" {DEFAULT_NEGATIVE.upper()} ".replace(" ", "  ")
    assert torch.equal(tokens(shouted, Path(), 49408), tokens(DEFAULT_NEGATIVE, Path(), 49408))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of a tokenizer of the published size: the merges of a few words, and of other pairs."""
    own = ["s h", "sh a", "sha r", "shar p</w>", "p h", "ph o", "pho t", "phot o</w>"]
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters)]
    pairs = [f"{first} {second}" for first in letters for second in words]
    merges = list({line.replace(" ", ""): line for line in [*own, *pairs]}.values())[: 49408 - 514]
    words += [*(line.replace(" ", "") for line in merges), "<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("model") / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder


@pytest.mark.parametrize("prompt", ["a sharp photo", "it's 42!!", "日本 é", "<|endoftext|>"])
def test_other_prompts_have_the_tokens_of_transformers(tokenizer: Path, prompt: str) -> None:
    words = json.loads((tokenizer / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (tokenizer / "merges.txt").read_text().split("\n")[1:-1]]
    known = CLIPTokenizer(vocab=words, merges=merges)(prompt, add_special_tokens=False, split_special_tokens=True)
    found = tokens(prompt, tokenizer.parent, 49408)[0].tolist()
    assert found == [49406, *known.input_ids, 49407, *[0] * (75 - len(known.input_ids))]
    assert tokens(prompt, tokenizer.parent, 512)[0].tolist() == [one % 512 for one in found]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("vocab.json", None, r"lacks vocab\.json;"),
        ("merges.txt", None, r"lacks merges\.txt;"),
        ("vocab.json", lambda text: text[:-9], r"cannot read .*vocab\.json"),
        ("vocab.json", lambda text: "[1]", "has 0 words; expected 49408"),
        ("vocab.json", lambda text: '{"a": 0, "b": 1}', "has 2 words; expected 49408"),
        ("vocab.json", lambda text: text.replace(": 49407}", ": 49408}"), "with the ids 0 to 49407"),
        ("vocab.json", lambda text: text.replace(": 7,", ': "7",'), "with the ids 0 to 49407"),
        ("vocab.json", lambda text: text.replace("<|endoftext|>", "<eos>"), "no start and end of text"),
        ("vocab.json", lambda text: text.replace('"sharp</w>"', '"other</w>"'), "1 merges of words that vocab.json"),
        ("merges.txt", lambda text: text[: len(text) // 2], r"merges\.txt has \d+ merges; expected 48894"),
        ("merges.txt", lambda text: "", r"merges\.txt has 1 merges; expected 48894"),
        ("merges.txt", lambda text: text.replace("s h\n", "s h x\n", 1), "1 merges of words that vocab.json"),
    ],
)
def test_wrong_files_of_a_tokenizer_are_named(
    tokenizer: Path, tmp_path: Path, file: str, change: Callable[[str], str] | None, message: str
) -> None:
    folder = Path(shutil.copytree(tokenizer, tmp_path / "tokenizer"))
    if change is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(change((folder / file).read_text()))
    with pytest.raises(CheckpointError, match=message):
        tokens("a sharp photo", tmp_path, 49408)


def test_only_the_last_layer_and_the_head_may_be_there_beside_what_is_used() -> None:
    tower = "clip.model."
    full = checkpoint.unused(CONFIGS["deblurdiff"])
    assert len(full) == 14
    assert full[f"{tower}transformer.resblocks.23.mlp.c_fc.weight"] == (4096, 1024)
    assert full[f"{tower}text_projection"] == (1024, 1024)
    whole = weights()
    assert set(checkpoint.unused(CONFIG)) < set(whole)
    broken = {key: torch.full_like(whole[key], torch.nan) for key in checkpoint.unused(CONFIG)}
    checkpoint.loaded(CONFIG, whole | broken, "file")
    for key in ("transformer.resblocks.3.ln_1.weight", "transformer.resblocks.0.foo", "visual.proj"):
        with pytest.raises(CheckpointError, match=f"has unknown {tower}{key}"):
            checkpoint.loaded(CONFIG, whole | {f"{tower}{key}": torch.zeros(32)}, "file")
    with pytest.raises(CheckpointError, match=r"ln_1\.weight \[3\] for \[32\]"):
        checkpoint.loaded(CONFIG, whole | {f"{tower}transformer.resblocks.2.ln_1.weight": torch.zeros(3)}, "file")


def test_what_is_missing_extra_misshapen_or_broken_is_named() -> None:
    config, whole = CONFIG, weights()
    key = "unet.out.2.weight"
    renamed = {**whole, "unet.out.3.weight": whole[key]}
    del renamed[key]
    with pytest.raises(CheckpointError, match=r"it lacks unet\.out\.2\.weight; it has unknown unet\.out\.3\.weight"):
        checkpoint.loaded(config, renamed, "file")
    with pytest.raises(CheckpointError, match=r"other shapes: unet\.out\.2\.weight \[3\] for \[4, 64, 3, 3\]"):
        checkpoint.loaded(config, whole | {key: torch.zeros(3)}, "file")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in unet\.out\.2\.weight"):
        checkpoint.loaded(config, whole | {key: whole[key] / 0}, "file")
    with pytest.raises(CheckpointError, match=r"which has 1\d{3} tensors that are used: it lacks .* and 1\d{3} more"):
        checkpoint.loaded(config, {"weight": torch.zeros(3)}, "file")
