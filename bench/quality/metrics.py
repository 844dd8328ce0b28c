"""Learned metrics: how alike two images look, and how well one looks by itself.

The libraries would fetch their weights on first use. Here a file that is missing is an error, which says where it comes
from and where it goes.
"""

import hashlib
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uid.errors import InputError
from uid.install import how_to_install

if TYPE_CHECKING:
    from uid.train.blur import RgbImage

Score = Callable[["RgbImage", "RgbImage"], float]  # an image and its sharp original, (H, W, 3) float32 sRGB in [0, 1]

LIBRARIES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "piq",
    "open_clip_torch",
    "torch-fidelity",
)  # of all metrics together
NAMED_HASH = re.compile(r"-([0-9a-f]{8,})\.")  # torch's convention: how the file's SHA-256 begins


def torch_hub() -> Path:
    """Where torch keeps weights: under ``$TORCH_HOME``, by default ``~/.cache/torch``."""
    return Path(importlib.import_module("torch").hub.get_dir()) / "checkpoints"


def clip_cache() -> Path:
    """Where piq keeps CLIP's."""
    return Path("~/.cache/clip").expanduser()


@dataclass(frozen=True)
class Metric:
    """A class of a library, whose instances score (1, 3, H, W) float32 tensors in [0, 1]."""

    module: str
    name: str
    reference: bool  # whether it compares with the sharp image, or looks at the image alone
    higher_is_better: bool
    weights: tuple[str, ...] = ()  # URLs of files, or of a page with "#" and the name of a file that it leads to
    library: str | None = None  # that has to be installed; None: the module's own
    folder: Callable[[], Path] = torch_hub
    options: Mapping[str, Any] = field(default_factory=dict)


TORCHVISION = "https://download.pytorch.org/models"
ARNIQA = "https://github.com/miccunifi/ARNIQA/releases/download/weights"
PIQ = "https://github.com/photosynthesis-team/piq/releases/download/v0.7.1"
PIQ_FIRST = "https://github.com/photosynthesis-team/piq/releases/download/v0.4.0"
METRICS = {
    # Zhang et al. (2018), on AlexNet
    "lpips": Metric(
        "torchmetrics.image.lpip",
        "LearnedPerceptualImagePatchSimilarity",
        reference=True,
        higher_is_better=False,
        weights=(f"{TORCHVISION}/alexnet-owt-7be5be79.pth",),
        options={"normalize": True},
    ),
    # Ding et al. (2020), on VGG-16
    "dists": Metric(
        "torchmetrics.image.dists",
        "DeepImageStructureAndTextureSimilarity",
        reference=True,
        higher_is_better=False,
        weights=(f"{TORCHVISION}/vgg16-397923af.pth",),
    ),
    # Agnolucci et al. (2024), regressor of KonIQ-10k
    "arniqa": Metric(
        "torchmetrics.image.arniqa",
        "ARNIQA",
        reference=False,
        higher_is_better=True,
        weights=(f"{ARNIQA}/ARNIQA.pth", f"{ARNIQA}/regressor_koniq10k.pth"),
        options={"normalize": True},
    ),
    # Wang et al. (2023), on CLIP's ResNet-50 without positions; torchmetrics' own runs on another CLIP
    "clip-iqa": Metric(
        "piq.clip_iqa",
        "CLIPIQA",
        reference=False,
        higher_is_better=True,
        weights=(f"{PIQ}/RN50.pt", f"{PIQ}/clipiqa_tokens.pt"),
        folder=clip_cache,
    ),
    # Mittal et al. (2012): natural scene statistics
    "brisque": Metric(
        "piq.brisque",
        "BRISQUELoss",
        reference=False,
        higher_is_better=False,
        weights=(f"{PIQ_FIRST}/brisque_svm_weights.pt",),
    ),
    # Zhang et al. (2023), on CLIP's ViT-B/32
    "liqe": Metric(
        "uid.bench.quality.liqe",
        "LIQE",
        reference=False,
        higher_is_better=True,
        weights=("https://github.com/zwx8981/LIQE#LIQE.pt",),
        library="open_clip",
    ),
}


def load(names: Iterable[str]) -> dict[str, Score]:
    """The named metrics of ``METRICS``, on the CPU; raises ``InputError`` for a missing library and missing weights."""
    return {name: _load(name, METRICS[name]) for name in names}


def heading(name: str) -> str:
    """The name with an arrow to the better side."""
    return f"{name} {'↑' if METRICS[name].higher_is_better else '↓'}"


def _load(name: str, metric: Metric) -> Score:
    _check_libraries(name, metric)
    check_weights(name, metric.folder(), metric.weights)
    torch = importlib.import_module("torch")
    score = getattr(importlib.import_module(metric.module), metric.name)(**metric.options)

    def run(image: "RgbImage", sharp: "RgbImage") -> float:
        pictures = (image, sharp) if metric.reference else (image,)
        with torch.inference_mode():
            return float(score(*(torch.tensor(picture.transpose(2, 0, 1)[None]) for picture in pictures)))

    return run


def _check_libraries(name: str, metric: Metric) -> None:
    """Raise ``InputError`` unless they are there, and torchvision fits torch."""
    for library in ("torchvision", metric.library or metric.module.split(".")[0]):
        if importlib.util.find_spec(library) is None:
            raise InputError(f"metric {name} needs {library}, which is missing: {how_to_install('metrics')}")
    check_torchvision()


def check_torchvision() -> None:
    """Raise ``InputError`` where torchvision is of another build than torch."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:  # it registers operators, which a torch of another build does not take
        raise InputError(
            "torchvision and torch are of different builds: install both from one index, "
            f"such as PyPI or https://download.pytorch.org/whl/cpu ({error})"
        ) from error


def check_weights(name: str, folder: Path, weights: Iterable[str]) -> None:
    """Raise ``InputError`` unless every file is there, and is what its name says."""
    paths = {folder / file_name(url): url for url in weights}
    missing = [in_words(url) for path, url in paths.items() if not path.is_file()]
    if missing:
        raise InputError(f"metric {name} needs weights that are not in {folder}; download there: {' '.join(missing)}")
    for path, url in paths.items():
        expected = NAMED_HASH.search(path.name)
        if expected and not (found := hashlib.sha256(path.read_bytes()).hexdigest()).startswith(expected[1]):
            raise InputError(
                f"{path} is damaged: its SHA-256 begins with {found[:8]}, expected {expected[1]}; "
                f"get it anew from {url}"
            )


def file_name(url: str) -> str:
    """Of the file that an address gives or its page leads to."""
    return url.partition("#")[2] or Path(url).name


def in_words(url: str) -> str:
    """An address, and which file its page leads to."""
    page, _, name = url.partition("#")
    return f"{name} (see {page})" if name else url
