"""What is told to be installed can be: it names this very Python, and libraries that an index has."""

import importlib.util
import shlex
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from uid import install

LISTED = [
    "click>=8.1",
    'av>=17; extra == "video"',
    'torch>=2.9; extra == "export"',
    "accelerate>=1.0; extra == 'train'",
    'uid-runtime[export,video]; extra == "train"',
    'onnxruntime-gpu[cuda,cudnn]>=1.23; extra == "cuda"',
]


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package had come from a wheel, with these requirements, on a machine without a GPU."""
    monkeypatch.setattr(metadata, "requires", lambda name: LISTED)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "platform", "linux")


def words_of(command: str) -> list[str]:
    words = shlex.split(command)
    assert words[:4] == [sys.executable, "-m", "pip", "install"]
    return words[4:]


@pytest.mark.usefixtures("wheel")
def test_libraries_are_named_with_the_index_that_fits() -> None:
    assert words_of(install.how_to_install("video")) == ["av>=17"]
    words = words_of(install.how_to_install("train"))
    assert words == ["accelerate>=1.0", "torch>=2.9", "av>=17", *shlex.split(install.CPU_TORCH)]
    for word in words[:3]:
        Requirement(word)
    assert "--extra-index-url" not in install.install_command(["torchmetrics>=1.8"])


@pytest.mark.usefixtures("wheel")
def test_a_machine_with_a_gpu_gets_torch_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert words_of(install.how_to_install("export")) == ["torch>=2.9"]


@pytest.mark.usefixtures("wheel")
def test_of_two_builds_in_one_folder_one_is_left() -> None:
    first, second, third = install.how_to_install("cuda").split(" && ")
    assert words_of(first) == ["onnxruntime-gpu[cuda,cudnn]>=1.23"]
    assert shlex.split(second)[3:] == ["uninstall", "--yes", "onnxruntime", "onnxruntime-gpu"]
    assert words_of(third) == ["onnxruntime-gpu"]


@pytest.mark.usefixtures("wheel")
def test_an_environment_without_pip_or_one_that_is_managed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "EXTERNALLY-MANAGED").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert "--break-system-packages" not in install.how_to_install("video"), "a virtual environment is one's own"
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert words_of(install.how_to_install("video")) == ["--break-system-packages", "av>=17"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert install.how_to_install("video").startswith(f"uv pip install --python {sys.executable}")


def test_a_clone_that_is_not_installed_is_named_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_installed)
    editable, clone = words_of(install.how_to_install("video"))
    assert (editable, clone) == ("-e", f"{Path(__file__).resolve().parents[1]}[video]")
    monkeypatch.setattr(install, "__file__", "/usr/lib/python3/site-packages/uid/install.py")
    assert words_of(install.how_to_install("video")) == ["uid-runtime[video]"]
