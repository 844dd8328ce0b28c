"""Changes to JSON values and bytes, as a hostile or damaged file has them."""

import copy
import json
import math
import random
from collections.abc import Iterator
from typing import Any

NUMBERS = [0, -1, 1, 2, 7, 255, 1 << 16, (1 << 16) + 1, 1 << 31, 1 << 53, 1 << 63, 1 << 64, 10**18, 10**400]
NUMBERS += [0.0, -0.0, 0.5, -1.5, 1e-30, 5e-324, 1e308, 1.7976931348623157e308]
TEXTS = ["", "a", "../..", "/etc/passwd", "*", "[a-z]*", "a\x00b", "\x1b]0;x\x07", "[red]x[/]", "C:\\x", "ä", "\ud800"]
TEXTS += [
    "x" * 65,
    "x" * 100_000,
    "height/0",
    "height/7",
    "height*99",
    "batch",
    "image",
    "latent",
    "output",
    "nan",
    "1e999",
]
TEXTS += [
    "float64",
    "object",
    "step",
    "prepare",
    "finish",
    "step-shallow",
    "weights.bin",
    "manifest.json",
    "None",
    "%s%n",
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], {"": ""}, [0] * 300, {str(i): i for i in range(300)}]
# What no JSON value stands for; put into the text in place of a marker.
MARKER = "marker-of-the-fuzzer"
RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" * 5000,
    "[" * 2000 + "]" * 2000,
    '{"a":' * 900 + "1" + "}" * 900,
]
RAW += ['{"a": 1, "a": 2}', "\\ud800", "'text'", "01", "\ufeff"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value, the outermost first."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at a path."""
    for key in path:
        value = value[key]
    return value


def other_value(chance: random.Random, old: Any, whole: Any) -> Any:
    """What to put in a value's place."""
    near = (
        [old + 1, -old, old * 1000, old / 3]
        if isinstance(old, int | float) and abs(old) < 1e300
        else [old, [old], {"x": old}]
    )
    elsewhere = at(whole, chance.choice(list(places(whole))))
    return copy.deepcopy(
        chance.choice([chance.choice(kind) for kind in (NUMBERS, TEXTS, OTHERS, near, [elsewhere], [MARKER])])
    )


def mutated(chance: random.Random, value: Any) -> bytes:
    """JSON text of ``value`` with one to three changes."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        path = chance.choice(list(places(value))[1:] or [()])
        if not path:
            break
        holder, key = at(value, path[:-1]), path[-1]
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(TEXTS)] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case _:
                holder[key] = other_value(chance, holder[key], value)
    text = json.dumps(value).replace(f'"{MARKER}"', chance.choice(RAW))
    data = text.encode("utf-8", "surrogatepass")
    return flipped(chance, data) if chance.random() < 0.1 else data


def flipped(chance: random.Random, data: bytes) -> bytes:
    """Bytes with some changed, lost, doubled or put in."""
    changed = bytearray(data)
    for _ in range(math.ceil(chance.expovariate(0.5)) or 1):
        start = chance.randrange(len(changed) + 1)
        end = min(len(changed), start + math.ceil(chance.expovariate(0.2)))
        match chance.randrange(4):
            case 0:
                changed[start:end] = chance.randbytes(end - start)
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = changed[start:end]
            case _:
                changed[start:start] = chance.choice(
                    [b"\xff" * 10, b"\x00", b"\x80" * 9 + b"\x01", chance.randbytes(4)]
                )
    return bytes(changed)
