"""DeblurDiff at the published size, with random weights: an hour and 16 GB, so only with ``pytest -m slow -s``."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from uid.families.deblurdiff import checkpoint  # noqa: E402  (torch is there)
from uid.families.deblurdiff.configs import CONFIGS  # noqa: E402
from uid.families.deblurdiff.family import random_weight  # noqa: E402
from uid.families.deblurdiff.model import DeblurDiff  # noqa: E402

pytestmark = pytest.mark.slow

# One image, in a process of its own, so that its memory is its own.
RUN = """
import json, resource, sys
import numpy as np
from uid.runtime import Options, load
image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
result = load(sys.argv[1], backend=sys.argv[2])(image, Options(steps=2))
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"seconds": dict(result.seconds), "GB": memory, "std": float(result.image.std())}))
"""


def published(path: Path) -> None:
    """Write a file with the published keys and shapes, and seeded random weights that float16 holds."""
    with torch.device("meta"):
        sources = checkpoint.sources(DeblurDiff(CONFIGS["deblurdiff"])).values()
    generator = torch.Generator().manual_seed(0)
    torch.save({one.key: random_weight(one.key, one.shape, generator).half() for one in sources}, path)


def command(*words: str | Path) -> None:
    """Run uid-export as a user would, and print what it took."""
    start = time.perf_counter()
    subprocess.run([Path(sys.executable).with_name("uid-export"), *words], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"uid-export {words[0]}: {time.perf_counter() - start:.0f} s, at most {peak:.1f} GB", flush=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_published_file_becomes_a_bundle_that_runs(tmp_path: Path, precision: str) -> None:
    file, folder, bundle = tmp_path / "deblurdiff.pth", tmp_path / "checkpoint", tmp_path / "bundle"
    published(file)
    command("convert", file, folder)
    file.unlink()
    command("bundle", folder, "-o", bundle, "--precision", precision, "--image-steps", "2")
    size = sum(path.stat().st_size for path in bundle.iterdir()) / 1e9
    print(f"bundle {size:.2f} GB")
    for backend in ("onnxruntime", "openvino"):
        run = subprocess.run(
            [sys.executable, "-c", RUN, str(bundle), backend], check=True, capture_output=True, text=True
        )
        found = json.loads(run.stdout)
        print(f"{precision}, {backend}, 512 x 512, 2 steps: {found}", flush=True)
        assert found["std"] > 0
