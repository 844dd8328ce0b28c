"""The package as a user gets it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from setuptools import find_packages

from uid.bench.rows import read_rows
from uid.bench.tables import update
from uid.reference import checkpoint
from uid.runtime.bundle import built_in, read_bundle
from uid.runtime.pipeline import Options, load

ROOT = Path(__file__).parents[1]


def test_the_runtime_is_free_of_torch() -> None:
    modules = [
        f"uid.{path.parent.name}.{path.stem}"
        for folder in ("runtime", "engines")
        for path in (ROOT / folder).glob("*.py")
    ]
    code = f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
print([name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_every_folder_of_code_is_packaged() -> None:
    tops = [path for path in ROOT.iterdir() if (path / "__init__.py").is_file()]
    folders = [file.parent.relative_to(ROOT) for top in tops for file in top.rglob("__init__.py")]
    packages = set(find_packages(str(ROOT / "src")))
    assert packages == {"uid"} | {".".join(("uid", *folder.parts)) for folder in folders}
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package, patterns in data.items():
        folder = ROOT / "src" / package.replace(".", "/")
        assert all(list(folder.glob(pattern)) for pattern in patterns), package


def test_export_without_torch_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from uid.export.cli import main; main()"
    words = [sys.executable, "-c", code, "random", "tiny", str(tmp_path / "tiny")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "Error: torch is not installed: pip install 'uid-runtime[export]'\n")


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
def test_readme_code_runs(block: str) -> None:
    subprocess.run([sys.executable, "-c", block], check=True, capture_output=True)


def test_built_in_bundle_is_the_trained_checkpoint() -> None:
    bundle = read_bundle(built_in())
    assert (bundle.name, bundle.trained) == ("edge", True)
    model = checkpoint.load(ROOT / "checkpoints" / "edge")
    image = np.random.default_rng(0).random((64, 128, 3), dtype=np.float32)
    noise = np.random.Generator(np.random.PCG64(2)).standard_normal((1, 8, 8, 16), dtype=np.float32)
    planar = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = model.deblur(planar, torch.from_numpy(noise), steps=bundle.steps, guidance=bundle.guidance)
    result = load()(image, Options(seed=2, views=1))
    assert np.quantile(np.abs(result.image - expected[0].permute(1, 2, 0).numpy()), 0.999) <= 1 / 255


def test_what_ships_fits_a_wheel() -> None:
    assert sum(path.stat().st_size for path in built_in().iterdir()) < 30e6
    assert (built_in() / "README.md").is_file()


def test_the_readme_shows_the_committed_rows() -> None:
    rows = [row for path in sorted((ROOT / "bench" / "results").glob("latency-*.jsonl")) for row in read_rows(path)]
    assert update(ROOT / "README.md", rows, check=True)
