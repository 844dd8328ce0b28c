"""The manifest of a bundle: its schema, read and written here alone.

A bundle is a folder with a manifest, ONNX components and constants. Nothing in it can execute code. Everything in the
manifest is checked before any of it is used: schema, names, files that stay inside the folder, sha256 of every file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from uid.bundles.files import written_whole
from uid.bundles.hashes import sha256, verify_files
from uid.bundles.names import DIMENSION, KEY, checked
from uid.bundles.tensors import (
    COEFFICIENTS,
    GUIDANCE,
    HEIGHT,
    IMAGE,
    STATE,
    WIDTH,
    Array,
    TensorSpec,
)
from uid.errors import BundleError

SCHEMA = 1
MANIFEST = "manifest.json"
CONSTANTS = "constants.safetensors"
BUILT_IN = Path(__file__).parent / "models"
PREPARE, FINISH = "prepare", "finish"
FULL, SHALLOW, UNGUIDED = "step", "step-shallow", "step-unguided"
STEPS = (FULL, SHALLOW, UNGUIDED)  # ways to compute a denoising step; a bundle always has the first
STAGES = (PREPARE, *STEPS, FINISH)

TRANSFORMS = 8  # flips and transpositions of an image
ARGUMENTS = ("self", "options", "on_step")  # of a pipeline's call, which takes a mode's images by name


@dataclass(frozen=True)
class Component:
    """One ONNX graph of a bundle: its stage, and its named tensors with symbolic shapes."""

    name: str
    file: str
    stage: str  # one of ``STAGES``
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: Mapping[str, str] = field(default_factory=dict)  # backend or library -> its own graph of the component

    @property
    def symbols(self) -> frozenset[str]:
        """The symbols in the shapes of the inputs."""
        return frozenset().union(*(spec.symbols for spec in self.inputs))


@dataclass(frozen=True)
class Mode:
    """One task of a bundle: the components that it runs, in order, and what they read from outside."""

    prompt: str
    components: tuple[str, ...]
    constants: Mapping[str, str]  # input name -> key in the constants file
    inputs: tuple[TensorSpec, ...] = ()  # images: ``image``, and those that the mode needs beside it

    @property
    def extra_inputs(self) -> tuple[TensorSpec, ...]:
        """The images that the mode needs beside the one that it changes."""
        return tuple(spec for spec in self.inputs if spec.name != IMAGE)


@dataclass(frozen=True)
class Preset:
    """A named balance of quality and speed, and what was measured of it (see ``uid-bench tradeoff``)."""

    steps: int  # denoising steps
    transforms: int  # flipped and transposed copies whose results are averaged, 1 to 8
    figures: Mapping[str, float] = field(default_factory=dict)  # such as the PSNR to the first preset's images, in dB


@dataclass(frozen=True)
class Bundle:
    """A checked bundle."""

    folder: Path
    digest: str  # sha256 of the manifest, and so of all that the bundle holds
    name: str
    family: str
    trained: bool
    precision: str  # "fp32" or "fp16"
    size_multiple: int  # image height and width are padded to multiples of this
    tile: int  # an image of more than tile * tile pixels is run in tiles of this side
    presets: Mapping[str, Preset]  # by name, the best first; may be empty
    preset: str | None  # the default one; None: ``steps`` without transforms
    steps: int  # default number of denoising steps
    guidance: float  # default guidance scale
    schedule: Mapping[str, Any]
    components: Mapping[str, Component]
    modes: Mapping[str, Mode]
    constants: Mapping[str, Array]

    def parts(self, mode: str) -> list[Component]:
        """The components that a mode runs, in order."""
        return [self.components[name] for name in self.modes[mode].components]


def built_in(name: str = "edge") -> Path:
    """Folder of a bundle that the package contains."""
    return BUILT_IN / name


# -- reading ----------------------------------------------------------------------------------------------------------


def read_bundle(folder: Path) -> Bundle:
    """Read and verify the bundle in ``folder``.

    Raises ``BundleError`` when the manifest is missing, malformed or of a newer schema, when a path in it leaves the
    folder, or when a file is missing or its sha256 differs.
    """
    manifest = read_manifest(folder)
    try:
        verify_files(folder, manifest["files"])
        return bundle_from(folder, manifest)
    except KeyError as error:
        raise BundleError(f"{folder / MANIFEST} lacks {error}; export the bundle again") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{folder / MANIFEST} is malformed: {error}; export the bundle again") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's JSON object, of a schema this version reads."""
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(f"{folder} is not a bundle: cannot read {MANIFEST} ({error.strerror})") from error
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}; export the bundle again") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int):
        raise BundleError(f"{path} states no schema version; expected {SCHEMA}; export the bundle again")
    if schema > SCHEMA:
        raise BundleError(f"{path} has schema {schema}, this uid-runtime reads up to {SCHEMA}: upgrade uid-runtime")
    return manifest


def bundle_from(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    """The bundle that a manifest describes."""
    components = {name: component_from(name, entry, manifest) for name, entry in manifest["components"].items()}
    modes = {checked(name, "mode"): mode_from(name, entry, components) for name, entry in manifest["modes"].items()}
    return Bundle(
        folder=folder,
        digest=sha256(folder / MANIFEST),
        name=checked(manifest["name"], "name"),
        family=checked(manifest["family"], "family"),
        trained=bool(manifest["trained"]),
        precision=checked(manifest["precision"], "precision"),
        size_multiple=int(manifest["size_multiple"]),
        tile=int(manifest["tile"]),
        presets={checked(name, "preset"): preset_from(entry) for name, entry in manifest.get("qualities", {}).items()},
        preset=default_preset(manifest),
        steps=int(manifest["steps"]),
        guidance=float(manifest["guidance"]),
        schedule=manifest["schedule"],
        components=components,
        modes=modes,
        constants=read_constants(folder / listed(manifest["constants"], manifest)),
    )


def listed(name: str, manifest: Mapping[str, Any]) -> str:
    """``name`` if its hash is in the manifest: a file that was not verified is not opened."""
    if name not in manifest["files"]:
        raise BundleError(f"the manifest uses {name!r} but lists no sha256 for it; export the bundle again")
    return name


def component_from(name: str, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> Component:
    """One component's declaration."""
    checked(name, "component")
    if entry["stage"] not in STAGES:
        raise BundleError(f"component {name!r} has stage {entry['stage']!r}; expected one of {', '.join(STAGES)}")
    inputs, outputs = tuple(specs_from(entry["inputs"])), tuple(specs_from(entry["outputs"]))
    variants = {
        checked(backend, "variant"): listed(file, manifest) for backend, file in entry.get("variants", {}).items()
    }
    return Component(name, listed(entry["file"], manifest), entry["stage"], inputs, outputs, variants)


def specs_from(entries: Iterable[Mapping[str, Any]]) -> Iterator[TensorSpec]:
    """Tensor declarations."""
    for entry in entries:
        shape = tuple(
            size if isinstance(size, int) else checked(size, "dimension", DIMENSION) for size in entry["shape"]
        )
        yield TensorSpec(checked(entry["name"], "tensor"), np.dtype(checked(entry["dtype"], "dtype")), shape)


def mode_from(name: str, entry: Mapping[str, Any], components: Mapping[str, Component]) -> Mode:
    """One task's declaration. Its inputs are those that its components read; older manifests do not list them."""
    for unknown in set(entry["components"]) - set(components):
        raise BundleError(f"{MANIFEST} names component {unknown!r} in mode {name!r} but does not declare it")
    constants = {checked(tensor, "tensor"): checked(key, "constant", KEY) for tensor, key in entry["constants"].items()}
    inputs = images_read([components[part] for part in entry["components"]], constants)
    if "inputs" in entry and set(declared := tuple(specs_from(entry["inputs"]))) != set(inputs):
        raise BundleError(
            f"mode {name!r} declares the inputs {shown(declared)}, and its components read {shown(inputs)}; "
            "export the bundle again"
        )
    for spec in inputs:
        if spec.name in ARGUMENTS:
            raise BundleError(f"mode {name!r} has an input called {spec.name!r}, which cannot be given; rename it")
    return Mode(entry["prompt"], tuple(entry["components"]), constants, inputs)


def shown(specs: Iterable[TensorSpec]) -> str:
    """Tensors in words."""
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs) or "none"


def images_read(parts: Sequence[Component], constants: Iterable[str]) -> tuple[TensorSpec, ...]:
    """The images that components read and nothing before them writes."""
    written = {spec.name for part in parts for spec in part.outputs}
    given = {*written, *constants, *COEFFICIENTS, STATE, GUIDANCE}
    read = {spec.name: spec for part in parts for spec in part.inputs if spec.name not in given}
    return tuple(spec for spec in read.values() if spec.name == IMAGE or is_extra_image(spec))


def is_extra_image(spec: TensorSpec) -> bool:
    """Whether a tensor is an RGB image with sizes of its own."""
    return len(spec.shape) == 4 and spec.shape[1] == 3 and not spec.symbols & {HEIGHT, WIDTH}


def preset_from(entry: Mapping[str, Any]) -> Preset:
    """One preset's declaration."""
    figures = {checked(name, "figure"): float(value) for name, value in entry.get("figures", {}).items()}
    preset = Preset(int(entry["steps"]), int(entry["views"]), figures)
    if preset.steps < 1 or not 1 <= preset.transforms <= TRANSFORMS:
        raise BundleError(
            f"the manifest has a preset of {preset.steps} steps and {preset.transforms} views; expected 1 step or more "
            f"and 1 to {TRANSFORMS} views: export the bundle again"
        )
    return preset


def default_preset(manifest: Mapping[str, Any]) -> str | None:
    """The name of the default preset, which must be one of those declared."""
    name: str | None = manifest.get("quality")
    if name is not None and name not in manifest.get("qualities", {}):
        raise BundleError(f"the manifest's default preset {name!r} is not declared; export the bundle again")
    return name


def read_constants(path: Path) -> dict[str, Array]:
    """The constant inputs, by key."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"cannot read {path}: {error}; export the bundle again") from error


# -- writing ----------------------------------------------------------------------------------------------------------


def write_manifest(bundle: Bundle, producer: str) -> None:
    """Write the manifest of ``bundle`` into its folder, with the sha256 of every file that lies there.

    The constants are expected in ``CONSTANTS``. ``producer`` names the program, such as "uid-runtime 0.1.0".
    """
    manifest = {
        "schema": SCHEMA,
        "producer": producer,
        "family": bundle.family,
        "name": bundle.name,
        "trained": bundle.trained,
        "precision": bundle.precision,
        "size_multiple": bundle.size_multiple,
        "tile": bundle.tile,
        "qualities": {name: preset_entry(preset) for name, preset in bundle.presets.items()},
        "quality": bundle.preset,
        "steps": bundle.steps,
        "guidance": bundle.guidance,
        "schedule": bundle.schedule,
        "modes": {name: mode_entry(mode) for name, mode in bundle.modes.items()},
        "components": {name: component_entry(component) for name, component in bundle.components.items()},
        "constants": CONSTANTS,
        "files": {path.name: sha256(path) for path in sorted(bundle.folder.iterdir())},
    }
    save_manifest(bundle.folder, manifest)


def record_figures(folder: Path, figures: Mapping[str, Mapping[str, float]]) -> None:
    """Write what was measured of presets, by their names, into the manifest of the bundle in ``folder``."""
    manifest = read_manifest(folder)
    for name, measured in figures.items():
        manifest["qualities"][name]["figures"] = dict(measured)
    save_manifest(folder, manifest)


def save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest's JSON object, whole."""
    with written_whole(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def preset_entry(preset: Preset) -> dict[str, Any]:
    """A preset's entry."""
    figures = {"figures": dict(preset.figures)} if preset.figures else {}
    return {"steps": preset.steps, "views": preset.transforms, **figures}


def mode_entry(mode: Mode) -> dict[str, Any]:
    """A mode's entry."""
    return {
        "prompt": mode.prompt,
        "components": list(mode.components),
        "constants": dict(mode.constants),
        "inputs": [spec_entry(spec) for spec in mode.inputs],
    }


def component_entry(component: Component) -> dict[str, Any]:
    """A component's entry."""
    return {
        "file": component.file,
        **({"variants": dict(component.variants)} if component.variants else {}),
        "stage": component.stage,
        "inputs": [spec_entry(spec) for spec in component.inputs],
        "outputs": [spec_entry(spec) for spec in component.outputs],
    }


def spec_entry(spec: TensorSpec) -> dict[str, Any]:
    """A tensor's entry."""
    return {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}
