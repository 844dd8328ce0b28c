"""TensorRT and TensorRT-RTX as backends: an engine is taken from the cache, or built for the size that is asked for.

Not yet run on hardware.
"""

import mmap
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from uid.bundles.cache import default_folder
from uid.bundles.declarations import Bundle, Component
from uid.bundles.sources import check_graph, private_copy
from uid.bundles.tensors import BATCH, HEIGHT, WIDTH
from uid.engines.contract import OneByOne, Replay, Report, Work
from uid.engines.cuda_device import CudaBackend, Device
from uid.engines.trt.build import BuildOptions, build, describe, made, make_builder, parse
from uid.engines.trt.cache import check, engine_files, engine_for, key_for, runtime_cache_path
from uid.engines.trt.engine import NotCapturableError, Scratch, Shared, TensorrtEngine, library_error
from uid.engines.trt.library import Library, error_of, open_library, remedy, supports, target_of
from uid.engines.trt.profiles import Profile, Range, Shape, Target, nearest, ranges
from uid.engines.trt.sidecar import MALFORMED, read_sidecar
from uid.errors import BackendError, OutputError

LONGEST_SIDE = 16384  # of an image, in a graph that belongs to no bundle

Sizes = Mapping[str, int]  # the manifest's symbols, such as "height", and their values


class TensorrtBackend(CudaBackend):
    """TensorRT or TensorRT-RTX on one GPU."""

    def __init__(self, library: Library, device: Device) -> None:
        super().__init__(library.name, device)
        self.library, self.target = library, target_of(device)
        self.doubt = doubt(library, device)
        self.runtime = make_runtime(library)
        self.shared = Shared(library, self.stream, Scratch())
        self.engines: weakref.WeakSet[TensorrtEngine] = weakref.WeakSet()

    def load(self, path: Path) -> TensorrtEngine:
        """Build the graph at ``path``, and load it: for a small graph, whose engine is not kept.

        A symbolic dimension may be 1 to ``LONGEST_SIDE``.
        """
        check_graph(path)
        inputs = graph_inputs(self.library, path)
        shapes = {
            entry["name"]: tuple(with_symbols(entry["shape"], size) for size in (1, 512, LONGEST_SIDE))
            for entry in inputs
            if any(isinstance(size, str) for size in entry["shape"])
        }
        profiles: Any = [shapes] if shapes else []
        built = build(self.library, path, profiles, self.target, BuildOptions(), report=self.report)
        return self.deserialised(path.name, built.plan)

    def load_component(self, bundle: Bundle, component: Component, sizes: Sizes) -> TensorrtEngine:
        """The engine in the cache that fits ``sizes`` best, or one that is built for them now."""
        path, profiles, options = engine_path(bundle, component, self.library, self.target, sizes, self.report)
        covers, kernels = partial(fits, profiles, component), runtime_cache_path(path, self.target)
        source = private_copy(bundle, component.file) if options.stripped else nullcontext()
        # Mapped, not read: the check has just read it, so that it comes from the system's memory.
        with source as weights, path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            return self.deserialised(f"component {component.name!r}", plan, weights, covers=covers, kernels=kernels)

    def batch(self, bundle: Bundle, components: Sequence[Component], sizes: Sizes, most: int) -> int:
        """The most that the engines in the cache cover, so that none is built for a batch alone; or ``most``."""
        folder = default_folder(bundle, self.library.name)
        found = [(part, [one.profiles for one in candidates(folder, part.name)]) for part in components]

        def covered(batch: int) -> bool:
            wanted = {**sizes, BATCH: batch}
            return all(any(fits(profiles, part, wanted) for profiles in engines) for part, engines in found)

        return next(filter(covered, range(most, 0, -1)), most)

    def deserialised(self, name: str, plan: Any, weights: Path | None = None, **known: Any) -> TensorrtEngine:
        """Put an engine on the GPU; ``known`` are ``TensorrtEngine``'s other arguments.

        ``weights`` is the graph that a stripped engine was built from.
        """
        self.library.logger.errors.clear()
        handle = self.runtime.deserialize_cuda_engine(plan)
        if handle is None:
            hint = remedy(self.library, self.target.compute_capability)
            raise library_error(self.library, f"cannot load the engine of {name} on {self.target}", hint)
        if weights is not None:
            self.refit(name, handle, weights)
        engine = TensorrtEngine(name, handle, self.shared, **known)
        self.engines.add(engine)
        return engine

    def refit(self, name: str, handle: Any, graph: Path) -> None:
        """Put the weights of ``graph`` into an engine that was built from it without them."""
        library, module = self.library, self.library.module
        refitter = made(library, f"a refitter of {name}", lambda: module.Refitter(handle, library.logger))
        parser = made(library, f"a parser to refit {name}", lambda: module.OnnxParserRefitter(refitter, library.logger))
        if not (parser.refit_from_file(str(graph)) and refitter.refit_cuda_engine()):
            raise library_error(library, f"cannot put the weights of {graph} into the engine of {name}")

    def capture(self, work: Work) -> Replay:
        """Capture an image's work into one CUDA graph, or run it one by one where the library says that it cannot."""
        try:
            replay = super().capture(work)
        except NotCapturableError as error:
            self.report(f"{error}: it runs launch by launch, which is slower")
            replay = OneByOne(work, self.stream.synchronize)
        try:
            for engine in self.engines:
                engine.keep_kernels()
        except (BackendError, OutputError) as error:
            self.report(f"kernels will be compiled again in the next process: {error}")
        return replay


def doubt(library: Library, device: Device) -> str:
    """Why what the library computes on a GPU is to be tried before it is used, or ""."""
    if supports(library, device.compute_capability):
        return ""
    where = f"{library} on compute capability {device.compute_capability}"
    return (
        f"NVIDIA does not support {where}: it loads there and copies a number right; "
        "compare its images with another backend's (uid-bench parity)"
    )


def make_runtime(library: Library) -> Any:
    """What loads engines; raises ``BackendError`` with the library's words where there is none."""
    return made(library, "a runtime", lambda: library.module.Runtime(library.logger))


def create_tensorrt(threads: int | None) -> TensorrtBackend:
    """TensorRT on the first GPU; it takes no CPU threads."""
    return create("tensorrt")


def create_tensorrt_rtx(threads: int | None) -> TensorrtBackend:
    """TensorRT-RTX on the first GPU; it takes no CPU threads."""
    return create("tensorrt-rtx")


def create(name: str) -> TensorrtBackend:
    """The backend; raises ``BackendError`` where there is no GPU, before the library is loaded."""
    device = Device.find()
    return TensorrtBackend(open_library(name), device)


@dataclass(frozen=True)
class Candidate:
    """An engine in the cache, as its sidecar describes it; nothing of it is checked yet."""

    path: Path
    profiles: tuple[Profile, ...]
    options: BuildOptions


def engine_path(
    bundle: Bundle, component: Component, library: Library, target: Target, sizes: Sizes, report: Report
) -> tuple[Path, tuple[Profile, ...], BuildOptions]:
    """The engine for a component at ``sizes``, its profiles and options: the nearest sound one kept, or built now."""
    found = candidates(default_folder(bundle, library.name), component.name)
    distances = [(distance_to(one.profiles, component, sizes), one) for one in found]
    fitting = [(far, len(one.profiles), one) for far, one in distances if far is not None]
    refused = []
    for _, _, one in sorted(fitting, key=lambda each: each[:2]):
        sound, reason = check(one.path, key_for(bundle, component, library, target, one.profiles, one.options))
        if sound:
            return one.path, one.profiles, one.options
        refused.append(f"{component.name}: {one.path.name} is not used, since it {reason}")
    for line in refused:
        report(line)
    profiles, options = (profile_for(sizes),), BuildOptions()
    try:
        path = engine_for(bundle, component, library, target, profiles, options, report=report)
    except BackendError as error:  # smaller tiles may do where memory ran out
        raise error_of(str(error)) from error
    return path, profiles, options


def candidates(folder: Path, component: str) -> Iterator[Candidate]:
    """The engines of a component that have a readable sidecar."""
    for path in engine_files(folder, component):
        try:
            key = read_sidecar(path).key
            profiles = tuple(Profile.from_record(entry) for entry in key["profiles"])
            options = BuildOptions(**{field.name: key["options"][field.name] for field in fields(BuildOptions)})
        except MALFORMED:
            continue
        yield Candidate(path, profiles, options)


def profile_for(sizes: Sizes) -> Profile:
    """A profile for one size of the image, and for so many images together or fewer.

    An extra image may have any usual size, and its own.
    """
    height, width, batch = sizes[HEIGHT], sizes[WIDTH], sizes.get(BATCH, 1)
    sides = [size for name, size in sizes.items() if name not in (HEIGHT, WIDTH, BATCH)]
    usual = Profile.extra
    extra = Range(min([usual.minimum, *sides]), usual.optimum, max([usual.maximum, *sides]))
    own = {"height": Range(height, height, height), "width": Range(width, width, width)}
    return Profile(f"{height}x{width}", **own, extra=extra, batch=Range(1, batch, batch))


def limits_of(profile: Profile, symbols: Sequence[str]) -> tuple[Shape, Shape, Shape]:
    """A profile's minima, optima and maxima of ``symbols``."""
    found = [ranges(profile, symbols)[name] for name in symbols]
    return (
        tuple(one.minimum for one in found),
        tuple(one.optimum for one in found),
        tuple(one.maximum for one in found),
    )


def distance_to(profiles: Sequence[Profile], component: Component, sizes: Sizes) -> float | None:
    """How far the nearest optimum of the profiles that hold a component's sizes is; None where none holds them."""
    symbols, known = sorted(component.symbols), {BATCH: 1, **sizes}
    if not all(name in known for name in symbols):
        return None
    found = nearest([limits_of(profile, symbols) for profile in profiles], tuple(known[name] for name in symbols))
    return None if found is None else found[1]


def fits(profiles: Sequence[Profile], component: Component, sizes: Sizes) -> bool:
    """Whether one of the profiles holds a component's sizes."""
    return distance_to(profiles, component, sizes) is not None


def with_symbols(shape: Sequence[int | str], size: int) -> Shape:
    """A shape with every symbol replaced."""
    return tuple(size if isinstance(dimension, str) else dimension for dimension in shape)


def graph_inputs(library: Library, path: Path) -> list[dict[str, Any]]:
    """The inputs of the graph at ``path``, as ``describe`` gives them."""
    library.logger.errors.clear()
    network, parser = parse(library, make_builder(library), path)
    tensors = describe(library.module, network)
    del parser
    return [tensor for tensor in tensors if tensor["mode"] == "input"]
