"""The paper's sizes, on a machine without a GPU: minutes and gigabytes, so only with ``pytest -m slow -s``."""

import gc
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uid.bundles.manifest import read_bundle
from uid.engines import create
from uid.export import validate
from uid.families.uid_diff import checkpoint
from uid.families.uid_diff.components import declare

pytestmark = pytest.mark.slow


def command(*words: str | Path) -> None:
    """Run uid-export in a process of its own, as a user would, and print what it took."""
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("uid-export"), *words], check=True)
    print(f"uid-export {words[0]}: {time.perf_counter() - start:.0f} s")


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_sd15_exports_and_one_step_agrees(tmp_path: Path, precision: str) -> None:
    command("random", "sd15", tmp_path / "checkpoint", "--half")
    command(
        "bundle", tmp_path / "checkpoint", "-o", tmp_path / "bundle", "--precision", precision, "--image-steps", "1"
    )
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    size = sum(path.stat().st_size for path in (tmp_path / "bundle").iterdir()) / 1e9
    print(f"peak memory {peak:.1f} GB, bundle {size:.2f} GB")
    assert peak < 16.0

    model = checkpoint.load(tmp_path / "checkpoint")
    step = next(c for c in declare(model, "fp32", guided=True) if c.declaration.name == "step")
    case = validate.component_case(step, {"height": 512, "width": 512})
    del model, step
    gc.collect()
    bundle, backend = read_bundle(tmp_path / "bundle"), create("onnxruntime")
    engine = backend.load(tmp_path / "bundle" / "step.onnx")
    declaration = bundle.components["step"]
    parity = validate.check_component(backend, engine, declaration, case, validate.TOLERANCES[precision])
    print(f"step at 512 x 512: differs from PyTorch by {parity.error:.1e} of its largest value")
