"""Built engines on disk. An engine is an executable artifact: one that is not exactly what its key says is not loaded.

    FOLDER/<component>-<first 16 hex digits of the key's sha256>.engine
    FOLDER/<the same>.json      the sidecar: the key, the engine's sha256 and size, and what it was built from

The engine is written first and the sidecar last, so an engine that has no sidecar is not finished and does not count.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uid.bundles.cache import default_folder, reuse_or_make, short_hash
from uid.bundles.declarations import Bundle, Component
from uid.bundles.files import written_whole
from uid.bundles.hashes import sha256
from uid.bundles.sources import private_copy
from uid.engines.trt.build import BuildOptions, Built, NotBuiltError, Report, Shapes, build, check_options
from uid.engines.trt.isolated_build import build_apart
from uid.engines.trt.library import Library, check_target, header_problem
from uid.engines.trt.profiles import Profile, Target, fallbacks, profile_shapes
from uid.engines.trt.sidecar import MALFORMED, Sidecar, flat, read_sidecar, target_from
from uid.errors import BackendError, OutOfMemoryError, printable

HEADER = 64  # bytes of an engine that say what it is
PATIENCE = 3600.0  # seconds to wait for another process that builds


@dataclass(frozen=True)
class Key:
    """All that an engine depends on."""

    component: str
    sources: Mapping[str, str]  # file of the bundle -> sha256: the graph, and the weights it may refer to
    precision: str
    backend: str
    version: str  # of the backend
    target: Target
    profiles: tuple[Profile, ...]
    options: BuildOptions

    def recorded(self) -> dict[str, Any]:
        """The key as it reads back from JSON."""
        profiles = [profile.record() for profile in self.profiles]
        data = {**asdict(self), "profiles": profiles, "options": self.options.recorded()}
        recorded: dict[str, Any] = json.loads(json.dumps(data))
        return recorded


def engine_for(
    bundle: Bundle,
    component: Component,
    library: Library,
    target: Target,
    profiles: Sequence[Profile],
    options: BuildOptions | None = None,
    *,
    folder: Path | None = None,
    report: Report = print,
) -> Path:
    """The engine of one component, with one optimisation profile for each of ``profiles`` in their order.

    Reused if ``check`` finds it sound, or built: one builder at a time in a folder (None: ``default_folder``), the
    others wait for it and reuse. An engine built ahead of time serves every target it was built for. ``profiles`` come
    rounded (``Profile.rounded``). Where the library fails at their ranges, the engine is for others (``fallbacks``);
    its sidecar says which, and it is found in later calls. ``report`` is told what is done and why. Raises
    ``BackendError`` when the library cannot build, ``OutputError`` when the folder cannot be written.
    """
    check_target(library, target)
    check_options(library, options or BuildOptions())
    for profile in profiles:
        profile.check_multiple(bundle.size_multiple)
    keys = attempts(key_for(bundle, component, library, target, profiles, options or BuildOptions()), component)
    folder = folder or default_folder(bundle, library.name)
    reason = ""

    def find_sound() -> Path | None:
        nonlocal reason
        path, reason = find_any(folder, keys)
        if path is not None:
            report(f"{component.name}: reusing {path}")
        return path

    def build_now() -> Path:
        report(f"{component.name}: building with {library} for {target}, since {reason}")
        return build_any(folder, keys, bundle, component, library, report)

    return reuse_or_make(folder, find_sound, build_now, report, PATIENCE)


def attempts(key: Key, component: Component) -> list[Key]:
    """``key``, and those to build for where the library fails at it: with other profiles, and other shapes for this."""
    choices = [key.profiles, *fallbacks(key.profiles)]
    shapes = [shapes_of(component, profiles) for profiles in choices]
    return [replace(key, profiles=choices[i]) for i in range(len(choices)) if shapes[i] not in shapes[:i]]


def shapes_of(component: Component, profiles: Sequence[Profile]) -> list[Shapes]:
    """The shapes of a component's inputs in each profile."""
    return [profile_shapes(component.inputs, profile) for profile in profiles]


def build_any(
    folder: Path, keys: Sequence[Key], bundle: Bundle, component: Component, library: Library, report: Report
) -> Path:
    """Build for the first of ``keys`` that the library does not fail at; for who holds the folder's lock.

    Memory that ran out at the first one is no reason to try others. Raises what the first one raised.
    """
    failures: list[BackendError] = []
    hint = " (for one compute capability it may build as asked)" if keys[0].target == Target.ahead() else ""
    for key in keys:
        if failures:
            sizes = " and ".join(map(str, key.profiles))
            report(f"{component.name}: {failures[-1]}; building instead for {sizes}{hint}")
        try:
            return build_into(folder, key, bundle, component, library, report)
        except (NotBuiltError, OutOfMemoryError) as error:
            failures.append(error)
            if isinstance(failures[0], OutOfMemoryError):
                break
    raise failures[0]


def build_into(folder: Path, key: Key, bundle: Bundle, component: Component, library: Library, report: Report) -> Path:
    """Build the engine that ``key`` describes and store it; for who holds the folder's lock."""
    with private_copy(bundle, component.file, folder) as graph:
        built = (build_apart if fallbacks(key.profiles) else build)(
            library,
            graph,
            shapes_of(component, key.profiles),
            key.target,
            key.options,
            timing_cache=folder / f"timing-{short_hash(f'{library} {key.target}')}.cache",
            report=lambda line: report(f"{component.name}: {line}"),
        )
    path = store(folder, key, built)
    report(f"{component.name}: built in {built.seconds:.1f} s, {built.plan.nbytes / 1e6:.1f} MB: {path}")
    return path


def key_for(
    bundle: Bundle,
    component: Component,
    library: Library,
    target: Target,
    profiles: Sequence[Profile],
    options: BuildOptions,
) -> Key:
    """The key of a component's engine; the hashes are the manifest's, which ``read_bundle`` has verified."""
    graphs = {file for part in bundle.components.values() for file in (part.file, *part.variants.values())}
    others = graphs - {component.file}
    return Key(
        component.name,
        {name: digest for name, digest in bundle.files.items() if name not in others},
        bundle.precision,
        library.name,
        library.version,
        target,
        tuple(profiles),
        options,
    )


def engine_name(key: Mapping[str, Any]) -> str:
    """File name of the engine with this recorded key."""
    return f"{key['component']}-{short_hash(json.dumps(key, sort_keys=True))}.engine"


def find_any(folder: Path, keys: Sequence[Key]) -> tuple[Path | None, str]:
    """A sound engine for the first of ``keys`` that has one, or None and the reason why the first key has none."""
    found = [find(folder, key) for key in keys]
    return next((path for path, _ in found if path is not None), None), found[0][1]


def find(folder: Path, key: Key) -> tuple[Path | None, str]:
    """A sound engine for ``key`` in ``folder``, or None and the reason why there is none."""
    exact = folder / engine_name(key.recorded())
    reasons = []
    for path in [exact, *(other for other in engine_files(folder, key.component) if other != exact)]:
        if path.is_file():
            sound, reason = check(path, key)
            if sound:
                return path, ""
            reasons.append(f"{path.name} {reason}")
    return None, reasons[0] if reasons else "there is none yet"


def engine_files(folder: Path, component: str) -> list[Path]:
    """The engines in a folder whose names begin with a component's; nothing of them is checked."""
    try:
        files = sorted(folder.iterdir())
    except OSError:  # it is not there, or not to be read
        return []
    return [file for file in files if file.name.startswith(f"{component}-") and file.suffix == ".engine"]


def check(path: Path, key: Key | None = None) -> tuple[bool, str]:
    """Whether the engine at ``path`` is whole and is what ``key`` asks for (None: what its sidecar says); or why not.

    Nothing of the engine is deserialised.
    """
    for file, problem in (
        (path, "is no file"),
        (path.with_suffix(".json"), "has no sidecar, so its build did not finish"),
    ):
        if not file.is_file():
            return False, problem
    try:
        sidecar = read_sidecar(path)
        reason = difference(sidecar.key, key) if key else ""
        reason = reason or damage(path, sidecar)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
    except MALFORMED as error:
        reason = f"has a malformed sidecar ({type(error).__name__}: {error})"
    return not reason, printable(reason)


def difference(found: Mapping[str, Any], wanted: Key) -> str:
    """The first field in which a recorded key is not the wanted one, with both values, or ""."""
    expected = wanted.recorded()
    target = target_from(found["target"])
    if target.admits(wanted.target):
        expected["target"] = found["target"]
    theirs, ours = flat(found), flat(expected)
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if theirs.get(name) != ours.get(name):
            return f"has {name} {theirs.get(name)!r}, expected {ours.get(name)!r}"
    return ""


def damage(path: Path, sidecar: Sidecar) -> str:
    """How the engine file differs from what its sidecar says, or ""."""
    if path.name != engine_name(sidecar.key):
        return f"has the sidecar of {engine_name(sidecar.key)}"
    size = path.stat().st_size
    if size != sidecar.size:
        return f"has {size} bytes, expected {sidecar.size}"
    with path.open("rb") as file:
        header = file.read(HEADER)
    if problem := header_problem(sidecar.key["backend"], sidecar.key["version"], header):
        return problem
    found = sha256(path)
    return "" if found == sidecar.sha256 else f"has sha256 {found[:16]}..., expected {sidecar.sha256[:16]}..."


def store(folder: Path, key: Key, built: Built) -> Path:
    """Write an engine and then its sidecar; each appears whole."""
    recorded = key.recorded()
    path = folder / engine_name(recorded)
    if problem := header_problem(key.backend, key.version, bytes(built.plan[:HEADER])):
        raise BackendError(f"the engine that {key.backend} {key.version} built for {key.component} {problem}")
    path.with_suffix(".json").unlink(missing_ok=True)  # of a damaged engine that this one replaces
    with written_whole(path) as temporary:
        temporary.write_bytes(built.plan)
    digest = hashlib.sha256(built.plan).hexdigest()
    sidecar = Sidecar(recorded, digest, built.plan.nbytes, round(built.seconds, 3), built.tensors)
    with written_whole(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(asdict(sidecar), indent=1) + "\n", encoding="utf-8")
    return path


def runtime_cache_path(engine: Path, target: Target) -> Path:
    """Where TensorRT-RTX may keep the kernels it compiles for an engine when it first runs, for one GPU and driver."""
    return engine.with_suffix(f".{short_hash(str(target))}.kernels")
