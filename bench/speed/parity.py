"""Every component of a bundle against the PyTorch module it was exported from, on a backend of one's choice."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uid.bench.speed.latency import PSNR_CAP
from uid.bundles.declarations import SHALLOW, Bundle
from uid.bundles.tensors import Array
from uid.engines import Backend, create
from uid.export.bundle import case_of, check_sizes
from uid.export.validate import TOLERANCES, ParityCase, run_engine
from uid.families import registry


@dataclass(frozen=True)
class ComponentParity:
    """The output of a component that is furthest from PyTorch's."""

    backend: str
    component: str
    output: str
    psnr: float  # dB, where the peak is the largest value; at most PSNR_CAP
    max_difference: float  # in the output's own unit
    relative: float  # that over the largest value
    tolerance: float  # of ``relative``, as the export has it

    @property
    def sound(self) -> bool:
        """Whether the export would let it pass."""
        return self.relative <= self.tolerance


def component_parities(
    bundle: Bundle, checkpoint: Path, backends: Sequence[str], threads: int
) -> Iterator[ComponentParity]:
    """Every component on every backend. PyTorch's modules are gone before the first engine is loaded."""
    cases = reference_cases(bundle, checkpoint)
    for name in backends:
        backend = create(name, threads=threads)
        for component, case in cases.items():
            part = bundle.components[component]
            engine = backend.load_component(bundle, part, check_sizes(part.symbols, bundle.size_multiple))
            yield worst(name, component, run_engine(backend, engine, case), case, tolerance(bundle, backend))


def tolerance(bundle: Bundle, backend: Backend) -> float:
    """How far a component may be from PyTorch: by the coarser of the graph's precision and the backend's own."""
    return max(TOLERANCES[bundle.precision], TOLERANCES[backend.precision or bundle.precision])


def reference_cases(bundle: Bundle, checkpoint: Path) -> dict[str, ParityCase]:
    """Inputs and PyTorch's outputs, in float32, of the bundle's components."""
    shortcuts = any(component.stage == SHALLOW for component in bundle.components.values())
    parts = registry.load(checkpoint).components("fp32", shortcuts=shortcuts)
    return {
        part.declaration.name: case_of(part, bundle.size_multiple)
        for part in parts
        if part.declaration.name in bundle.components
    }


def worst(
    backend: str, component: str, outputs: dict[str, Array], case: ParityCase, tolerance: float
) -> ComponentParity:
    """The output that is furthest from what it should be, relative to its largest value."""
    parities = []
    for name, expected in case.outputs.items():
        difference = np.abs(outputs[name].astype(np.float64) - expected)
        if not np.isfinite(difference).all():
            return ComponentParity(backend, component, name, 0.0, float("inf"), float("inf"), tolerance)
        peak, most = float(np.abs(expected).max()), float(difference.max())
        error = float(np.square(difference / peak).mean())
        psnr = min(PSNR_CAP, -10.0 * float(np.log10(error))) if error else PSNR_CAP
        parities.append(ComponentParity(backend, component, name, psnr, most, most / peak, tolerance))
    return max(parities, key=lambda parity: parity.relative)
