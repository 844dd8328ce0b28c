"""A bundle as a model repository of Triton: a model for each component, and one that runs whole images.

    REPOSITORY/<name>/1/model.py, manifest.json, constants.safetensors     uid.serve.triton
    REPOSITORY/<name>_<component>/1/model.onnx, weights.bin                ONNX Runtime backend
    REPOSITORY/<name>_<component>/1/model.plan                             TensorRT backend

Each has its ``config.pbtxt``. No model refers to files of another, so that a repository can be copied anywhere. Written
for Triton 24.03 and later; none has run here.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from uid.bundles.declarations import Bundle, Component
from uid.bundles.files import folder_written_whole
from uid.bundles.manifest import MANIFEST, read_manifest
from uid.bundles.sources import private_copy
from uid.bundles.tensors import IMAGE, OUTPUT, TensorSpec, resolve
from uid.bundles.wiring import listed_specs
from uid.engines.ort.cpu import ONNXRUNTIME
from uid.engines.triton import model_name
from uid.errors import ModelError
from uid.export.pbtxt import Fields, Word, entries, text_of

CPU, CUDA, TENSORRT = BACKENDS = (ONNXRUNTIME, "onnxruntime-cuda", "tensorrt")
WEIGHTS, WEIGHT_BYTES = "weights.bin", 1024  # smaller weights stay in the graph
TYPES = {"float16": "TYPE_FP16", "float32": "TYPE_FP32", "int64": "TYPE_INT64", "uint8": "TYPE_UINT8"}
PIXELS = np.dtype(np.uint8)
MODEL = '''"""Runs whole images. The components are models of their own."""

from pathlib import Path

from uid.serve import triton


class TritonPythonModel(triton.TritonPythonModel):
    """The model of this folder."""

    folder = Path(__file__).parent
'''

Report = Callable[[str], None]
Plan = Callable[[Component, Path], None]
"""Writes the TensorRT engine of a component to a file."""


@dataclass(frozen=True)
class Serving:
    """How the models are to be run."""

    name: str  # of the model that runs whole images; the others' names begin with it
    backend: str = CPU  # one of ``BACKENDS``
    instances: int = 1  # whole images that are worked on at once
    queue: int = 32  # most requests that wait
    timeout: float = 300.0  # seconds that a request waits at most
    batch: int = 1  # most tiles and transforms that run together
    profiles: int = 0  # of a TensorRT engine

    @property
    def device(self) -> str:
        """Triton's word for where the components run."""
        return "KIND_CPU" if self.backend == CPU else "KIND_GPU"


def write_repository(bundle: Bundle, repository: Path, serving: Serving, plan: Plan | None, report: Report) -> None:
    """Write the models of a bundle to ``repository``, a new or empty folder, which appears whole or not at all.

    ``plan`` writes engines where the backend is TensorRT. Raises ``ModelError`` where a graph differs from its
    declaration, ``BundleError`` for files that are not the manifest's, ``OutputError``.
    """
    with folder_written_whole(repository) as folder:
        for component in bundle.components.values():
            name = model_name(serving.name, component.name)
            report(f"writing {name}")
            version = version_folder(folder, name)
            if plan is None:
                write_graph(bundle, component, serving.backend, version)
            else:
                plan(component, version / "model.plan")
            write_config(folder, component_config(name, component, bundle.tile, serving))
        report(f"writing {serving.name}")
        version = version_folder(folder, serving.name)
        (version / "model.py").write_text(MODEL, encoding="utf-8")
        for file in (MANIFEST, read_manifest(bundle.folder)["constants"]):
            (version / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.folder / file, version / file)
        write_config(folder, image_config(bundle, serving))


def version_folder(repository: Path, name: str) -> Path:
    """The new folder of a model's first and only version."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    return folder


def write_config(repository: Path, config: Fields) -> None:
    """Write a model's configuration where Triton looks for it."""
    (repository / config["name"] / "config.pbtxt").write_text(text_of(config), encoding="utf-8")


# -- graphs -----------------------------------------------------------------------------------------------------------


def write_graph(bundle: Bundle, component: Component, backend: str, folder: Path) -> None:
    """Write a component's graph for ONNX Runtime, and beside it the weights that it reads, and no others.

    ONNX Runtime follows no link out of the graph's folder, and hard links do not survive most ways to copy a folder.
    """
    files = (component.variants.get(key) for key in dict.fromkeys((backend, ONNXRUNTIME)))
    with private_copy(bundle, next(filter(None, files), component.file)) as path:
        model = ir.load(path)
        check_graph(component, model)
        ir.save(model, folder / "model.onnx", external_data=WEIGHTS, size_threshold_bytes=WEIGHT_BYTES)


def check_graph(component: Component, model: ir.Model) -> None:
    """Raise ``ModelError`` where a graph has other tensors than its component declares, or other fixed sizes."""
    for declared, values in ((component.inputs, model.graph.inputs), (component.outputs, model.graph.outputs)):
        found = {str(value.name): spec_of(value) for value in values}
        expected = {spec.name: spec for spec in declared}
        if found.keys() != expected.keys() or not all(agree(expected[name], found[name]) for name in expected):
            raise ModelError(
                f"component {component.name!r} declares {listed_specs(declared)}, and its graph has "
                f"{listed_specs(found.values())}; export the bundle again"
            )


def spec_of(value: ir.Value) -> TensorSpec:
    """A graph's own description of a tensor; a size that it leaves open is "?"."""
    if value.dtype is None or value.shape is None:
        raise ModelError(f"the graph leaves the type of {value.name!r} open; export the bundle again")
    sizes = tuple(size if isinstance(size, int) else "?" for size in value.shape)
    return TensorSpec(str(value.name), np.dtype(value.dtype.numpy()), sizes)


def agree(declared: TensorSpec, found: TensorSpec) -> bool:
    """Whether dtypes and ranks are equal, and the graph fixes no size that the declaration leaves open."""
    same = declared.dtype == found.dtype and len(declared.shape) == len(found.shape)
    return same and all(size in ("?", want) for want, size in zip(declared.shape, found.shape, strict=True))


# -- configurations ---------------------------------------------------------------------------------------------------


def component_config(name: str, component: Component, tile: int, serving: Serving) -> Fields:
    """The configuration of a component's model.

    Its axes are all in the shapes, since coefficients and constants have no batch (``max_batch_size`` 0). A warm-up
    runs it at the size of a tile. No policy limits its queue: what waits there is of images that were accepted.
    """
    group: Fields = {"count": 1, "kind": Word(serving.device)}
    if serving.backend == TENSORRT:
        group["profile"] = [str(number) for number in range(serving.profiles)]
    sizes = dict.fromkeys(component.symbols, tile) | {"batch": 1}
    return {
        "name": name,
        "backend": "tensorrt" if serving.backend == TENSORRT else "onnxruntime",
        "max_batch_size": 0,
        "input": [tensor(spec) for spec in component.inputs],
        "output": [tensor(spec) for spec in component.outputs],
        "instance_group": [group],
        "model_warmup": [{"name": "tile", "batch_size": 1, "inputs": entries(warm_up(component.inputs, sizes))}],
        **session_options(serving.backend),
    }


def session_options(backend: str) -> Fields:
    """What ONNX Runtime is told as the project's own backends tell it, as far as Triton passes it on."""
    if backend == TENSORRT:
        return {}
    # A memory plan doubles scratch memory in the second run (docs/engine-notes.md).
    options: Fields = {"parameters": entries({"enable_mem_pattern": {"string_value": "false"}})}
    if backend == CUDA:
        # On by default; without it, float32 is float32.
        cuda = {"name": "cuda", "parameters": entries({"use_tf32": "0"})}
        options["optimization"] = {"execution_accelerators": {"gpu_execution_accelerator": [cuda]}}
    return options


def image_config(bundle: Bundle, serving: Serving) -> Fields:
    """The configuration of the model that runs whole images. Requests that find its queue full are refused.

    It has no warm-up, since its components need not be there yet when it is loaded.
    """
    extra = {spec.name for mode in bundle.modes.values() for spec in mode.extra_inputs}
    pixels = {name: TensorSpec(name, PIXELS, ("height", "width", 3)) for name in (IMAGE, *sorted(extra), OUTPUT)}
    policy = {
        "timeout_action": Word("REJECT"),
        "default_timeout_microseconds": round(serving.timeout * 1e6),
        "allow_timeout_override": True,
        "max_queue_size": serving.queue,
    }
    return {
        "name": serving.name,
        "backend": "python",
        "max_batch_size": 0,
        "input": [tensor(pixels[IMAGE]), *({**tensor(pixels[name]), "optional": True} for name in sorted(extra))],
        "output": [tensor(pixels[OUTPUT])],
        "instance_group": [{"count": serving.instances, "kind": Word("KIND_CPU")}],
        "dynamic_batching": {"default_queue_policy": policy},
        "parameters": entries({"batch": {"string_value": str(serving.batch)}}),
    }


def tensor(spec: TensorSpec) -> Fields:
    """An input or output of a configuration; sizes that vary are -1."""
    dims = [size if isinstance(size, int) else -1 for size in spec.shape]
    return {"name": spec.name, "data_type": Word(TYPES[str(spec.dtype)]), "dims": dims}


def warm_up(specs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Inputs of zeros, by name."""
    return {
        spec.name: {
            "data_type": Word(TYPES[str(spec.dtype)]),
            "dims": list(resolve(spec.shape, sizes)),
            "zero_data": True,
        }
        for spec in specs
    }
