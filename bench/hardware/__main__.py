"""``python -m uid.bench.hardware OUT CALL``: what a machine with an NVIDIA GPU can tell of this project.

Four calls, each within a budget of minutes, in the order of truth per minute: first, rtx, ort, pytorch. Each leaves
OUT/CALL.tar.gz with its logs and rows, also when it is cut off. The model at full size is exported behind the first
call, and goes on between calls. To be run from the repository's root. Not yet run on a machine with a GPU.
"""

import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from uid.bench.hardware.calls import EXPORT, GPU, REHEARSAL, CallPlan
from uid.bench.hardware.run import Supervisor, held, in_background, pack
from uid.bundles.manifest import MANIFEST

NAMES = tuple(CallPlan(Path(), GPU).calls())


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.argument("name", metavar="CALL", type=click.Choice(NAMES))
@click.option("--seconds", type=click.FloatRange(min=1), help="The call's budget.  [default: 180 for first, else 240]")
@click.option("--work", type=click.Path(path_type=Path), help="For what is large.  [default: a folder in /tmp]")
@click.option("--rehearse", is_flag=True, help="On a CPU, with a tiny model: does every command run here?")
@click.pass_context
def main(ctx: click.Context, out: Path, name: str, seconds: float | None, work: Path | None, rehearse: bool) -> None:
    """Make one of the calls that measure this project on a GPU: first, rtx, ort or pytorch, in this order.

    Exit status 1: a command failed or took too long. What no time was left for is told.
    """
    work = (work or Path(tempfile.gettempdir()) / "uid-hardware").resolve()
    plan, lock = CallPlan(work, REHEARSAL if rehearse else GPU), work / "export.lock"
    if name != EXPORT and not (plan.full.bundle / MANIFEST).exists():
        words = [sys.executable, "-m", "uid.bench.hardware", str(work), EXPORT, "--work", str(work)]
        in_background([*words, *(["--rehearse"] if rehearse else [])], lock)
    results, call = plan.results(name), plan.calls()[name]
    shutil.rmtree(results, ignore_errors=True)
    kept = list(dict.fromkeys([results, plan.results(EXPORT)]))
    behind = {command.makes for command in plan.export()} if name != EXPORT else set()
    supervisor = Supervisor(
        results, lambda: pack(kept, out / f"{name}.tar.gz"), lambda path: path in behind and held(lock)
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended, and what there is packed
    try:
        sound = supervisor.run(name, call, plan.scale.patience * seconds if seconds else call.seconds)
    finally:
        supervisor.pack()
    ctx.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
