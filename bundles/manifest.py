"""The manifest of a bundle: its schema, read and written here alone. ``schema`` checks its parts.

A bundle is a folder with a manifest, ONNX components and constants. Nothing in it can execute code. Everything in the
manifest is checked before any of it is used: schema, names, files that stay inside the folder, sha256 of every file.
Schema 2 added noise, samplers, padding, rounding, limits of size, colour fix and negative prompt; what schema 1 lacks
has the value that it always meant.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.numpy

from uid.bundles.declarations import (
    LARGEST_GUIDANCE,
    LARGEST_SIDE,
    PADDINGS,
    ROUNDINGS,
    STEPS,
    Bundle,
    Component,
    Mode,
    Preset,
    smallest_tile,
)
from uid.bundles.files import written_whole
from uid.bundles.hashes import sha256, verify_files
from uid.bundles.names import checked
from uid.bundles.reading import LARGEST_JSON, parsed_json, read_limited
from uid.bundles.schedules import LONGEST_SCHEDULE, check_schedule
from uid.bundles.schema import components_from, default_preset, files_from, modes_from, presets_from
from uid.bundles.sources import verified_bytes
from uid.bundles.tensors import Array, TensorSpec
from uid.bundles.values import chosen, field, real, text, truth, whole
from uid.bundles.wiring import check_coefficients, check_constants, check_divisors
from uid.errors import BundleError

SCHEMA = 2
MANIFEST = "manifest.json"
CONSTANTS = "constants.safetensors"
LARGEST_CONSTANTS = 1 << 28  # bytes of the file of constants, all of which is read


# -- reading ----------------------------------------------------------------------------------------------------------


def read_bundle(folder: Path, *, graphs: bool = True) -> Bundle:
    """Read and verify the bundle in ``folder``.

    ``graphs`` False: the folder has the manifest and the constants alone, since a server elsewhere has the graphs.
    Raises ``BundleError`` when the manifest is missing, malformed or of a newer schema, when a path in it leaves the
    folder, or when a file is missing or its sha256 differs.
    """
    data = manifest_bytes(folder)
    manifest = manifest_from(folder, data)
    files = files_from(field(manifest, "files", str(folder / MANIFEST)))
    if graphs:
        verify_files(folder, files)
    return bundle_from(folder, manifest, files, hashlib.sha256(data).hexdigest())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest's JSON object, of a schema this version reads."""
    return manifest_from(folder, manifest_bytes(folder))


def manifest_bytes(folder: Path) -> bytes:
    """What the manifest's file holds; it is read once, so that its hash is that of what is used."""
    try:
        return read_limited(folder / MANIFEST, LARGEST_JSON)
    except (OSError, ValueError) as error:  # the latter of a name that no system has
        reason = getattr(error, "strerror", None) or error
        raise BundleError(f"{folder} is not a bundle: cannot read {MANIFEST} ({reason})") from error


def manifest_from(folder: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in a manifest's bytes."""
    path = folder / MANIFEST
    try:
        manifest = parsed_json(data)
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}; export the bundle again") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or schema is None:
        raise BundleError(f"{path} states no schema version; expected {SCHEMA}; export the bundle again")
    if whole(schema, "schema", 1) > SCHEMA:
        raise BundleError(f"{path} has schema {schema}, this uid-runtime reads up to {SCHEMA}: upgrade uid-runtime")
    return manifest


def bundle_from(folder: Path, manifest: Mapping[str, Any], files: Mapping[str, str], digest: str) -> Bundle:
    """The bundle that a manifest describes; ``files`` are those that it lists, ``digest`` is its own sha256."""

    def required(key: str) -> Any:
        return field(manifest, key, str(folder / MANIFEST))

    components = components_from(required("components"), files)
    modes = modes_from(required("modes"), components)
    loop = any(components[part].stage in STEPS for mode in modes.values() for part in mode.components)
    multiple, max_side = (
        whole(required("size_multiple"), "size_multiple", 1, LARGEST_SIDE // 2),
        manifest.get("max_side"),
    )
    min_side = whole(manifest.get("min_side", 1), "min_side", 1, LARGEST_SIDE // 2)
    smallest = smallest_tile(multiple, min_side)
    check_divisors(components.values(), multiple)
    constants_file = text(required("constants"), "constants")
    constants = constants_from(folder, constants_file, files)
    for name, mode in modes.items():
        check_constants(name, mode, components, constants)
    schedule = check_schedule(required("schedule")) if loop else {}
    check_coefficients(components.values(), schedule)
    most_steps = schedule.get("num_train_timesteps", LONGEST_SCHEDULE)
    presets = presets_from(manifest.get("qualities", {}), most_steps if loop else None)
    return Bundle(
        folder=folder,
        digest=digest,
        name=checked(required("name"), "name"),
        family=checked(required("family"), "family"),
        trained=truth(required("trained"), "trained"),
        precision=checked(required("precision"), "precision"),
        size_multiple=multiple,
        tile=whole(required("tile"), "tile", smallest, LARGEST_SIDE),
        presets=presets,
        preset=default_preset(manifest.get("quality"), presets),
        steps=whole(required("steps"), "steps", 1, most_steps) if loop else 0,
        guidance=real(required("guidance"), "guidance", LARGEST_GUIDANCE),
        schedule=schedule,
        components=components,
        modes=modes,
        constants=constants,
        padding=chosen(manifest.get("padding", PADDINGS[0]), "padding", PADDINGS),
        rounding=chosen(manifest.get("rounding", ROUNDINGS[0]), "rounding", ROUNDINGS),
        min_side=min_side,
        max_side=None
        if max_side is None
        else whole(max_side, "max_side", smallest, LARGEST_SIDE) // multiple * multiple,
        files={name: digest for name, digest in files.items() if name != constants_file},
    )


def constants_from(folder: Path, name: str, files: Mapping[str, str]) -> dict[str, Array]:
    """The constant inputs, by key."""
    data = verified_bytes(folder, name, files, LARGEST_CONSTANTS)
    try:
        return safetensors.numpy.load(data)
    except Exception as error:  # the library's own, and those of numpy for dtypes that it lacks
        raise BundleError(f"cannot read {folder / name}: {error}; export the bundle again") from error


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
