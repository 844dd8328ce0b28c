"""Which values a manifest may have: one of a few words, and numbers within limits."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from uid.errors import BundleError

LONGEST_SHOWN = 80  # characters of a bad value in its error
AGAIN = "export the bundle again"


def chosen(value: Any, what: str, allowed: Sequence[str]) -> str:
    """``value`` if it is one of ``allowed``; raises ``BundleError`` otherwise."""
    if isinstance(value, str) and value in allowed:
        return value
    raise BundleError(
        f"the manifest has {what} {shown(value)}; expected one of {', '.join(allowed)}: upgrade uid-runtime, or {AGAIN}"
    )


def whole(value: Any, what: str, least: int, most: int | None = None) -> int:
    """``value`` if it is a whole number from ``least`` to ``most``; raises ``BundleError`` otherwise."""
    if type(value) is int and value >= least and (most is None or value <= most):
        return value
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    raise BundleError(f"the manifest has {what} {shown(value)}; expected a whole number, {limits}: {AGAIN}")


def real(value: Any, what: str) -> float:
    """``value`` as a float if it is a finite number; raises ``BundleError`` otherwise."""
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise BundleError(f"the manifest has {what} {shown(value)}; expected a finite number: {AGAIN}")


def truth(value: Any, what: str) -> bool:
    """``value`` if it is true or false; raises ``BundleError`` otherwise."""
    if isinstance(value, bool):
        return value
    raise BundleError(f"the manifest has {what} {shown(value)}; expected true or false: {AGAIN}")


def text(value: Any, what: str) -> str:
    """``value`` if it is text; raises ``BundleError`` otherwise."""
    if isinstance(value, str):
        return value
    raise BundleError(f"the manifest has {what} {shown(value)}; expected text: {AGAIN}")


def shown(value: Any) -> str:
    """A bad value as its error shows it."""
    return repr(value)[:LONGEST_SHOWN]
