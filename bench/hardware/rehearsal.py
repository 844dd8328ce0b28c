"""``python -m uid.bench.hardware.rehearsal OUT``: the four calls on a CPU, as they would be made on a lent GPU.

What would travel for each call is put into a folder that holds nothing else, and the very command lines run there, with
``--rehearse``. A kit is a folder with what that machine lacks; its part-01/unpack.sh puts it into ``SITE``.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from uid.bench.hardware.__main__ import NAMES
from uid.bench.hardware.calls import EXPORT
from uid.bundles.declarations import BUILT_IN
from uid.command import Command
from uid.errors import InputError

SITE = "/tmp/site"  # noqa: S108  (on a machine that nobody else uses)
LONGEST_LINE = 2000  # characters
LARGEST = 62  # MiB


@dataclass(frozen=True)
class UploadSize:
    """One call: what it carries beside the working tree, and what to type."""

    name: str
    carried: tuple[str, ...]  # paths below the repository's root, which git ignores
    line: str


def transfers(kits: dict[str, str], model: str, seconds: float) -> list[UploadSize]:
    """All calls. The built-in ``model`` goes along with the second, beside whose predecessor's kit it has no room."""
    made = []
    for name in NAMES:
        kit = kits.get(name)
        unpack = f"bash {kit}/part-01/unpack.sh {kit} && " if kit else ""
        line = f"{unpack}PYTHONPATH=$PWD/src:{SITE} python3 -m uid.bench.hardware $OUT {name}"
        carried = [*([kit] if kit else []), *([model] if name == "rtx" else [])]
        if name == "pytorch":
            line += f" --seconds {seconds:g}"  # what is left
        if name != EXPORT:
            made.append(UploadSize(name, tuple(carried), line))
    return made


def travels(root: Path, carried: Sequence[str]) -> list[Path]:
    """The files that are sent: what git tracks or does not ignore, and all below the carried paths."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    for path in carried:
        if not (root / path).exists():
            raise InputError(f"{root / path} is to be carried and is not there")
        names += [file.relative_to(root) for file in sorted((root / path).rglob("*")) if not file.is_dir()]
    return [name for name in dict.fromkeys(names) if os.path.lexists(root / name)]


def check(transfer: UploadSize, root: Path) -> str:
    """What travels, in words. Raises ``InputError`` where it is too much."""
    size = sum((root / name).lstat().st_size for name in travels(root, transfer.carried)) / (1 << 20)
    words = f"{transfer.name}: {size:.1f} MiB travel, a line of {len(transfer.line)} characters"
    if size > LARGEST or len(transfer.line) >= LONGEST_LINE:
        raise InputError(f"{words}; at most {LARGEST} MiB and {LONGEST_LINE} characters may")
    return words


def send(transfer: UploadSize, root: Path, tree: Path) -> None:
    """Put what travels into a folder. What an earlier call carried is gone then."""
    shutil.rmtree(tree, ignore_errors=True)
    for name in travels(root, transfer.carried):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, tree / name, follow_symlinks=False)


def rehearse(transfer: UploadSize, tree: Path, out: Path, python: Path, work: Path) -> int:
    """Run a call's line in the folder, where ``python3`` is the given one; its exit status."""
    home = out / "home"
    home.mkdir(parents=True, exist_ok=True)
    there = {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(home), "OUT": str(out)}
    line = f"{transfer.line} --rehearse --work {work}"
    return subprocess.run(["bash", "-c", line], cwd=tree, env=there, check=False).returncode


@click.command(cls=Command, extra="bench")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False, resolve_path=True))
@click.option("--kit", metavar="FOLDER", help="What the machine lacks for the first call and all that follow it.")
@click.option("--ort-kit", metavar="FOLDER", help="The same for ort: onnxruntime-gpu.")
@click.option("--seconds", default=120.0, show_default=True, help="That will be left for the last call.")
@click.option("--python", type=click.Path(path_type=Path), help="The Python to rehearse with.  [default: this one]")
@click.option("--only-show", is_flag=True, help="What travels and what to type, and no more.")
@click.pass_context
def main(
    ctx: click.Context,
    out: Path,
    kit: str | None,
    ort_kit: str | None,
    seconds: float,
    python: Path | None,
    only_show: bool,
) -> None:
    """Say what would travel for each call and what to type, and run it all on this CPU, from the folder OUT/tree."""
    root, sound = Path.cwd(), True
    kits = {name: folder for name, folder in (("first", kit), ("ort", ort_kit)) if folder}
    calls = transfers(kits, os.path.relpath(BUILT_IN.resolve() / "edge", root), seconds)
    for transfer in calls:
        click.echo(f"{check(transfer, root)}\n    carried: {', '.join(transfer.carried) or '-'}\n    {transfer.line}")
    for transfer in [] if only_show else calls:
        click.echo(f"== {transfer.name}")
        send(transfer, root, out / "tree")
        code = rehearse(transfer, out / "tree", out, python or Path(sys.executable), out / "work")
        click.echo(f"== {transfer.name}: exit status {code}")
        sound &= code == 0
    ctx.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
