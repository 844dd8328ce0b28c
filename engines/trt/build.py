"""ONNX to a TensorRT engine: one code path for TensorRT 10 and 11 and TensorRT-RTX.

The network is strongly typed, so precision is the graph's own; TF32 is off, so that float32 is float32.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uid.bundles.files import written_whole
from uid.engines.trt.library import Library, check_target, compute_capabilities, error_of
from uid.engines.trt.profiles import Shape, Target
from uid.errors import BackendError

Report = Callable[[str], None]
Shapes = Mapping[str, tuple[Shape, Shape, Shape]]  # input name -> its minimum, optimum and maximum shape

REFUSED = ("Error Code 3:", "Error Code 4:")  # an invalid argument or configuration: sizes that the graph cannot have
REPORT_EVERY = 5.0  # seconds between two lines on the progress of a build


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose about a build."""

    workspace_mib: int | None = None  # limit of the scratch memory of one layer; None: all of the GPU's
    stripped: bool = False  # whether the weights are left out, to come from the bundle's graph when the engine loads

    def recorded(self) -> dict[str, Any]:
        """All that decides what the builder makes of a graph, the fixed settings included, for the cache key."""
        return {**asdict(self), "strongly_typed": True, "tf32": False}


class NotBuiltError(BackendError):
    """The library failed at a graph that it could parse, and at sizes that the graph may have: at others it may not."""


@dataclass(frozen=True)
class Built:
    """A serialized engine."""

    plan: memoryview
    tensors: list[dict[str, Any]]  # name, mode, dtype, and shape as the graph has it, with symbols
    seconds: float


def build(
    library: Library,
    onnx: Path,
    profiles: Sequence[Shapes],
    target: Target,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    report: Report = print,
) -> Built:
    """Build the ONNX graph at ``onnx``, whose external data lies beside it, with these optimisation profiles.

    ``timing_cache`` is read and written by TensorRT, which measures kernels; TensorRT-RTX does not. Ctrl-C ends the
    build at its next step. Raises, with the library's own words, ``OutOfMemoryError`` when memory does not hold the
    build, ``BackendError`` when it cannot parse the graph or the graph cannot have these sizes, ``NotBuiltError`` when
    it fails all the same.
    """
    check_target(library, target)
    check_options(library, options)
    library.logger.errors.clear()
    started = time.monotonic()
    monitor = make_monitor(library.module, report)
    timings = timing_cache if library.name == "tensorrt" else None
    # From the start: a KeyboardInterrupt in what the library calls here, such as its logger, would be lost in it.
    with stopped_by_interrupt(monitor):
        builder = make_builder(library)
        network, parser = parse(library, builder, onnx)
        config = made(library, "settings for a build", builder.create_builder_config)
        configure(library, config, target, options)
        for shapes in profiles:
            config.add_optimization_profile(make_profile(library, builder, shapes))
        read_timings(config, timings)
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    del parser
    if monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        words = complaints(library)
        kind = BackendError if any(code in words for code in REFUSED) else NotBuiltError
        raise error_of(f"{library} cannot build {onnx.name} for {target}: {words}", kind)
    write_timings(config, timings, report)
    return Built(memoryview(plan).cast("B"), describe(library.module, network), time.monotonic() - started)


def check_options(library: Library, options: BuildOptions) -> None:
    """Raise ``BackendError`` when the library cannot build so."""
    if options.stripped and library.name != "tensorrt":
        raise BackendError(
            f"{library} builds ahead of time and cannot leave the weights out; keep them, or use tensorrt",
            option="strip",
        )


def made(library: Library, what: str, make: Callable[[], Any], hint: str = "") -> Any:
    """What ``make`` gives; raises ``BackendError`` with the library's words and ``hint`` where that is nothing."""
    library.logger.errors.clear()
    result = None
    with contextlib.suppress(TypeError):  # of a constructor whose library function returns nothing
        result = make()
    if result is None:
        raise BackendError(f"{library} cannot make {what}: {complaints(library)}{hint}")
    return result


def make_builder(library: Library) -> Any:
    """A builder; raises ``BackendError`` where the library finds no GPU and needs one."""
    needs = ". It needs an NVIDIA GPU and its driver (see nvidia-smi)"
    return made(library, "a builder", lambda: library.module.Builder(library.logger), needs)


def parse(library: Library, builder: Any, onnx: Path) -> tuple[Any, Any]:
    """The graph as a strongly typed network, and its parser, which owns the weights and must outlive the build."""
    flags = 1 << int(library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = made(library, "a network", lambda: builder.create_network(flags))
    parser = made(library, "a parser", lambda: library.module.OnnxParser(network, library.logger))
    # From the file, not from bytes: the graph's external data are found beside it.
    if not parser.parse_from_file(str(onnx)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise BackendError(f"{library} cannot parse {onnx}: {errors or complaints(library)}")
    return network, parser


def configure(library: Library, config: Any, target: Target, options: BuildOptions) -> None:
    """Set flags, memory limit and compute capabilities."""
    flags = library.module.BuilderFlag
    config.clear_flag(flags.TF32)
    if options.stripped:
        config.set_flag(flags.STRIP_PLAN)
        # The same weights come back, so nothing that the builder derives from them need be given up, as REFIT would.
        config.set_flag(flags.REFIT_IDENTICAL)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(library.module.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    known = compute_capabilities(library)
    wanted = (target.compute_capability,) if target.ahead_of_time is None else target.ahead_of_time
    named = [known[name] for name in wanted if name in known]
    if named:
        config.num_compute_capabilities = len(named)
        for index, value in enumerate(named):
            config.set_compute_capability(value, index)


def make_profile(library: Library, builder: Any, shapes: Shapes) -> Any:
    """An optimisation profile."""
    profile = made(library, "an optimisation profile", builder.create_optimization_profile)
    for name, (minimum, optimum, maximum) in shapes.items():
        profile.set_shape(name, minimum, optimum, maximum)
    return profile


def describe(module: Any, network: Any) -> list[dict[str, Any]]:
    """The network's inputs and outputs, as JSON can hold them."""

    def entry(mode: str, tensor: Any) -> dict[str, Any]:
        dtype = np.dtype(module.nptype(tensor.dtype)).name
        shape = [(tensor.get_dimension_name(i) or "?") if size == -1 else size for i, size in enumerate(tensor.shape)]
        return {"name": tensor.name, "mode": mode, "dtype": dtype, "shape": shape}

    inputs = [entry("input", network.get_input(i)) for i in range(network.num_inputs)]
    return inputs + [entry("output", network.get_output(i)) for i in range(network.num_outputs)]


def complaints(library: Library) -> str:
    """What the library reported since its errors were last cleared."""
    return "; ".join(dict.fromkeys(library.logger.errors)) or "it gave no reason"


def read_timings(config: Any, path: Path | None) -> None:
    """Start from the kernel timings of earlier builds, if they are of this GPU and version."""
    if path is None:
        return
    kept = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if kept is None or not config.set_timing_cache(kept, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def write_timings(config: Any, path: Path | None, report: Report) -> None:
    """Keep the kernel timings for later builds."""
    cache = None if path is None else config.get_timing_cache()
    if path is None or cache is None:
        return
    data = cache.serialize()
    if data is None:
        report("the kernel timings cannot be kept: the next build measures them again")
        return
    with written_whole(path) as temporary:
        temporary.write_bytes(memoryview(data))


def make_monitor(module: Any, report: Report) -> Any:
    """A progress monitor that reports a line every few seconds, and stops the build when told to.

    What ``report`` raises ends the build too and is kept in ``failure``: it cannot pass through the library.
    """

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]  # as ErrorLog
        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self.steps: dict[str, int] = {}
            self.next_report = time.monotonic() + REPORT_EVERY

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if self.failure is None and now >= self.next_report:
                self.next_report = now + REPORT_EVERY
                try:
                    report(f"{phase_name}: {step + 1} of {self.steps.get(phase_name, '?')}")
                except Exception as error:
                    self.failure = error
            return self.failure is None

    return Monitor()


@contextlib.contextmanager
def stopped_by_interrupt(monitor: Any) -> Iterator[None]:
    """Within the block, Ctrl-C tells the monitor to stop the build; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        monitor.failure = KeyboardInterrupt()
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
