"""A checkpoint to a bundle: export every component, write the manifest, compare with PyTorch, then put it in place."""

import gc
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from safetensors.torch import save

from uid import __version__
from uid.engines import TensorSpec
from uid.engines.onnxruntime import ONNXRUNTIME, create_cpu
from uid.export import validate
from uid.export.attention import fuse_attention
from uid.export.components import PROMPTS, TORCH_DTYPES, ExportComponent, declare, modes
from uid.export.fusion import ONNXRUNTIME_CUDA, fuse_for_cuda
from uid.export.meaning import expand, unknown_operators
from uid.export.onnx import WeightStore, store_weights, to_onnx
from uid.reference import checkpoint
from uid.reference.model import UIDDiff
from uid.runtime.bundle import MANIFEST, SCHEMA, STEPS, Component, checked, read_bundle, sha256
from uid.runtime.files import folder_written_whole
from uid.runtime.plan import BATCH

WEIGHTS = "weights.bin"
CONSTANTS = "constants.safetensors"
EXPANDED = "expanded.onnx"  # while it is checked: beside the weights
SCHEDULE_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
)

Report = Callable[[str], None]


def export_bundle(
    source: Path,
    destination: Path,
    *,
    precision: str = "fp32",
    shortcuts: bool = False,
    image_steps: int | None = None,
    allow_pickle: bool = False,
    report: Report = print,
) -> list[validate.Parity]:
    """Export the checkpoint in ``source`` as a bundle in ``destination``, a new or empty folder.

    ``precision`` is "fp32" or "fp16". ``shortcuts`` adds the steps that leave work out. ``image_steps`` is the number
    of steps of the whole-image comparison (None: the checkpoint's own). PyTorch's results are computed first and its
    modules freed before the bundle is run, so that the two are never in memory together. The bundle appears whole or
    not at all. Raises ``BundleError`` for a checkpoint's name that a bundle cannot have, ``CheckpointError``,
    ``OutputError`` or ``ParityError``.
    """
    index = checkpoint.read_index(source)
    checked(index["name"], "name")  # now, and not after minutes
    with folder_written_whole(destination) as folder:
        report(f"loading {source}")
        model = checkpoint.load(source, allow_pickle=allow_pickle)
        sizes = check_sizes(model.size_multiple)
        report("running PyTorch, to compare with")
        components = declare(model, "fp32", guided=guided(index), shortcuts=shortcuts)
        cases = {c.declaration.name: validate.component_case(c, sizes) for c in components}
        steps = image_steps or index["steps"]
        image = validate.image_case(model, PROMPTS, steps, index["guidance"])
        declarations = write(model, folder, precision, index, shortcuts, report)
        del model, components
        gc.collect()
        parities = compare(folder, declarations, cases, image, report)
    return parities


def guided(index: Mapping[str, Any]) -> bool:
    """Whether the step has both guidance branches: at scale 1 the unconditional one has no say and is left out."""
    return float(index["guidance"]) != 1.0


def check_sizes(multiple: int) -> dict[str, int]:
    """Sizes to compare at: none of them a size that is traced at."""
    return {BATCH: 2, "height": multiple, "width": 2 * multiple, "blur_height": 50, "blur_width": 3 * multiple + 1}


def write(
    model: UIDDiff, folder: Path, precision: str, index: dict[str, Any], shortcuts: bool, report: Report
) -> list[Component]:
    """Write every file of the bundle; returns the declarations in the order of export. Halves ``model`` for fp16."""
    schedule = {key: model.scheduler.config[key] for key in SCHEDULE_KEYS}
    prompts = {name: prompts_of(model, prompt, guided(index)) for name, prompt in PROMPTS.items()}
    if precision == "fp16":
        model.half()
    components = declare(model, precision, guided=guided(index), shortcuts=shortcuts)
    dtype = TORCH_DTYPES[str(components[0].declaration.outputs[0].dtype)]
    constants = {f"prompt.{name}": tensor.to(dtype).contiguous() for name, tensor in prompts.items()}
    (folder / CONSTANTS).write_bytes(save(constants))
    variants = write_graphs(components, folder, precision, model.size_multiple, report)
    declarations = [replace(c.declaration, variants=variants[c.declaration.name]) for c in components]
    manifest = {
        "schema": SCHEMA,
        "producer": f"uid-runtime {__version__}",
        "family": index["family"],
        "name": index["name"],
        "trained": index["trained"],
        "precision": precision,
        "size_multiple": model.size_multiple,
        "tile": index["tile"],
        "qualities": index.get("qualities", {}),
        "quality": index.get("quality"),
        "steps": index["steps"],
        "guidance": index["guidance"],
        "schedule": schedule,
        "modes": {
            name: {"prompt": mode.prompt, "components": mode.components, "constants": mode.constants}
            for name, mode in modes(components).items()
        },
        "components": {declaration.name: entry(declaration) for declaration in declarations},
        "constants": CONSTANTS,
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return declarations


@torch.inference_mode()
def prompts_of(model: UIDDiff, prompt: str, both: bool) -> torch.Tensor:
    """The embeddings that the step takes: the empty prompt's and ``prompt``'s, or its alone."""
    embeddings = model.prompts(prompt)
    return embeddings if both else embeddings[1:]


def write_graphs(
    components: list[ExportComponent], folder: Path, precision: str, size_multiple: int, report: Report
) -> dict[str, dict[str, str]]:
    """Write one ONNX graph per component, its variants, and the weights that all share; returns each one's variants."""
    variants: dict[str, dict[str, str]] = {}
    with WeightStore(folder / WEIGHTS) as store:
        for component in components:
            declaration = component.declaration
            report(f"exporting {declaration.name}")
            graph = to_onnx(component, size_multiple)
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


def entry(component: Component) -> dict[str, Any]:
    """A component's manifest entry."""

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        return {"name": spec.name, "dtype": str(spec.dtype), "shape": list(spec.shape)}

    return {
        "file": component.file,
        **({"variants": component.variants} if component.variants else {}),
        "stage": component.stage,
        "inputs": [tensor(spec) for spec in component.inputs],
        "outputs": [tensor(spec) for spec in component.outputs],
    }


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
    declarations: list[Component],
    cases: dict[str, validate.Case],
    image: validate.ImageCase,
    report: Report,
) -> list[validate.Parity]:
    """Compare every component, one at a time in memory, and then the whole image with PyTorch."""
    bundle, backend = read_bundle(folder), create_cpu(None)
    backend.keeps = False  # a bundle travels, what is kept for this processor should not
    parities = []
    graphs = ((component, *graph) for component in declarations for graph in checkable_graphs(folder, component))
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
