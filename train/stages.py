"""The table of stages. A new stage is a row here and a class of ``uid.train.stage.Stage`` in the module it names."""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import: a command's help need not wait for it
    from uid.families.uid_diff.model import UIDDiff
    from uid.train.stage import Choices, Stage


@dataclass(frozen=True)
class StageEntry:
    """A stage: where its class is, the examples that it needs, and the options of its own."""

    factory: str  # "module:class", imported when first used
    trains: str  # for the help
    domain: bool = False  # its examples have y_2 and y_3, two blurred images of one domain, beside the pairs
    options: tuple[str, ...] = ()  # rows of uid.train.options.OWN
    delivers: bool = False  # a checkpoint that it trained makes deblurred images

    def make(self, model: "UIDDiff", choices: "Choices") -> "Stage":
        """The stage for a model."""
        module, attribute = self.factory.split(":")
        made: Stage = getattr(importlib.import_module(module), attribute)(model, choices)
        return made


STAGES = {
    "vae": StageEntry("uid.train.vae:BaseVAE", "the base VAE (edge only)"),
    "encoder-refiner": StageEntry("uid.train.vae:EncoderRefiner", "the refined VAE, phase one (eq. 9)"),
    "refiner": StageEntry("uid.train.vae:JointRefiner", "both refiners at once (edge only)"),
    "base": StageEntry("uid.train.diffusion:BaseDiffusion", "the text-conditional base diffusion (edge only)"),
    "deblur": StageEntry("uid.train.diffusion:Deblurring", "T_1: deblur (eq. 4)", options=("backbone",), delivers=True),
    "restore": StageEntry(
        "uid.train.restore:Restoration", "the whole chain, from noise to pixels (edge2 only)", delivers=True
    ),
    "blur-transfer": StageEntry(
        "uid.train.diffusion:BlurTransfer", "T_2: transfer blur (eq. 6)", domain=True, options=("structured_transfer",)
    ),
    "joint": StageEntry(
        "uid.train.diffusion:Joint",
        "T_1, T_2 and T_3 together (eq. 8)",
        domain=True,
        options=("backbone", "structured_transfer", "without"),
        delivers=True,
    ),
    "decoder-refiner": StageEntry(
        "uid.train.diffusion:DecoderRefiner", "the refined VAE, phase two (eq. 10)", delivers=True
    ),
}
