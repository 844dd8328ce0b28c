"""All that a machine with an NVIDIA GPU can tell of this project: ``python -m uid.bench.hardware OUT [PHASE]...``

To be run from the repository's root. Phases run in the order given, or all of them in the order in which they matter.
Each has a folder in OUT, with what its commands print and the rows that they write; a command that fails or takes too
long ends its phase, and the next one begins. ``OUT/summary.txt`` gets a line after every command. No command may take
more than ten minutes. What ``export`` and ``engines`` make is in --work, and is not made twice.

It has not yet run on a machine with a GPU.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click

MODULES = {"uid-export": "uid.export.cli", "uid-bench": "uid.bench.cli", "uid-run": "uid.runtime.cli"}
ON_A_GPU = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
ASK_RTX = "from uid.bench.hardware import ask_rtx; ask_rtx()"
ASK_BACKEND = "import sys; from uid.engines import probe; sys.exit(not probe(sys.argv[1]).available)"
WITHOUT_BACKEND = ("device", "tests")  # phases that tell something where no backend works
SIZES = {"512": "512x512", "720p": "720x1280"}


@dataclass(frozen=True)
class Command:
    """One command, and the seconds that it may take."""

    words: tuple[str, ...]
    limit: int

    def argv(self) -> list[str]:
        """What to start: commands of this project with this Python, others as they are."""
        name, *rest = self.words
        if name not in MODULES:
            return list(self.words)
        return [sys.executable, "-c", f"from {MODULES[name]} import main; main()", *rest]


def phases(out: Path, work: Path, preset: str, backends: Sequence[str]) -> Mapping[str, Sequence[Command]]:
    """Every phase's commands. ``backends``: those to measure; ``preset``: of the random checkpoint, in ``work``."""
    checkpoint, bundle = work / "checkpoint", work / "bundle"
    made = ("-m", str(bundle), "--checkpoint", str(checkpoint))
    named = [word for name in backends for word in ("--backend", name)]
    builders = [name for name in backends if name.startswith("tensorrt")]

    def latency(phase: str, *words: str) -> Command:
        return Command(("uid-bench", "latency", *words, "-o", str(out / phase / "rows.jsonl")), 580)

    def sizes(phase: str, size: str) -> Sequence[Command]:
        how = ("--half", "--compile", "--repeats", "5", "--warm-up", "1")
        return [latency(phase, *made, "--size", size, *how, *named)]

    export = [
        Command(("uid-export", "random", preset, str(checkpoint), "--half"), 120),
        Command(
            ("uid-export", "bundle", str(checkpoint), "-o", str(bundle), "--precision", "fp16", "--image-steps", "1"),
            580,
        ),
    ]
    return {
        "device": [
            Command(("nvidia-smi",), 30),
            Command((sys.executable, "-m", "pip", "list"), 60),
            Command(("uid-run", "doctor"), 180),
            Command((sys.executable, "-c", ASK_RTX), 120),
        ],
        "tests": [Command((sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "--tb=short"), 580)],
        "edge": [latency("edge", "--checkpoint", "checkpoints/edge", "--half", *both_sizes(), *named)],
        "export": [] if (bundle / "manifest.json").exists() else export[(checkpoint / "model_index.json").exists() :],
        # An engine for each size: several profiles in one would hold the weights several times.
        "engines": [
            Command(("uid-export", "build", str(bundle), "--backend", name, "--profile", size), 290)
            for size in SIZES.values()
            for name in builders
        ],
        "512": sizes("512", SIZES["512"]),
        "720p": sizes("720p", SIZES["720p"]),
        "parity": [Command(("uid-bench", "parity", *made, "--size", SIZES["512"], *named), 580)],
    }


def both_sizes() -> list[str]:
    """Options for all sizes in one command."""
    return [word for size in SIZES.values() for word in ("--size", size)]


def run(phase: str, commands: Sequence[Command], out: Path) -> None:
    """Run a phase's commands, and tell what came of each that was started."""
    folder = out / phase
    folder.mkdir(parents=True, exist_ok=True)
    for number, command in enumerate(commands, 1):
        words = " ".join(command.words)
        log = folder / f"{number}.log"
        started = time.monotonic()
        with log.open("w", encoding="utf-8") as file:
            print(f"$ {words}", file=file, flush=True)
            problem = outcome(command, file)
        line = f"{phase} {number}: {problem or 'ok'}, {time.monotonic() - started:.0f} s: {words}"
        click.echo(line)
        with (out / "summary.txt").open("a", encoding="utf-8") as file:  # now: the whole run may be cut off
            file.write(f"{line}\n")
        if problem:
            last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
            click.echo("\n".join(f"    {said}" for said in last))
            break


def outcome(command: Command, log: IO[str]) -> str:
    """Run a command into an open file; what went wrong, or ""."""
    try:
        process = subprocess.Popen(command.argv(), stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    except OSError as error:
        return f"did not start: {error.strerror}"
    try:
        code = process.wait(command.limit)
    except subprocess.TimeoutExpired:
        return f"took more than {command.limit} s"
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children too, which may hold the GPU's memory
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"exit status {code}" if code else ""


def working() -> list[str]:
    """The backends on a GPU that work here; each is tried in a process of its own, which may crash."""
    return [name for name in ON_A_GPU if subprocess.run([sys.executable, "-c", ASK_BACKEND, name]).returncode == 0]


def ask_rtx() -> None:
    """Print, for everything that TensorRT-RTX can build a small engine for, whether such an engine loads here.

    Its documentation names no compute capability 9.0 or 10.0.
    """
    from uid.engines import PROBE
    from uid.engines.tensorrt import open_library
    from uid.engines.tensorrt_build import complaints, make_builder, parse

    library = open_library("tensorrt-rtx")
    runtime = library.module.Runtime(library.logger)
    known = library.module.ComputeCapability.__members__
    for name in ("default", *(name for name in known if name != "NONE")):
        library.logger.errors.clear()
        builder = make_builder(library)
        network, parser = parse(library, builder, PROBE)
        config = builder.create_builder_config()
        if name in known:
            config.num_compute_capabilities = 1
            config.set_compute_capability(known[name], 0)
        plan = builder.build_serialized_network(network, config)
        del parser
        if plan is None:
            click.echo(f"{name}: not built: {complaints(library)}")
            continue
        validity = runtime.get_engine_validity(memoryview(plan)[: runtime.engine_header_size])
        loads = runtime.deserialize_cuda_engine(plan) is not None
        click.echo(f"{name}: {validity}; {'loads' if loads else 'does not load: ' + complaints(library)}")


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.argument("names", nargs=-1, metavar="[PHASE]...")
@click.option("--work", type=click.Path(path_type=Path), help="For what is large.  [default: a folder in /tmp]")
@click.option("--preset", default="sd15", show_default=True, help="Of the random checkpoint; tiny, to try this out.")
@click.option("--backend", "backends", multiple=True, help="Repeat for more.  [default: all on a GPU that work]")
def main(out: Path, names: Sequence[str], work: Path | None, preset: str, backends: Sequence[str]) -> None:
    """Run the tests and the measurements that need a GPU, and write what comes of them to the folder OUT."""
    work = work or Path(tempfile.gettempdir()) / "uid-hardware"
    work.mkdir(parents=True, exist_ok=True)
    found = list(backends) or working()
    known = phases(out, work, preset, found)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.UsageError(f"unknown phase {unknown[0]!r}; expected some of {', '.join(known)}")
    click.echo(f"backends: {', '.join(found) or 'none works on a GPU here; `uid-run doctor` says why'}")
    chosen = names or (known if found else WITHOUT_BACKEND)
    for name in chosen:
        run(name, known[name], out)


if __name__ == "__main__":
    main()
