"""The sidecar of an engine: what is known of it, as JSON. It may come from anywhere: each of its fields is checked."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from uid.bundles.names import FILE, LONGEST_SHOWN, NAME
from uid.bundles.reading import LARGEST_JSON, parsed_json, read_limited
from uid.engines.trt.profiles import Range, Target
from uid.errors import UIDError

MALFORMED = (OSError, KeyError, TypeError, ValueError, AttributeError, UIDError)  # what reading a sidecar may raise
LARGEST = 1 << 50
SIDES = ("height", "width", "blur", "batch")  # of a profile; an earlier version wrote no "batch"


@dataclass(frozen=True)
class Sidecar:
    """What is known of an engine file."""

    key: dict[str, Any]  # ``Key.recorded()``
    sha256: str
    size: int  # bytes
    seconds: float  # that the build took
    tensors: list[dict[str, Any]]  # ``Built.tensors``


def is_text(value: Any) -> bool:
    """Whether a value is a short line of printable text."""
    return isinstance(value, str) and len(value) <= LONGEST_SHOWN and value.isprintable()


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of a sane size."""
    return type(value) is int and 0 <= value <= LARGEST


def matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    """Whether a value is text of this pattern."""
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


# What each field holds, by its name with those of the objects and lists around it, as ``flat`` gives it.
FIELDS: list[tuple[str, Callable[[Any], bool]]] = [
    (r"key\.(component|precision|backend)", matches(NAME)),
    (r"key\.version", matches(re.compile(r"[0-9A-Za-z.+-]{1,40}"))),
    (rf"key\.sources\.{FILE.pattern}", matches(re.compile(r"[0-9a-f]{64}"))),
    (r"key\.target\.(gpu|compute_capability|driver)", is_text),
    (r"key\.target\.ahead_of_time", lambda value: value in (None, [])),
    (r"key\.target\.ahead_of_time\.\d{1,2}", is_text),
    (r"key\.profiles\.\d{1,2}\.name", is_text),
    (rf"key\.profiles\.\d{{1,2}}\.({'|'.join(SIDES)})\.(minimum|optimum|maximum)", is_whole),
    (r"key\.options\.[a-z0-9_]{1,40}", lambda value: value is None or isinstance(value, bool) or is_whole(value)),
    (r"sha256", matches(re.compile(r"[0-9a-f]{64}"))),
    (r"size", is_whole),
    (r"seconds", lambda value: type(value) in (int, float) and 0 <= value <= LARGEST),
    (r"tensors\.\d{1,3}\.(name|mode|dtype)", is_text),
    (r"tensors\.\d{1,3}\.shape", lambda value: value == []),
    (r"tensors\.\d{1,3}\.shape\.\d", lambda value: is_whole(value) or is_text(value)),
]


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar of the engine at ``path``; raises one of ``MALFORMED`` for one that this program did not write."""
    data = parsed_json(read_limited(path.with_suffix(".json"), LARGEST_JSON))
    for name, value in flat(data).items():
        if not any(re.fullmatch(pattern, name) and fits(value) for pattern, fits in FIELDS):
            raise ValueError(f"{name[:LONGEST_SHOWN]!r} is {repr(value)[:LONGEST_SHOWN]}")
    sidecar = Sidecar(**{field.name: data[field.name] for field in fields(Sidecar)})
    check_parts(sidecar)
    return sidecar


def check_parts(sidecar: Sidecar) -> None:
    """Raise one of ``MALFORMED`` where a part is missing, is an object for a list, or is a range that cannot be."""
    key = sidecar.key
    lists, objects = (sidecar.tensors, key["profiles"]), (key["sources"], key["options"])
    for value, kind in (*((one, list) for one in lists), *((one, dict) for one in objects)):
        if not isinstance(value, kind):
            raise TypeError(f"{repr(value)[:LONGEST_SHOWN]} is no {kind.__name__}")
    target_from(key["target"])
    for entry in key["profiles"]:
        for side in SIDES:
            Range(**entry.get(side, {"minimum": 1, "optimum": 1, "maximum": 1}))
    _ = key["component"], key["precision"], key["backend"], key["version"]
    _ = [(one["name"], one["mode"], one["dtype"], *one["shape"]) for one in sidecar.tensors]


def target_from(data: Mapping[str, Any]) -> Target:
    """A target as it was recorded."""
    names = data["ahead_of_time"]
    return Target(**{**data, "ahead_of_time": None if names is None else tuple(names)})


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested JSON as one level: {"target.gpu": ..., "profiles.0.height.minimum": ...}."""
    if not isinstance(value, dict | list):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    parts = [flat(item, f"{name}.{key}" if name else str(key)) for key, item in items]
    return {key: item for part in parts for key, item in part.items()} or {name: value}
