"""The parts of a manifest as declarations: every field is checked for its kind and its range, and nothing is cast."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from uid.bundles.declarations import COLOUR_FIXES, DRAWS, STAGES, TRANSFORMS, Component, Mode, Noise, Preset
from uid.bundles.names import DIMENSION, FILE, KEY, LONGEST_SHOWN, checked
from uid.bundles.tensors import TensorSpec
from uid.bundles.values import chosen, distinct, entries, field, listing, real, text, whole
from uid.bundles.wiring import listed_specs, mode_of
from uid.errors import BundleError

SHA256 = re.compile(r"[0-9a-f]{64}")
DTYPES = ("float32", "float16", "float64", "int64", "int32", "uint8", "int8", "bool")
MOST_DIMENSIONS = 8
LARGEST_DIMENSION = 1 << 24
LARGEST_TENSOR = 1 << 28  # elements, by the dimensions that are numbers
ARGUMENTS = ("self", "options", "on_step", "noise")  # of a pipeline's call, which takes a mode's images by name


def files_from(value: Any) -> Mapping[str, str]:
    """The sha256 of each file that a manifest lists."""
    for name, digest in (files := entries(value, "files")).items():
        if not FILE.fullmatch(name):
            raise BundleError(
                f"the manifest lists {repr(name)[:LONGEST_SHOWN]}, which is no plain name or leads out of the "
                "bundle's folder; do not use this bundle"
            )
        if not SHA256.fullmatch(text(digest, "sha256")):
            raise BundleError(
                f"the manifest has the sha256 {digest[:LONGEST_SHOWN]!r} of {name}; expected 64 hexadecimal digits: "
                "export the bundle again"
            )
    return files


def listed(name: Any, files: Mapping[str, str]) -> str:
    """``name`` if its hash is in the manifest: a file that was not verified is not opened."""
    if text(name, "file") not in files:
        raise BundleError(
            f"the manifest uses {name[:LONGEST_SHOWN]!r} but lists no sha256 for it; export the bundle again"
        )
    return str(name)


def graph_file(name: Any, files: Mapping[str, str]) -> str:
    """A listed file that is called as a graph is: libraries tell other formats by the ends of names."""
    if not listed(name, files).endswith(".onnx"):
        raise BundleError(
            f"the manifest has the graph {name[:LONGEST_SHOWN]!r}; expected a name that ends in .onnx: export the "
            "bundle again"
        )
    return str(name)


def components_from(value: Any, files: Mapping[str, str]) -> dict[str, Component]:
    """The declarations of all components."""
    return {
        name: component_from(checked(name, "component"), one, files)
        for name, one in entries(value, "components").items()
    }


def component_from(name: str, value: Any, files: Mapping[str, str]) -> Component:
    """One component's declaration."""
    where = f"component {name!r}"
    entry = entries(value, where)
    inputs, outputs = (tuple(specs_from(field(entry, side, where), side)) for side in ("inputs", "outputs"))
    distinct([spec.name for spec in (*inputs, *outputs)], f"in {where} the tensor")
    variants = {
        checked(backend, "variant"): graph_file(file, files)
        for backend, file in entries(entry.get("variants", {}), "variants").items()
    }
    stage = chosen(field(entry, "stage", where), "stage", STAGES)
    return Component(name, graph_file(field(entry, "file", where), files), stage, inputs, outputs, variants)


def specs_from(value: Any, what: str) -> Iterator[TensorSpec]:
    """Tensor declarations."""
    for item in listing(value, what):
        entry = entries(item, f"entry of {what}")
        name = checked(field(entry, "name", f"an entry of {what}"), "tensor")
        dtype = chosen(checked(field(entry, "dtype", f"tensor {name!r}"), "dtype"), "dtype", DTYPES)
        yield TensorSpec(name, np.dtype(dtype), shape_from(name, field(entry, "shape", f"tensor {name!r}")))


def shape_from(name: str, value: Any) -> tuple[int | str, ...]:
    """A tensor's dimensions."""
    shape = tuple(
        checked(size, "dimension", DIMENSION)
        if isinstance(size, str)
        else whole(size, "dimension", 1, LARGEST_DIMENSION)
        for size in listing(value, "shape")
    )
    if len(shape) > MOST_DIMENSIONS or math.prod(size for size in shape if isinstance(size, int)) > LARGEST_TENSOR:
        raise BundleError(
            f"the manifest has the shape {str(list(shape))[:LONGEST_SHOWN]} of {name!r}; expected at most "
            f"{MOST_DIMENSIONS} dimensions and {LARGEST_TENSOR} elements: export the bundle again"
        )
    return shape


def modes_from(value: Any, components: Mapping[str, Component]) -> dict[str, Mode]:
    """The declarations of all modes."""
    return {name: mode_from(checked(name, "mode"), one, components) for name, one in entries(value, "modes").items()}


def mode_from(name: str, value: Any, components: Mapping[str, Component]) -> Mode:
    """One task's declaration. Its inputs are those that its components read; older manifests do not list them."""
    where = f"mode {name!r}"
    entry = entries(value, where)
    parts = [checked(part, "component") for part in listing(field(entry, "components", where), "components")]
    for unknown in set(parts) - set(components):
        raise BundleError(f"the manifest names component {unknown!r} in {where} but does not declare it")
    distinct(parts, f"in {where} the component")
    prompt, negative = field(entry, "prompt", where), entry.get("negative_prompt")
    mode = mode_of(
        [components[part] for part in parts],
        prompt=text(prompt, "prompt"),
        constants={
            checked(tensor, "tensor"): checked(key, "constant", KEY)
            for tensor, key in entries(field(entry, "constants", where), "constants").items()
        },
        noise=list(noise_from(entry.get("noise", []))),
        colour_fix=chosen(entry.get("colour_fix", COLOUR_FIXES[0]), "colour_fix", COLOUR_FIXES),
        negative_prompt=None if negative is None else text(negative, "prompt"),
    )
    check_inputs(where, entry, mode)
    return mode


def check_inputs(where: str, entry: Mapping[str, Any], mode: Mode) -> None:
    """Raise ``BundleError`` where a mode declares other images than it reads, or one that cannot be given by name."""
    if "inputs" in entry and set(declared := tuple(specs_from(entry["inputs"], "inputs"))) != set(mode.inputs):
        raise BundleError(
            f"{where} declares the inputs {listed_specs(declared)}, and its components read "
            f"{listed_specs(mode.inputs)}; export the bundle again"
        )
    for spec in mode.inputs:
        if spec.name in ARGUMENTS:
            raise BundleError(f"{where} has an input called {spec.name!r}, which cannot be given; rename it")


def noise_from(value: Any) -> Iterator[Noise]:
    """The noise that a mode declares."""
    declared: Sequence[Any] = listing(value, "noise")
    for entry, spec in zip(declared, specs_from(declared, "noise"), strict=True):
        yield Noise(spec, chosen(entry.get("draw", DRAWS[0]), "draw of noise", DRAWS))


def presets_from(value: Any, most_steps: int | None) -> dict[str, Preset]:
    """The declarations of all presets; ``most_steps``: None where the bundle has no denoising loop."""
    return {
        name: preset_from(checked(name, "preset"), one, most_steps) for name, one in entries(value, "qualities").items()
    }


def preset_from(name: str, value: Any, most_steps: int | None) -> Preset:
    """One preset's declaration."""
    where = f"preset {name!r}"
    entry = entries(value, where)
    figures = {
        checked(key, "figure"): real(one, "figure") for key, one in entries(entry.get("figures", {}), "figures").items()
    }
    steps = field(entry, "steps", where)
    return Preset(
        whole(steps, f"steps of {where}", 1, most_steps) if most_steps else 0,
        whole(field(entry, "views", where), f"views of {where}", 1, TRANSFORMS),
        figures,
    )


def default_preset(value: Any, presets: Mapping[str, Preset]) -> str | None:
    """The name of the default preset, which must be one of those declared."""
    if value is not None and checked(value, "preset") not in presets:
        raise BundleError(f"the manifest's default preset {value!r} is not declared; export the bundle again")
    return None if value is None else str(value)
