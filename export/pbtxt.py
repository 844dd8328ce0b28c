"""Protobuf's text format, written: Triton's configurations. Its own library would bring gRPC and an older protobuf."""

from collections.abc import Iterator, Mapping
from typing import Any

Fields = dict[str, Any]
"""A message: fields by name, as numbers, truths, texts, words, messages, or lists of these."""


class Word(str):
    """A name that is written without quotes, such as a value of an enumeration."""

    __slots__ = ()


def entries(mapping: Mapping[str, Any]) -> list[Fields]:
    """A map's entries, as the format has them."""
    return [{"key": key, "value": value} for key, value in mapping.items()]


def text_of(message: Fields) -> str:
    """A message as text."""
    return "".join(f"{line}\n" for line in lines(message))


def lines(message: Fields, indent: str = "") -> Iterator[str]:
    """The lines of a message's fields."""
    for name, value in message.items():
        several = value if isinstance(value, list) else [value]
        if not any(isinstance(one, dict) for one in several):
            yield f"{indent}{name}: {scalar(value)}"
            continue
        for one in several:
            yield f"{indent}{name} {{"
            yield from lines(one, f"{indent}  ")
            yield f"{indent}}}"


def scalar(value: Any) -> str:
    """A number, truth, word or text, or a list of them."""
    if isinstance(value, list):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not isinstance(value, Word):
        escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        return f'"{escaped}"'
    return str(value)
