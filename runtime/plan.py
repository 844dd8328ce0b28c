"""A plan: one mode of a bundle at one size, every buffer allocated and every launch bound.

Components are wired by tensor name: what one writes, a later one reads. A few names are the host's:

    image, blur_image   pictures in, (1, 3, H, W) float32 in [0, 1]
    latent              the loop's state: noise at first, and the result when the loop ends
    latent_next         what a step writes; it is the next step's ``latent``
    timestep, alpha_bar, alpha_bar_prev, guidance_scale   a step's numbers, (1,) float32
    output              the picture out, (1, 3, H, W) float32 in [0, 1]

The two latent buffers take turns, so that a step copies nothing: even steps read the first and write the second, odd
steps the other way round.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np

from uid.engines import Array, Backend, Buffer, Engine, TensorSpec
from uid.errors import ModelError
from uid.runtime.bundle import Component
from uid.runtime.schedule import StepRow

Launch = Callable[[], None]

STATE, NEXT, OUTPUT = "latent", "latent_next", "output"
STEP_NUMBERS = ("timestep", "alpha_bar", "alpha_bar_prev", "guidance_scale")


def resolve(shape: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A symbolic shape in numbers: (1, 4, "height/8") with sizes {"height": 64} is (1, 4, 8)."""

    def dimension(symbol: int | str) -> int:
        if isinstance(symbol, int):
            return symbol
        name, _, divisor = symbol.partition("/")
        if name not in sizes:
            raise ModelError(f"the manifest uses dimension {symbol!r}; this plan knows {sorted(sizes)}")
        return sizes[name] // int(divisor or 1)

    return tuple(dimension(symbol) for symbol in shape)


class Plan:
    """Buffers and launches for one list of components at one set of sizes; run it as often as you like."""

    def __init__(
        self,
        backend: Backend,
        parts: Sequence[tuple[Component, Engine]],
        sizes: Mapping[str, int],
        constants: Mapping[str, Array],
    ) -> None:
        """Allocate a buffer for every tensor name, write the constants, and bind every engine.

        Raises ``ModelError`` when a component reads what no earlier one writes, or a graph differs from its
        declaration.
        """
        check_wiring([part for part, _ in parts], set(constants))
        self.buffers: dict[str, Buffer] = {}
        for part, engine in parts:
            check_declaration(part, engine)
            for spec in (*part.inputs, *part.outputs):
                if spec.name not in self.buffers:
                    self.buffers[spec.name] = backend.allocate(resolve(spec.shape, sizes), spec.dtype)
        for name, value in constants.items():
            self.buffers[name].write(value)
        swapped = {**self.buffers, STATE: self.buffers[NEXT], NEXT: self.buffers[STATE]}
        self.launches = {
            stage: [[engine.bind(buffers) for part, engine in parts if part.stage == stage] for buffers in turns]
            for stage, turns in {
                "prepare": [self.buffers],
                "step": [self.buffers, swapped],
                "finish": [self.buffers, swapped],
            }.items()
        }
        self.states = (self.buffers[STATE], self.buffers[NEXT])
        self.prepared = [spec.name for part, _ in parts if part.stage == "prepare" for spec in part.outputs]

    def run(
        self,
        images: Mapping[str, Array],
        noise: Array,
        rows: Sequence[StepRow],
        guidance: float,
        on_step: Callable[[], None],
    ) -> tuple[Array, dict[str, float]]:
        """Prepare, all steps, finish. Returns the output picture and the seconds spent in each stage.

        ``on_step`` is called after every step. Raises ``ModelError``, naming the step, when the result is not finite.
        """
        for name, image in images.items():
            self.buffers[name].write(image)
        marks = [time.perf_counter()]
        self.launch("prepare", 0)
        marks.append(time.perf_counter())
        self.loop(noise, rows, guidance, on_step)
        latent = self.states[len(rows) % 2].read()
        marks.append(time.perf_counter())
        if not np.isfinite(latent).all():
            raise ModelError(self.find_non_finite(noise, rows, guidance))
        self.launch("finish", len(rows) % 2)
        output = self.buffers[OUTPUT].read()
        marks.append(time.perf_counter())
        if not np.isfinite(output).all():
            raise ModelError("the model wrote NaN or infinity in its finish stage; try an fp32 bundle")
        seconds = dict(zip(("prepare", "step", "finish"), np.diff(marks).tolist(), strict=True))
        return output, seconds

    def launch(self, stage: str, turn: int) -> None:
        """Run the components of a stage in order."""
        for run in self.launches[stage][turn]:
            run()

    def loop(self, noise: Array, rows: Sequence[StepRow], guidance: float, on_step: Callable[[], None]) -> None:
        """All denoising steps; the result lies in ``states[len(rows) % 2]``."""
        self.states[0].write(noise)
        for i, row in enumerate(rows):
            for name, value in {**asdict(row), "guidance_scale": guidance}.items():
                if name in self.buffers:
                    self.buffers[name].write(np.array([value], dtype=np.float32))
            self.launch("step", i % 2)
            on_step()

    def find_non_finite(self, noise: Array, rows: Sequence[StepRow], guidance: float) -> str:
        """Run again, looking at every step, and say where NaN or infinity first appears.

        The loop itself never looks, since looking costs a synchronisation per step on a device.
        """
        advice = "try an fp32 bundle, or a lower --guidance"
        for name in self.prepared:
            if not np.isfinite(self.buffers[name].read()).all():
                return f"the model wrote NaN or infinity to {name!r} before the first step; {advice}"
        for count in range(1, len(rows) + 1):
            self.loop(noise, rows[:count], guidance, lambda: None)
            if not np.isfinite(self.states[count % 2].read()).all():
                timestep = rows[count - 1].timestep
                return (
                    f"the model wrote NaN or infinity in step {count} of {len(rows)} (timestep {timestep:g}); {advice}"
                )
        return f"the model wrote NaN or infinity once and not when run again; {advice}"


def check_wiring(parts: Sequence[Component], constants: set[str]) -> None:
    """Every input must be a host's name, a constant, or written before; the loop and the output must be there."""
    known = {"image", "blur_image", STATE, *STEP_NUMBERS} | constants
    for part in parts:
        for spec in part.inputs:
            if spec.name not in known:
                raise ModelError(f"component {part.name!r} reads {spec.name!r}, which nothing before it writes")
        known |= {spec.name for spec in part.outputs}
    for name in (NEXT, OUTPUT):
        if name not in known:
            raise ModelError(f"no component writes {name!r}; export the bundle again")


def check_declaration(part: Component, engine: Engine) -> None:
    """The graph's own names, dtypes and ranks must be the manifest's."""
    for declared, actual in ((part.inputs, engine.inputs), (part.outputs, engine.outputs)):
        want = {spec.name: signature(spec) for spec in declared}
        got = {spec.name: signature(spec) for spec in actual.values()}
        if want != got:
            raise ModelError(f"component {part.name!r} has tensors {got}, its manifest declares {want}")


def signature(spec: TensorSpec) -> str:
    """Dtype and rank, as text for comparison and messages."""
    return f"{spec.dtype}[{len(spec.shape)} dimensions]"
