"""How to install what an extra brings, in words that can be pasted as they are.

The package may have come from a clone, from a wheel or from an sdist, and its environment may not be the active one. So
the text names the libraries themselves, and this very Python.
"""

import importlib.util
import re
import shlex
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "uid-runtime"
# PyPI's Linux wheels of torch bring gigabytes of CUDA, which a machine without an NVIDIA GPU cannot use.
CPU_TORCH = "--extra-index-url https://download.pytorch.org/whl/cpu"


def how_to_install(extra: str) -> str:
    """The command that installs what an extra brings into the environment of this Python."""
    command = install_command(requirements(extra))
    # Both builds of onnxruntime are installed then, and write to one folder.
    return f"{command} && {replace_onnxruntime()}" if extra == "cuda" else command


def install_command(wanted: list[str]) -> str:
    """The command that installs distributions, such as "av>=17", into the environment of this Python."""
    index = f" {CPU_TORCH}" if needs_cpu_torch(wanted) else ""
    return f"{_pip('install')} {' '.join(_quoted(one) for one in wanted)}{index}"


def replace_onnxruntime() -> str:
    """The command that puts onnxruntime-gpu in the place of onnxruntime."""
    both = f"{_pip('uninstall')} onnxruntime onnxruntime-gpu"
    return f"{both} && {install_command(['onnxruntime-gpu'])}"


def requirements(extra: str) -> list[str]:
    """What an extra asks for, with what it takes over from other extras.

    Where no installed version of this package has the extra, it is that of the clone that runs.
    """
    try:
        listed = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        listed = []
    own = [
        text.split(";")[0].strip() for text in listed if re.search(rf"""extra == ["']{re.escape(extra)}["']""", text)
    ]
    found: list[str] = []
    for text in own:
        nested = re.fullmatch(rf"{DISTRIBUTION}\[(.+)\]", text)
        found += [one for name in nested[1].split(",") for one in requirements(name)] if nested else [text]
    clone = Path(__file__).resolve().parents[2]
    is_clone = (clone / "pyproject.toml").is_file()
    return list(dict.fromkeys(found)) or (["-e", f"{clone}[{extra}]"] if is_clone else [f"{DISTRIBUTION}[{extra}]"])


def needs_cpu_torch(wanted: list[str]) -> bool:
    """Whether torch is among the distributions, and would come with a CUDA that nothing here can use."""
    has_torch = any(re.match(r"torch(\W|$)|.*\[(export|train|metrics)", one) for one in wanted)
    return has_torch and sys.platform == "linux" and shutil.which("nvidia-smi") is None


def _pip(verb: str) -> str:
    """The beginning of a command of this Python's pip, or of uv where there is no pip."""
    python = _quoted(sys.executable or "python3")
    if importlib.util.find_spec("pip") is None:
        return f"uv pip {verb} --python {python}"
    # An externally managed Python refuses; who installed this package there has decided that it may be written to.
    managed = sys.prefix == sys.base_prefix and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()
    yes = " --yes" if verb == "uninstall" else ""
    return f"{python} -m pip {verb}{yes}{' --break-system-packages' if managed else ''}"


def _quoted(text: str) -> str:
    """For a shell; also for Windows' own, which knows double quotes alone."""
    if sys.platform == "win32":
        return f'"{text}"' if re.search(r"[^\w.\\:-]", text) else text
    return shlex.quote(text)
