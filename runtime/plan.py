"""Plans: a plan is one mode of a bundle at one size and number of steps, with every buffer allocated and every launch
bound.

Components are wired by tensor name: what one writes, a later one reads. A few names are the host's:

    image, blur_image   pictures in, (B, 3, H, W) float32 in [0, 1]; B is 1 unless the bundle has a batch
    latent              the loop's state: noise at first, and the result when the loop ends
    latent_next         what a step writes; it is the next step's ``latent``
    timestep, alpha_bar, alpha_bar_prev   a step's numbers, (1,) float32; a step graph need not take them all
    guidance_scale      (1,) float32
    output              the picture out, (B, 3, H, W) float32 in [0, 1]

and of ``runtime/pixels.py``, which some backends have in front and at the end: ``image_pixels``, ``output_pixels``,
``output_mean``.

Between a picture's upload and its download nothing allocates, copies or writes from the host, so that a backend can
capture all of it as one: every step has its launches bound to numbers of its own, which are written when the plan is
made, and two latent buffers take turns: even steps read the first and write the second, odd steps the other way round.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial

import numpy as np

from uid.engines import Array, Backend, Buffer, Engine, Launch, Progress, Seconds, TensorSpec, Work
from uid.errors import ModelError, OutOfMemoryError
from uid.runtime.bundle import STEP, STEPS, Bundle, Component
from uid.runtime.pixels import GRAPHS, IMAGE_PIXELS, OUTPUT_MEAN, PIXELS_IN, PIXELS_OUT
from uid.runtime.schedule import Step, StepRow

Part = tuple[Component, Engine]
Tensors = Mapping[str, Buffer]

BATCH = "batch"  # the symbol of a graph's first dimension, if it runs several pictures of one size together
STATE, NEXT, OUTPUT, GUIDANCE = "latent", "latent_next", "output", "guidance_scale"
PLANS_KEPT = 2  # a picture's own size and its tiles', or two sizes in turn
ROW_NUMBERS = tuple(field.name for field in fields(StepRow))


def resolve(shape: Sequence[int | str], sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A symbolic shape in numbers: ("batch", 4, "height/8") with sizes {"height": 64} is (1, 4, 8).

    A batch is 1 where ``sizes`` do not tell.
    """
    known = {BATCH: 1, **sizes}

    def dimension(symbol: int | str) -> int:
        if isinstance(symbol, int):
            return symbol
        name, _, divisor = symbol.partition("/")
        if name not in known:
            raise ModelError(f"the manifest uses dimension {symbol!r}; this plan knows {sorted(known)}")
        return known[name] // int(divisor or 1)

    return tuple(dimension(symbol) for symbol in shape)


class Plan:
    """Buffers and launches for one list of components at one set of sizes; run it as often as you like."""

    def __init__(
        self,
        backend: Backend,
        parts: Sequence[Part],
        sizes: Mapping[str, int],
        constants: Mapping[str, Array],
        steps: Sequence[Step],
    ) -> None:
        """Allocate a buffer for every tensor, write constants and the steps' numbers, bind and capture every launch.

        ``steps`` are in the order that they run in. Raises ``ModelError`` when a component reads what no earlier one
        writes, or a graph differs from its declaration; ``OutOfMemoryError`` when the backend has no room.
        """
        check_wiring([part for part, _ in parts], set(constants))
        for part, engine in parts:
            check_declaration(part, engine)
        self.backend, self.rows = backend, [step.row for step in steps]
        self.parts = parts
        self.buffers = {
            name: backend.allocate(resolve(spec.shape, sizes), spec.dtype)
            for name, spec in {s.name: s for part, _ in parts for s in (*part.inputs, *part.outputs)}.items()
            if name not in ROW_NUMBERS
        }
        for name, value in constants.items():
            self.buffers[name].write(value)
        self.states = (self.buffers[STATE], self.buffers[NEXT])
        self.numbers = [dict(self.write_row(row, parts)) for row in self.rows]
        self.work = Work(
            prepare=bind(parts, "prepare", self.buffers),
            step=[in_order(bind(parts, step.stage, turn)) for step, turn in zip(steps, self.turns(), strict=True)],
            finish=bind(parts, "finish", {**self.buffers, STATE: self.result}),
            rest=partial(rest, parts),
        )
        # After all are bound: only then is it known how much scratch memory serves every engine.
        self.replay = backend.capture(self.work)
        self.prepared = [spec.name for part, _ in parts if part.stage == "prepare" for spec in part.outputs]

    @property
    def result(self) -> Buffer:
        """The latent that the last step writes."""
        return self.states[len(self.rows) % 2]

    @property
    def captured(self) -> bool:
        """Whether the backend runs a picture as CUDA graphs, and no launch by itself."""
        return bool(getattr(self.replay, "captured", True))

    @property
    def nbytes(self) -> int:
        """Size of the buffers in bytes; the steps' few numbers are not counted."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    def write_row(self, row: StepRow, parts: Sequence[Part]) -> Iterator[tuple[str, Buffer]]:
        """Buffers of their own, written, for those of a step's numbers that its components read."""
        declared = {spec.name for part, _ in parts for spec in part.inputs}
        for name in ROW_NUMBERS:
            if name in declared:
                buffer = self.backend.allocate((1,), np.dtype(np.float32))
                buffer.write(number(getattr(row, name)))
                yield name, buffer

    def turns(self) -> Iterator[Tensors]:
        """What each step's names stand for."""
        for i, numbers in enumerate(self.numbers):
            here, there = self.states[i % 2], self.states[(i + 1) % 2]
            yield {**self.buffers, **numbers, STATE: here, NEXT: there}

    def run(
        self,
        inputs: Mapping[str, Array],
        noise: Array,
        guidance: float,
        progress: Progress,
        output: str = OUTPUT,
    ) -> tuple[Array, Seconds]:
        """Prepare, all steps, finish. Returns the tensor called ``output`` and the seconds spent in each stage.

        ``progress`` is told how many steps are done: after each, or only after the last where the backend runs them in
        one piece. Raises ``ModelError``, naming the step, when the result is not finite.
        """
        for name, array in inputs.items():
            self.buffers[name].write(array)
        if GUIDANCE in self.buffers:
            self.buffers[GUIDANCE].write(number(guidance))
        self.states[0].write(noise)
        seconds = self.replay(progress)
        if not np.isfinite(self.result.read()).all():
            raise ModelError(self.find_non_finite(noise))
        picture = self.buffers[output].read()
        telling = picture if output == OUTPUT else self.buffers[OUTPUT_MEAN].read()
        if not np.isfinite(telling).all():
            raise ModelError("the model wrote NaN or infinity in its finish stage; try an fp32 bundle")
        return picture, seconds

    def find_non_finite(self, noise: Array) -> str:
        """Run the steps again one by one, and say where NaN or infinity first appears.

        The loop itself never looks, since looking costs a synchronisation per step on a device.
        """
        advice = "try an fp32 bundle, or a lower --guidance"
        for name in self.prepared:
            if not np.isfinite(self.buffers[name].read()).all():
                return f"the model wrote NaN or infinity to {name!r} before the first step; {advice}"
        self.states[0].write(noise)
        for i, (row, step) in enumerate(zip(self.rows, self.work.step, strict=True), 1):
            step()
            if not np.isfinite(self.states[i % 2].read()).all():
                where = f"step {i} of {len(self.rows)} (timestep {row.timestep:g})"
                return f"the model wrote NaN or infinity in {where}; {advice}"
        return f"the model wrote NaN or infinity once and not when run again; {advice}"


class Plans:
    """The plans of a bundle on a backend: made when first needed, and the most recent ones kept."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle, self.backend = bundle, backend
        self.engines: dict[str, list[Engine]] = {}  # by component: one, or several for different sizes
        self.kept: OrderedDict[tuple[object, ...], Plan] = OrderedDict()

    def get(self, mode: str, sizes: Mapping[str, int], steps: Sequence[Step], pixels: bool) -> Plan:
        """The plan for a mode at these sizes and steps; ``pixels``: with uint8 in, and out beside floats."""
        key = (mode, *sorted(sizes.items()), *steps, pixels)
        if key not in self.kept:
            while len(self.kept) >= PLANS_KEPT:
                self.kept.popitem(last=False)
            try:
                self.kept[key] = self.make(mode, sizes, steps, pixels)
            except OutOfMemoryError:
                if not self.kept:
                    raise
            if key not in self.kept:  # the others stood in its way
                self.clear()
                self.kept[key] = self.make(mode, sizes, steps, pixels)
        self.kept.move_to_end(key)
        limit = self.backend.memory_limit
        while limit and len(self.kept) > 1 and sum(plan.nbytes for plan in self.kept.values()) > limit:
            self.kept.popitem(last=False)
        return self.kept[key]

    def make(self, mode: str, sizes: Mapping[str, int], steps: Sequence[Step], pixels: bool) -> Plan:
        """A new plan; loads the engines that it needs."""
        task = self.bundle.modes[mode]
        stages = {"prepare", "finish"} | {step.stage for step in steps}
        components = [self.bundle.components[name] for name in task.components]
        parts = [self.part(component, sizes) for component in components if component.stage in stages]
        if pixels:
            parts = [self.pixels(PIXELS_IN, sizes), *parts, self.pixels(PIXELS_OUT, sizes)]
        constants = {tensor: self.bundle.constants[key] for tensor, key in task.constants.items()}
        return Plan(self.backend, parts, sizes, constants, steps)

    def part(self, component: Component, sizes: Mapping[str, int]) -> Part:
        """A component of the bundle with an engine that covers ``sizes``."""
        load = partial(self.backend.load_component, self.bundle, component, sizes)
        return component, self.engine(f"component {component.name}", sizes, load)

    def pixels(self, component: Component, sizes: Mapping[str, int]) -> Part:
        """A component of ``runtime/pixels.py`` with its engine."""
        load = partial(self.backend.load, GRAPHS / component.file)
        return component, self.engine(component.file, sizes, load)

    def engine(self, name: str, sizes: Mapping[str, int], load: Callable[[], Engine]) -> Engine:
        """The engine kept under ``name`` that covers ``sizes``, or a new one.

        A new one takes the place of those that no plan kept uses: each holds the weights.
        """
        loaded = self.engines.get(name, [])
        for engine in loaded:
            if engine.covers(sizes):
                return engine
        used = {id(engine) for plan in self.kept.values() for _, engine in plan.parts}
        self.engines[name] = [engine for engine in loaded if id(engine) in used]
        del loaded
        self.engines[name].append(load())
        return self.engines[name][-1]

    def clear(self) -> None:
        """Forget all plans, and so free their buffers; engines stay."""
        self.kept.clear()


def rest(parts: Sequence[Part], stage: str) -> None:
    """Tell the engines of a stage that others run now."""
    for part, engine in parts:
        if part.stage in (STEPS if stage == STEP else (stage,)):
            engine.rest()


def number(value: float) -> Array:
    """A step's number as its tensor, (1,) float32."""
    return np.array([value], np.float32)


def bind(parts: Sequence[Part], stage: str, buffers: Tensors) -> list[Launch]:
    """The launches of a stage's components, in order."""
    return [engine.bind(buffers) for part, engine in parts if part.stage == stage]


def in_order(launches: Sequence[Launch]) -> Launch:
    """One launch of several."""
    if len(launches) == 1:
        return launches[0]

    def launch() -> None:
        for one in launches:
            one()

    return launch


def check_wiring(parts: Sequence[Component], constants: set[str]) -> None:
    """Every input must be a host's name, a constant, or written before; the loop and the output must be there."""
    known = {"image", "blur_image", IMAGE_PIXELS, STATE, GUIDANCE} | constants
    for part in parts:
        for spec in part.inputs:
            if spec.name in ROW_NUMBERS and part.stage not in STEPS:
                raise ModelError(f"component {part.name!r} reads {spec.name!r}, which only a step is told")
            if spec.name not in known and spec.name not in ROW_NUMBERS:
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
