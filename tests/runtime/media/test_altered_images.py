"""Images altered at random raise nothing but the project's own errors; ``tests/fuzz/images.py`` runs more of them."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "fuzz" / "images.py"


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_altered_images_raise_only_our_errors(count, capfd):
    spec = importlib.util.spec_from_file_location("fuzz_images", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    counts = module.run(count, seed=1)
    assert counts["FAILED"] == 0, capfd.readouterr().err
    assert counts["refused"] > count // 10
    assert counts["read"] + counts["read with a warning"] > count // 10
