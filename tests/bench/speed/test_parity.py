"""The parity of components: how far a backend may be follows from what it computes in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from uid.bench.speed.parity import reference_cases, tolerance, worst
from uid.bundles.manifest import read_bundle
from uid.engines import create
from uid.export.validate import TOLERANCES

pytest.importorskip("openvino", reason="needs openvino")
from uid.engines.openvino_cpu import OpenvinoBackend


def test_every_precision_is_held_to_its_own_tolerance(tiny_bundle: Path, tiny_checkpoint: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    coarse, exact = OpenvinoBackend("openvino-bf16", "bf16", 1), create("openvino", threads=1)
    assert tolerance(bundle, coarse) == TOLERANCES["bf16"]
    assert tolerance(bundle, exact) == TOLERANCES["fp32"]
    half = replace(bundle, precision="fp16")
    assert tolerance(half, exact) == TOLERANCES["fp16"]
    assert tolerance(half, coarse) == TOLERANCES["bf16"]
    for name, case in reference_cases(bundle, tiny_checkpoint).items():
        # As coarse as bfloat16: the upper 16 bits of each float32.
        rounded = {key: (value.view(np.uint32) & 0xFFFF0000).view(np.float32) for key, value in case.outputs.items()}
        assert worst("coarse", name, rounded, case, tolerance(bundle, coarse)).sound
        assert not worst("exact", name, rounded, case, tolerance(bundle, exact)).sound
        wrong = {key: -value for key, value in case.outputs.items()}
        assert not worst("coarse", name, wrong, case, tolerance(bundle, coarse)).sound
