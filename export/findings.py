"""What is measured of a layer, and what is wrong, or may be, with its values."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uid.bundles.tensors import Array
from uid.export.layers import (
    Layer,
)

BLOCK = 1 << 20  # values that are looked at together
HALF_MAX = 65504.0
HALF_INFINITE = 65520.0  # from here on float16 rounds to infinity
HALF_NORMAL = 2.0**-14  # below it float16 has fewer than 11 bits
NEAR = 4  # a value is near when this many times it would overflow
TINY_SHARE = 0.5  # of a tensor's values other than 0
JUMP = 10  # times the error of what a layer computes from, or of one rounding where that is larger
ROUNDING = {True: 2.0**-10, False: 1e-5}  # relative error that any layer in float16, or in float32, may add
FAULTS = ("jump", "overflow")  # the findings that make an image wrong
FINDINGS = (*FAULTS, "near", "tiny", "sum")  # worst first


@dataclass(frozen=True)
class Values:
    """What a layer computes in float32."""

    shape: tuple[int, ...]
    largest: float  # magnitude, among the finite
    tiny: float  # share below float16's smallest normal number, among those that are not 0
    total: float  # no sum that a reduction forms is larger; 0: no reduction, or not known


@dataclass(frozen=True)
class Difference:
    """A layer's tensor against the reference's; errors are among the finite."""

    largest: float  # absolute
    relative: float  # L2 norm of the error over that of the reference
    infinite: int  # values that are NaN or infinite, and finite in the reference


@dataclass(frozen=True)
class LayerRow:
    """What was found out about one layer."""

    component: str
    layer: Layer
    half: bool  # the bundle computes it in float16
    values: Values
    difference: Difference | None  # None: not compared
    before: float  # largest relative error among what it computes from; inf: NaN or infinity is there
    findings: tuple[str, ...]  # of FINDINGS, worst first

    @property
    def wrong(self) -> bool:
        """Whether it makes an image wrong."""
        return any(finding in FAULTS for finding in self.findings)

    def figures(self) -> tuple[str, str, str]:
        """Largest value, relative error of what it computes from, and its own, for a table."""
        found = self.difference
        if found is None:
            return f"{self.values.largest:.3g}", "", ""
        own = f"{found.infinite} not finite" if found.infinite else f"{found.relative:.1e} (max {found.largest:.1e})"
        before = "not finite" if math.isinf(self.before) else f"{self.before:.1e}"
        return f"{self.values.largest:.3g}", before, own

    def record(self) -> dict[str, Any]:
        """The row as a JSON object."""
        found = self.difference
        return {
            "component": self.component,
            "node": self.layer.node,
            "op": self.layer.op,
            "tensor": self.layer.tensor,
            "module": self.layer.module,
            "dtype": "float16" if self.half else "float32",
            "shape": self.values.shape,
            "largest": self.values.largest,
            "tiny": self.values.tiny,
            "sum": self.values.total or None,
            "max_error": found and found.largest,
            "relative_error": found and found.relative,
            "not_finite": found and found.infinite,
            "relative_error_before": self.before if math.isfinite(self.before) else None,
            "findings": self.findings,
        }


def values_of(tensor: Array, total: float) -> Values:
    """Magnitudes of a float32 tensor."""
    largest, tiny, count = 0.0, 0, 0
    for block in blocks(tensor):
        magnitudes = np.abs(block[np.isfinite(block) & (block != 0)])
        largest = max(largest, float(magnitudes.max(initial=0.0)))
        tiny += np.count_nonzero(magnitudes < HALF_NORMAL)
        count += magnitudes.size
    return Values(tensor.shape, largest, tiny / max(count, 1), total)


def difference(expected: Array, got: Array) -> Difference:
    """A tensor against the reference's, both of one shape, ``expected`` float32."""
    largest, square, error_square, count, infinite = 0.0, 0.0, 0.0, 0, 0
    for want, have in zip(blocks(expected), blocks(got), strict=True):
        finite = np.isfinite(want)
        both = finite & np.isfinite(have)
        infinite += int(np.count_nonzero(finite & ~both))
        exact = want[both].astype(np.float64)
        error = have[both] - exact
        largest = max(largest, float(np.abs(error).max(initial=0.0)))
        square, error_square = square + float(exact @ exact), error_square + float(error @ error)
        count += exact.size
    # Below what float16 can distinguish, an error is large only in proportion.
    norm = max(math.sqrt(square), HALF_NORMAL * math.sqrt(max(count, 1)))
    return Difference(largest, math.sqrt(error_square) / norm, infinite)


def blocks(tensor: Array) -> Iterator[Array]:
    """A tensor's values in parts, so that what is computed of them takes little memory."""
    flat = tensor.reshape(-1)
    return (flat[start : start + BLOCK] for start in range(0, max(flat.size, 1), BLOCK))


def findings(values: Values, jumps: bool, half: bool) -> tuple[str, ...]:
    """What is wrong, or may be, with a layer's values; ``half``: in float16."""
    found = {
        "jump": jumps,
        "overflow": half and values.largest >= HALF_INFINITE,
        "near": half and HALF_MAX / NEAR <= values.largest < HALF_INFINITE,
        "tiny": half and values.tiny >= TINY_SHARE,
        "sum": half and values.total > HALF_MAX,
    }
    return tuple(name for name in FINDINGS if found[name])


def worst_first(rows: Iterable[LayerRow]) -> list[LayerRow]:
    """The rows with findings: errors that jump, in the order of the run, since the first is the
    cause; then the largest values; then the rest.
    """

    def order(row: LayerRow) -> tuple[int, float]:
        finding = row.findings[0]
        measure = {"jump": 0.0, "tiny": row.values.tiny, "sum": row.values.total}
        return FINDINGS.index(finding), -measure.get(finding, row.values.largest)

    return sorted((row for row in rows if row.findings), key=order)


def summary(rows: Sequence[LayerRow], shown: int) -> Iterator[str]:
    """How many layers were looked at and what was found, in lines."""
    half = sum(row.half for row in rows)
    compared = sum(row.difference is not None for row in rows)
    yield f"{len(rows)} layers, {half} of them in float16, {compared} compared; {shown} shown"
    texts = {
        "jump": f"have more than {JUMP} times the error of what they read",
        "overflow": "overflow in float16",
        "near": f"are within a factor of {NEAR} of it",
        "tiny": f"have at least {TINY_SHARE:.0%} of their values below float16's smallest normal number",
        "sum": "may form sums that overflow where they are not formed in float32",
    }
    for finding, text in texts.items():
        if count := sum(finding in row.findings for row in rows):
            yield f"{count} {text}"
