"""Imports go downward only, and the runtime's folders import no library that an edge box does not need."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the ground up; a folder may import itself and those before it.
LAYERS = ("bundles", "engines", "runtime", "serve", "families", "export", "train", "bench")
COMMANDS = {"click", "rich"}  # libraries of command lines
HOSTS = {"ray", "triton_python_backend_utils"}
ALLOWED = {
    "bundles": {"numpy", "safetensors"},
    "engines": {"numpy", "onnxruntime", "openvino", "cuda", "tensorrt", "tensorrt_rtx"},
    "runtime": {"numpy", "cv2", "PIL", "av", "simplejpeg", "watchfiles", *COMMANDS},
    "serve": {"numpy", "starlette", "uvicorn", "h11", "prometheus_client", "click", *HOSTS},
}


def imported(path: Path) -> Iterator[str]:
    """The modules that a file imports anywhere, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "uid")


def imports() -> Iterator[tuple[str, Path, str]]:
    """Folder, file and imported module, for every file of every folder."""
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            yield from ((layer, path.relative_to(ROOT), name) for name in imported(path))


def test_every_folder_of_code_has_its_layer() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == set(LAYERS)


def test_imports_go_downward() -> None:
    upward = []
    for layer, path, name in imports():
        _, _, rest = name.partition("uid.")
        target = rest.partition(".")[0]
        if name.startswith("uid.") and target in LAYERS and LAYERS.index(target) > LAYERS.index(layer):
            upward.append(f"{path} imports {name}")
    assert not upward


@pytest.mark.parametrize("layer", ALLOWED)
def test_the_runtime_needs_few_libraries(layer: str) -> None:
    known = ALLOWED[layer] | set(sys.stdlib_module_names) | {"uid"}
    others = [f"{path} imports {name}" for own, path, name in imports() if own == layer if root(name) not in known]
    assert not others


def root(module: str) -> str:
    """The library that a module is of."""
    return module.partition(".")[0]
