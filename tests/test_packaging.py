"""The package as a user gets it."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from uid.bundles.declarations import built_in
from uid.install import how_to_install

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a fresh checkout."""
    folder = tmp_path_factory.mktemp("tree") / "checkout"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("needs git and its checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith(("checkpoints/", "bench/results/")) or not (ROOT / name).exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(kind: str, tree: Path, output: Path) -> Path:
    """Build a wheel or an sdist ("build_wheel", "build_sdist") of a tree."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(output)], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return output / done.stdout.split()[-1]


def files(wheel: Path) -> set[str]:
    """The package's files in a wheel."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("uid/")}


def test_wheels_of_every_source_are_whole(tree: Path, tmp_path: Path) -> None:
    layers = [path.parent for path in tree.glob("*/__init__.py")]
    modules = {f"uid/{path.relative_to(tree)}" for layer in layers for path in layer.rglob("*.py")}
    data = {
        f"uid/{path.relative_to(tree)}"
        for pattern in ("engines/*.onnx", "bundles/models/*/*", "serve/page/*", "families/uid_diff/*.txt")
        for path in tree.glob(pattern)
    }
    own = {f"uid/{path.name}" for path in (tree / "src" / "uid").iterdir() if path.is_file()}
    linked = files(build("build_wheel", tree, tmp_path))
    assert linked == modules | data | own
    shutil.copytree(tree, tmp_path / "unlinked", symlinks=True)
    for path in (tmp_path / "unlinked" / "src" / "uid").iterdir():
        if path.is_symlink():
            path.unlink()
    assert files(build("build_wheel", tmp_path / "unlinked", tmp_path / "unlinked")) == linked
    sdist = build("build_sdist", tmp_path / "unlinked", tmp_path)
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "sdist")
    (unpacked,) = (tmp_path / "sdist").iterdir()
    assert files(build("build_wheel", unpacked, unpacked)) == linked


def test_the_runtime_is_free_of_torch() -> None:
    names = [
        "uid." + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for folder in ("bundles", "engines", "runtime", "serve")
        for path in (ROOT / folder).rglob("*.py")
    ]
    code = f"""
import importlib, sys
sys.path.append({str(Path(__file__).parent)!r})  # what stands in for the module that only Triton's processes have
for name in {names!r}:
    importlib.import_module(name)
print([name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_export_without_torch_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from uid.export.cli import main; main()"
    words = [sys.executable, "-c", code, "random", "tiny", str(tmp_path / "tiny")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"Error: torch is not installed: {how_to_install('export')}\n")


def test_what_ships_fits_a_wheel() -> None:
    assert sum(path.stat().st_size for path in built_in().iterdir()) < 30e6
    assert (built_in() / "README.md").is_file()
