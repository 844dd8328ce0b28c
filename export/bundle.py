"""A checkpoint to a bundle: export every component, write the manifest, compare with PyTorch, then put it in place."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from safetensors.torch import save

from uid import __version__
from uid.bundles.declarations import STEPS, Bundle, Component, Mode, Preset
from uid.bundles.files import folder_written_whole
from uid.bundles.manifest import CONSTANTS, read_bundle, write_manifest
from uid.bundles.tensors import BATCH, HEIGHT, WIDTH
from uid.engines.ort.cpu import ONNXRUNTIME, create_cpu
from uid.export import validate
from uid.export.attention import fuse_attention
from uid.export.dummies import TORCH_DTYPES
from uid.export.expand import expand, unknown_operators
from uid.export.fusion import ONNXRUNTIME_CUDA, fuse_for_cuda
from uid.export.graph import WeightStore, store_weights, to_onnx
from uid.families import registry
from uid.families.contract import ExportComponent, Model
from uid.families.index import check_values, steps_rule
from uid.runtime.pixels import padded

WEIGHTS = "weights.bin"
SMALL = 8  # pixels; some networks extend an image by a few pixels of its own, and so take no smaller one
IMAGE_STEPS = "the comparison of whole images"  # in errors
EXPANDED = "expanded.onnx"  # beside the weights while it is checked

Report = Callable[[str], None]


def export_bundle(
    source: Path,
    destination: Path,
    *,
    family: str | None = None,
    precision: str = "fp32",
    shortcuts: bool = False,
    image_steps: int | None = None,
    allow_pickle: bool = False,
    report: Report = print,
) -> list[validate.Parity]:
    """Export the checkpoint ``source``, of any family, as a bundle in ``destination``, a new or empty folder.

    A checkpoint that is a file is of ``family``: "deblurdiff" (None means that) or "restorer". All others are folders.
    ``precision`` is "fp32" or "fp16". ``shortcuts`` adds the steps of a feature cache and without guidance.
    ``image_steps`` is the number of steps of the whole-image comparison (None: the checkpoint's own). PyTorch's results
    are computed first and its modules freed before the bundle is run, so that the two are never in memory together. The
    bundle appears whole or not at all. Raises ``CheckpointError``, ``OutputError`` or ``ParityError``.
    """
    index = registry.read_index(source, family)
    check_steps(index, image_steps)  # now, and not after minutes
    with folder_written_whole(destination) as folder:
        report(f"loading {source}")
        model = registry.load(source, family=family, allow_pickle=allow_pickle)
        if image_steps and model.schedule:
            check_values({"steps": image_steps}, {"steps": steps_rule(model.schedule)}, IMAGE_STEPS)
        report("running PyTorch, to compare with")
        components = model.components("fp32", shortcuts=shortcuts)
        least = smallest_side(model)
        cases = {c.declaration.name: case_of(c, least) for c in components}
        image = validate.image_case(model, components, image_steps or index.get("steps", 0), index.get("guidance", 1.0))
        write(model, folder, precision, shortcuts, report)
        del model, components
        gc.collect()
        return compare(folder, cases, image, report)


def check_steps(index: Mapping[str, Any], image_steps: int | None) -> None:
    """Raise ``CheckpointError`` for a number of steps that the family is known not to take."""
    if image_steps is not None:
        registry.create(index["family"]).check_index({**index, "steps": image_steps}, IMAGE_STEPS)


def smallest_side(model: Model) -> int:
    """A side in pixels that is small, and that the model takes."""
    side, _ = padded((SMALL, SMALL), model.size_multiple, model.min_side)
    return side


def case_of(component: ExportComponent, side: int) -> validate.ParityCase:
    """A component's inputs to compare at, and PyTorch's outputs."""
    return validate.component_case(component, check_sizes(component.declaration.symbols, side))


def check_sizes(symbols: Iterable[str], side: int) -> dict[str, int]:
    """Sizes to compare at: none of them a size that is traced at."""
    own = {BATCH: 2, HEIGHT: side, WIDTH: 2 * side}
    return own | {symbol: 50 + 13 * i for i, symbol in enumerate(sorted(set(symbols) - set(own)))}


def write(model: Model, folder: Path, precision: str, shortcuts: bool, report: Report) -> None:
    """Write every file of the bundle. Halves ``model`` for fp16."""
    index, constants = model.index, model.constants()
    if precision == "fp16":
        model.half()
    components = model.components(precision, shortcuts=shortcuts)
    modes = model.modes(components)
    write_constants(folder / CONSTANTS, constants, modes, components)
    variants = write_graphs(components, folder, precision, model, report)
    qualities = index.get("qualities", {})
    declarations = [replace(c.declaration, variants=variants[c.declaration.name]) for c in components]
    bundle = Bundle(
        folder=folder,
        digest="",  # of a manifest that is still to be written
        name=index["name"],
        family=index["family"],
        trained=index["trained"],
        precision=precision,
        size_multiple=model.size_multiple,
        tile=index["tile"],
        presets={name: Preset(entry.get("steps", 0), entry["views"]) for name, entry in qualities.items()},
        preset=index.get("quality"),
        steps=index.get("steps", 0),
        guidance=index.get("guidance", 1.0),
        schedule=model.schedule,
        components={declaration.name: declaration for declaration in declarations},
        modes=modes,
        constants={},
        padding=model.padding,
        rounding=model.rounding,
        min_side=model.min_side,
        max_side=model.max_side,
    )
    write_manifest(bundle, f"uid-runtime {__version__}")


def write_constants(
    path: Path, constants: dict[str, torch.Tensor], modes: dict[str, Mode], components: list[ExportComponent]
) -> None:
    """Write the constants, each in the dtype of the input that reads it."""
    specs = {spec.name: spec for component in components for spec in component.declaration.inputs}
    dtypes = {
        key: TORCH_DTYPES[str(specs[tensor].dtype)] for mode in modes.values() for tensor, key in mode.constants.items()
    }
    path.write_bytes(save({key: value.to(dtypes[key]).contiguous() for key, value in constants.items()}))


def write_graphs(
    components: list[ExportComponent], folder: Path, precision: str, model: Model, report: Report
) -> dict[str, dict[str, str]]:
    """Write one ONNX graph per component, its variants, and the weights that all share; returns each one's variants."""
    variants: dict[str, dict[str, str]] = {}
    with WeightStore(folder / WEIGHTS) as store:
        for component in components:
            declaration = component.declaration
            report(f"exporting {declaration.name}")
            graph = to_onnx(component, model.size_multiple, smallest_side(model))
            store_weights(graph, store)
            ir.save(graph, folder / declaration.file)
            variants[declaration.name] = write_variants(declaration, graph, folder, precision, report)
            del graph
            gc.collect()
    return variants


def write_variants(
    declaration: Component, graph: ir.Model, folder: Path, precision: str, report: Report
) -> dict[str, str]:
    """Write what some backends take in place of a component's portable graph, which is used up; returns their files.

    Steps get one for ONNX Runtime, where there is attention in them: the others gain nothing by it. In float16, what
    has convolutions and normalisations gets one for ONNX Runtime on CUDA, if all of it can be checked here.
    """
    variants = {}
    if declaration.stage in STEPS and fuse_attention(graph):
        variants[ONNXRUNTIME] = f"{declaration.name}.{ONNXRUNTIME}.onnx"
        ir.save(graph, folder / variants[ONNXRUNTIME])
    if precision == "fp16" and (fused := fuse_for_cuda(graph)) is not None:
        if unknown := unknown_operators(fused):
            report(f"{declaration.name}: no variant for {ONNXRUNTIME_CUDA}, since nothing here checks {unknown}")
        else:
            variants[ONNXRUNTIME_CUDA] = f"{declaration.name}.{ONNXRUNTIME_CUDA}.onnx"
            ir.save(fused, folder / variants[ONNXRUNTIME_CUDA])
    return variants


def checkable_graphs(folder: Path, component: Component) -> Iterator[tuple[str, Path]]:
    """A component's graphs, the portable one and its variants: each one's name, and what a CPU runs for it."""
    yield component.file, folder / component.file
    for backend, file in component.variants.items():
        if backend == ONNXRUNTIME_CUDA:
            graph = ir.load(folder / file)
            expand(graph)
            ir.save(graph, folder / EXPANDED)
            yield f"{file}, in standard operators", folder / EXPANDED
            (folder / EXPANDED).unlink()
        else:
            yield file, folder / file


def compare(
    folder: Path,
    cases: dict[str, validate.ParityCase],
    image: validate.ImageCase,
    report: Report,
) -> list[validate.Parity]:
    """Compare every component, one at a time in memory, and then the whole image with PyTorch."""
    bundle, backend = read_bundle(folder), create_cpu(None)
    backend.caches = False  # a bundle travels; graphs for this processor should not
    parities = []
    graphs = (
        (component, *graph) for component in bundle.components.values() for graph in checkable_graphs(folder, component)
    )
    for declaration, name, path in graphs:
        engine = backend.load(path)
        tolerance = validate.TOLERANCES[bundle.precision]
        parity = validate.check_component(backend, engine, declaration, cases[declaration.name], tolerance)
        report(f"{name}: differs from PyTorch by {parity.error:.1e} of its largest value")
        parities.append(parity)
        del engine
        gc.collect()
    for parity in validate.check_image(bundle, backend, image):
        report(f"{parity.name}: differs from PyTorch by {parity.error * 255:.3f}/255")
        parities.append(parity)
    return parities
