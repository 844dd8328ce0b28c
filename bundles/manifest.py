"""The manifest of a bundle: its schema, read and written here alone.

A bundle is a folder with a manifest, ONNX components and constants. Nothing in it can execute code. Everything in the
manifest is checked before any of it is used: schema, names, files that stay inside the folder, sha256 of every file.
Schema 2 added noise, samplers, padding, rounding, limits of size, colour fix and negative prompt; what schema 1 lacks
has the value that it always meant.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from uid.bundles.declarations import (
    COLOUR_FIXES,
    DRAWS,
    LARGEST_SIDE,
    PADDINGS,
    ROUNDINGS,
    STAGES,
    STEPS,
    TRANSFORMS,
    Bundle,
    Component,
    Mode,
    Noise,
    Preset,
    smallest_tile,
)
from uid.bundles.files import written_whole
from uid.bundles.hashes import sha256, verify_files
from uid.bundles.names import DIMENSION, KEY, checked
from uid.bundles.schedules import check_schedule
from uid.bundles.tensors import Array, TensorSpec
from uid.bundles.values import chosen, real, shown, text, truth, whole
from uid.bundles.wiring import check_coefficients, check_constants, check_divisors, listed_specs, mode_of
from uid.errors import BundleError

SCHEMA = 2
MANIFEST = "manifest.json"
CONSTANTS = "constants.safetensors"
ARGUMENTS = ("self", "options", "on_step", "noise")  # of a pipeline's call, which takes a mode's images by name


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
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}; export the bundle again") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int):
        raise BundleError(f"{path} states no schema version; expected {SCHEMA}; export the bundle again")
    whole(schema, "schema", 1)
    if schema > SCHEMA:
        raise BundleError(f"{path} has schema {schema}, this uid-runtime reads up to {SCHEMA}: upgrade uid-runtime")
    return manifest


def bundle_from(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    """The bundle that a manifest describes."""
    components = {name: component_from(name, entry, manifest) for name, entry in manifest["components"].items()}
    modes = {checked(name, "mode"): mode_from(name, entry, components) for name, entry in manifest["modes"].items()}
    loop = any(components[part].stage in STEPS for mode in modes.values() for part in mode.components)
    multiple, max_side = whole(manifest["size_multiple"], "size_multiple", 1), manifest.get("max_side")
    min_side = whole(manifest.get("min_side", 1), "min_side", 1, LARGEST_SIDE)
    smallest = smallest_tile(multiple, min_side)
    check_divisors(components.values(), multiple)
    constants = read_constants(folder / listed(manifest["constants"], manifest))
    for name, mode in modes.items():
        check_constants(name, mode, components, constants)
    schedule = check_schedule(manifest["schedule"]) if loop else {}
    check_coefficients(components.values(), schedule)
    qualities: Mapping[str, Any] = manifest.get("qualities", {})
    return Bundle(
        folder=folder,
        digest=sha256(folder / MANIFEST),
        name=checked(manifest["name"], "name"),
        family=checked(manifest["family"], "family"),
        trained=truth(manifest["trained"], "trained"),
        precision=checked(manifest["precision"], "precision"),
        size_multiple=multiple,
        tile=whole(manifest["tile"], "tile", smallest),
        presets={checked(name, "preset"): preset_from(entry, loop) for name, entry in qualities.items()},
        preset=default_preset(manifest),
        steps=whole(manifest["steps"], "steps", 1) if loop else 0,
        guidance=real(manifest["guidance"], "guidance"),
        schedule=schedule,
        components=components,
        modes=modes,
        constants=constants,
        padding=chosen(manifest.get("padding", PADDINGS[0]), "padding", PADDINGS),
        rounding=chosen(manifest.get("rounding", ROUNDINGS[0]), "rounding", ROUNDINGS),
        min_side=min_side,
        max_side=None if max_side is None else whole(max_side, "max_side", smallest) // multiple * multiple,
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
            whole(size, "dimension", 1) if isinstance(size, int) else checked(size, "dimension", DIMENSION)
            for size in entry["shape"]
        )
        yield TensorSpec(checked(entry["name"], "tensor"), np.dtype(checked(entry["dtype"], "dtype")), shape)


def mode_from(name: str, entry: Mapping[str, Any], components: Mapping[str, Component]) -> Mode:
    """One task's declaration. Its inputs are those that its components read; older manifests do not list them."""
    for unknown in set(entry["components"]) - set(components):
        raise BundleError(f"{MANIFEST} names component {unknown!r} in mode {name!r} but does not declare it")
    parts = [components[part] for part in entry["components"]]
    constants = {checked(tensor, "tensor"): checked(key, "constant", KEY) for tensor, key in entry["constants"].items()}
    mode = mode_of(
        parts,
        prompt=text(entry["prompt"], "prompt"),
        constants=constants,
        noise=list(noise_from(entry.get("noise", []))),
        colour_fix=chosen(entry.get("colour_fix", COLOUR_FIXES[0]), "colour_fix", COLOUR_FIXES),
        negative_prompt=None if entry.get("negative_prompt") is None else text(entry["negative_prompt"], "prompt"),
    )
    if "inputs" in entry and set(declared := tuple(specs_from(entry["inputs"]))) != set(mode.inputs):
        raise BundleError(
            f"mode {name!r} declares the inputs {listed_specs(declared)}, and its components read "
            f"{listed_specs(mode.inputs)}; export the bundle again"
        )
    for spec in mode.inputs:
        if spec.name in ARGUMENTS:
            raise BundleError(f"mode {name!r} has an input called {spec.name!r}, which cannot be given; rename it")
    return mode


def noise_from(entries: Sequence[Mapping[str, Any]]) -> Iterator[Noise]:
    """The noise that a mode declares."""
    if not isinstance(entries, list):
        raise BundleError(f"the manifest has noise {shown(entries)}; expected a list: export the bundle again")
    for entry, spec in zip(entries, specs_from(entries), strict=True):
        yield Noise(spec, chosen(entry.get("draw", DRAWS[0]), "draw of noise", DRAWS))


def preset_from(entry: Mapping[str, Any], loop: bool) -> Preset:
    """One preset's declaration, of a bundle with a denoising loop or without."""
    figures = {checked(name, "figure"): real(value, "figure") for name, value in entry.get("figures", {}).items()}
    steps = whole(entry["steps"], "steps of a preset", 0) if loop else 0
    preset = Preset(steps, whole(entry["views"], "views of a preset", 0), figures)
    if preset.steps < loop or not 1 <= preset.transforms <= TRANSFORMS:
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
        "min_side": bundle.min_side,
        "max_side": bundle.max_side,
        "padding": bundle.padding,
        "rounding": bundle.rounding,
        "tile": bundle.tile,
        "qualities": {name: preset_entry(preset) for name, preset in bundle.presets.items()},
        "quality": bundle.preset,
        "steps": bundle.steps,
        "guidance": bundle.guidance,
        "schedule": dict(bundle.schedule),
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
        "negative_prompt": mode.negative_prompt,
        "colour_fix": mode.colour_fix,
        "components": list(mode.components),
        "constants": dict(mode.constants),
        "inputs": [spec_entry(spec) for spec in mode.inputs],
        "noise": [{**spec_entry(one.spec), "draw": one.draw} for one in mode.noise],
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
