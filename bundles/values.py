"""Which values a manifest may have: one of a few words, numbers within limits, lists and objects of so many entries."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from uid.errors import BundleError

LONGEST_SHOWN = 80  # characters of a bad value in its error
LONGEST_TEXT = 4096  # characters of a prompt
MOST_ENTRIES = 256  # of a list or an object
AGAIN = "export the bundle again"


def field(entry: Mapping[str, Any], key: str, where: str) -> Any:
    """The value of a key that must be there; raises ``BundleError`` where it is not."""
    if key not in entry:
        raise BundleError(f"{where} lacks {key!r}; {AGAIN}")
    return entry[key]


def entries(value: Any, what: str) -> Mapping[str, Any]:
    """``value`` if it is an object of at most ``MOST_ENTRIES`` keys; raises ``BundleError`` otherwise."""
    if isinstance(value, Mapping) and len(value) <= MOST_ENTRIES:
        return value
    raise BundleError(
        f"the manifest has {what} {shown(value)}; expected an object, {MOST_ENTRIES} keys at most: {AGAIN}"
    )


def listing(value: Any, what: str) -> Sequence[Any]:
    """``value`` if it is a list of at most ``MOST_ENTRIES``; raises ``BundleError`` otherwise."""
    if isinstance(value, list) and len(value) <= MOST_ENTRIES:
        return value
    raise BundleError(f"the manifest has {what} {shown(value)}; expected a list, {MOST_ENTRIES} at most: {AGAIN}")


def distinct(values: Sequence[str], what: str) -> None:
    """Raise ``BundleError`` where a name is there twice."""
    if len(set(values)) < len(values):
        double = next(value for value in values if values.count(value) > 1)
        raise BundleError(f"the manifest has {what} {double!r} twice; {AGAIN}")


@dataclass(frozen=True)
class Rule:
    """What a value must be, and how an error says so; a manifest and a checkpoint's index have the same ones."""

    expected: str
    fits: Callable[[Any], bool]


def one_of(allowed: Sequence[str]) -> Rule:
    """One of a few words."""
    return Rule(f"one of {', '.join(allowed)}", lambda value: isinstance(value, str) and value in allowed)


def whole_rule(least: int, most: int | None = None) -> Rule:
    """A whole number from ``least`` to ``most``."""
    limits = f"{least} or more" if most is None else f"{least} to {most}"
    return Rule(
        f"a whole number, {limits}",
        lambda value: type(value) is int and value >= least and (most is None or value <= most),
    )


def real_rule(most: float | None = None) -> Rule:
    """A finite number, at most ``most`` away from 0."""
    limits = "" if most is None else f" from -{most:g} to {most:g}"
    return Rule(f"a finite number{limits}", lambda value: is_finite(value) and (most is None or abs(value) <= most))


TRUTH = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule(
    f"text, {LONGEST_TEXT} characters at most", lambda value: isinstance(value, str) and len(value) <= LONGEST_TEXT
)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float holds."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # of a whole number beyond any float
        return False


def obeying(value: Any, what: str, rule: Rule, mend: str = AGAIN) -> Any:
    """``value`` of a manifest if it obeys a rule; raises ``BundleError`` otherwise."""
    if rule.fits(value):
        return value
    raise BundleError(f"the manifest has {what} {shown(value)}; expected {rule.expected}: {mend}")


def chosen(value: Any, what: str, allowed: Sequence[str]) -> str:
    """``value`` if it is one of ``allowed``; raises ``BundleError`` otherwise."""
    return str(obeying(value, what, one_of(allowed), f"upgrade uid-runtime, or {AGAIN}"))


def whole(value: Any, what: str, least: int, most: int | None = None) -> int:
    """``value`` if it is a whole number from ``least`` to ``most``; raises ``BundleError`` otherwise."""
    return int(obeying(value, what, whole_rule(least, most)))


def real(value: Any, what: str, most: float | None = None) -> float:
    """``value`` as a float if it is a finite number, at most ``most`` away from 0; raises ``BundleError`` otherwise."""
    return float(obeying(value, what, real_rule(most)))


def truth(value: Any, what: str) -> bool:
    """``value`` if it is true or false; raises ``BundleError`` otherwise."""
    return bool(obeying(value, what, TRUTH))


def text(value: Any, what: str) -> str:
    """``value`` if it is text of at most ``LONGEST_TEXT`` characters; raises ``BundleError`` otherwise."""
    return str(obeying(value, what, TEXT))


def shown(value: Any) -> str:
    """A bad value as its error shows it."""
    try:
        return repr(value)[:LONGEST_SHOWN]
    except ValueError:  # of a whole number of thousands of digits
        return f"a {type(value).__name__}"
