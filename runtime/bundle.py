"""Bundles: a folder with a manifest, ONNX components and constants, and nothing that can execute code.

Everything in the manifest is checked before any of it is used: schema, names, files that stay inside the folder, sha256
of every file.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from uid.engines.contract import Array, TensorSpec
from uid.errors import BundleError

SCHEMA = 1
MANIFEST = "manifest.json"
BUILT_IN = Path(__file__).parent / "models"
STEP, SHALLOW, UNGUIDED = "step", "step-shallow", "step-unguided"
STEPS = (STEP, SHALLOW, UNGUIDED)  # ways to take a denoising step; the first is always there
STAGES = ("prepare", *STEPS, "finish")

# What a manifest's names become: parts of file names here, words in a terminal.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
DOTTED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # a key of the constants
FILE = re.compile(rf"{DOTTED.pattern}(/{DOTTED.pattern})*")
DIMENSION = re.compile(rf"{NAME.pattern}(/[1-9][0-9]{{0,3}})?")  # a symbol, or a part of it such as "height/8"
LONGEST_SHOWN = 80  # characters of a bad name in its error


@dataclass(frozen=True)
class Component:
    """One ONNX graph of a bundle: its stage, and its named tensors with symbolic shapes."""

    name: str
    file: str
    stage: str  # one of ``STAGES``
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: Mapping[str, str] = field(default_factory=dict)  # the same in another file, for a backend or its library


@dataclass(frozen=True)
class Mode:
    """One task of a bundle: the components it runs, in order, and the constants it feeds."""

    prompt: str
    components: tuple[str, ...]
    constants: Mapping[str, str]  # input name -> key in the constants file


@dataclass(frozen=True)
class Quality:
    """A named balance of quality and speed, and what was measured of it (see ``uid-bench tradeoff``)."""

    steps: int  # denoising steps
    views: int  # turned and mirrored copies of the picture whose results are averaged, 1 to 8
    figures: Mapping[str, float]  # such as the PSNR to the first quality's pictures, in dB; may be empty


@dataclass(frozen=True)
class Bundle:
    """A checked bundle."""

    folder: Path
    name: str
    family: str
    trained: bool
    precision: str  # "fp32" or "fp16"
    size_multiple: int  # image height and width are padded to multiples of this
    tile: int  # an image of more than tile * tile pixels is run in tiles of this side
    qualities: Mapping[str, Quality]  # by name, the best first; may be empty
    quality: str | None  # the default one; None: ``steps``, and one view
    steps: int  # default number of denoising steps
    guidance: float  # default guidance scale
    schedule: Mapping[str, Any]
    components: Mapping[str, Component]
    modes: Mapping[str, Mode]
    constants: Mapping[str, Array]


def built_in(name: str = "edge") -> Path:
    """Folder of a bundle that the package carries."""
    return BUILT_IN / name


def read_bundle(folder: Path) -> Bundle:
    """Read and verify the bundle in ``folder``.

    Raises ``BundleError`` when the manifest is missing, malformed or of a newer schema, when a path in it leaves the
    folder, or when a file is missing or its sha256 differs.
    """
    manifest = read_manifest(folder)
    try:
        verify_files(folder, manifest["files"])
        components = {name: component(name, entry, manifest) for name, entry in manifest["components"].items()}
        modes = {checked(name, "mode"): mode(entry) for name, entry in manifest["modes"].items()}
        for task in modes.values():
            for unknown in set(task.components) - set(components):
                raise BundleError(f"{folder / MANIFEST} names component {unknown!r} in a mode but does not declare it")
        return Bundle(
            folder=folder,
            name=checked(manifest["name"], "name"),
            family=checked(manifest["family"], "family"),
            trained=bool(manifest["trained"]),
            precision=checked(manifest["precision"], "precision"),
            size_multiple=int(manifest["size_multiple"]),
            tile=int(manifest["tile"]),
            qualities={
                checked(name, "quality"): quality(entry) for name, entry in manifest.get("qualities", {}).items()
            },
            quality=default_quality(manifest),
            steps=int(manifest["steps"]),
            guidance=float(manifest["guidance"]),
            schedule=manifest["schedule"],
            components=components,
            modes=modes,
            constants=read_constants(folder / listed(manifest["constants"], manifest)),
        )
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
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}; export the bundle again") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(schema, int):
        raise BundleError(f"{path} states no schema version; expected {SCHEMA}; export the bundle again")
    if schema > SCHEMA:
        raise BundleError(f"{path} has schema {schema}, this uid-runtime reads up to {SCHEMA}: upgrade uid-runtime")
    return manifest


def checked(name: Any, what: str, pattern: re.Pattern[str] = NAME) -> str:
    """``name`` if it is one; raises ``BundleError`` for anything else, such as a path, a glob or a terminal's codes."""
    if isinstance(name, str) and pattern.fullmatch(name):
        return name
    allowed = "._-" if pattern is DOTTED else "_-"
    raise BundleError(
        f"the manifest has {what} {repr(name)[:LONGEST_SHOWN]}; expected at most 64 ASCII letters, digits and any of "
        f"{allowed}, with a letter or digit first: rename it where the bundle was made, and export it again"
    )


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check that every listed file lies in the folder and has its sha256."""
    for name, expected in files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise BundleError(f"the bundle lacks {name}: expected at {path}; copy or export it again")
        if sha256(path) != expected:
            raise BundleError(
                f"{path} was altered or damaged: its sha256 is not the manifest's; copy or export it again"
            )


def inside(folder: Path, name: str) -> Path:
    """The path of a listed file; refuses anything but plain names below the folder, and links that lead out of it."""
    path = folder / name
    if not FILE.fullmatch(name) or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(
            f"the manifest lists {repr(name)[:LONGEST_SHOWN]}, which is no plain name or leads out of the "
            "bundle's folder; do not use this bundle"
        )
    return path


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's contents."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def listed(name: str, manifest: Mapping[str, Any]) -> str:
    """``name`` if its hash is in the manifest: a file that was not verified is not opened."""
    if name not in manifest["files"]:
        raise BundleError(f"the manifest uses {name!r} but lists no sha256 for it; export the bundle again")
    return name


def component(name: str, entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> Component:
    """One component's declaration."""
    checked(name, "component")
    if entry["stage"] not in STAGES:
        raise BundleError(f"component {name!r} has stage {entry['stage']!r}; expected one of {', '.join(STAGES)}")
    inputs, outputs = tuple(specs(entry["inputs"])), tuple(specs(entry["outputs"]))
    variants = {
        checked(backend, "variant"): listed(file, manifest) for backend, file in entry.get("variants", {}).items()
    }
    return Component(name, listed(entry["file"], manifest), entry["stage"], inputs, outputs, variants)


def specs(entries: list[dict[str, Any]]) -> Iterator[TensorSpec]:
    """Tensor declarations."""
    for entry in entries:
        shape = tuple(
            size if isinstance(size, int) else checked(size, "dimension", DIMENSION) for size in entry["shape"]
        )
        yield TensorSpec(checked(entry["name"], "tensor"), np.dtype(checked(entry["dtype"], "dtype")), shape)


def mode(entry: Mapping[str, Any]) -> Mode:
    """One task's declaration."""
    constants = {
        checked(tensor, "tensor"): checked(key, "constant", DOTTED) for tensor, key in entry["constants"].items()
    }
    return Mode(entry["prompt"], tuple(entry["components"]), constants)


def quality(entry: Mapping[str, Any]) -> Quality:
    """One quality's declaration."""
    figures = {checked(name, "figure"): float(value) for name, value in entry.get("figures", {}).items()}
    return Quality(int(entry["steps"]), int(entry["views"]), figures)


def default_quality(manifest: Mapping[str, Any]) -> str | None:
    """The name of the default quality, which must be one of those declared."""
    name: str | None = manifest.get("quality")
    if name is not None and name not in manifest.get("qualities", {}):
        raise BundleError(f"the manifest's default quality {name!r} is not declared; export the bundle again")
    return name


def read_constants(path: Path) -> dict[str, Array]:
    """The constant inputs, by key."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"cannot read {path}: {error}; export the bundle again") from error
