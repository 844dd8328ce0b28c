"""Plans: a plan is one mode of a bundle at one size and number of steps, with every buffer allocated and every launch
bound.

Components are wired by tensor name. ``uid.bundles.tensors`` lists the names that the runtime itself reads and writes,
``uid.runtime.pixels`` those of the uint8 conversion that some backends have in front and at the end.

Between an image's upload and its download nothing allocates, copies or writes from the host, so that a backend can
capture all of it. Every step is bound to coefficients of its own, which are written when the plan is made, and to noise
of its own where it reads any, which is written with the image. Two latents are ping-pong buffers: even steps read the
first and write the second, odd steps the other way round.
"""

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from uid.bundles.declarations import COEFFICIENTS, FINISH, FULL, PER_STEP, PREPARE, STEPS, Bundle, Component, Noise
from uid.bundles.tensors import GUIDANCE, IMAGE, NEXT_STATE, OUTPUT, STATE, Array, TensorSpec, resolve, resolve_all
from uid.engines import Backend, Buffer, Engine, Launch, Progress, Seconds, Work
from uid.errors import ModelError, OutOfMemoryError
from uid.runtime.pixels import GRAPHS, IMAGE_PIXELS, OUTPUT_MEAN, PIXELS_IN, PIXELS_OUT
from uid.runtime.schedule import Coefficients, Step

Part = tuple[Component, Engine]
Tensors = Mapping[str, Buffer]

PLANS_CACHED = 2  # an image's own size and its tiles', or two sizes in turn


class Plan:
    """Buffers and launches for one list of components at one set of sizes; run it as often as you like."""

    def __init__(
        self,
        backend: Backend,
        parts: Sequence[Part],
        sizes: Mapping[str, int],
        constants: Mapping[str, Array],
        steps: Sequence[Step],
        images: Iterable[str] = (IMAGE,),
        noise: Sequence[Noise] = (),
    ) -> None:
        """Allocate a buffer for every tensor, write constants and coefficients, bind and capture every launch.

        ``steps`` are in the order that they run in, and may be none; ``images`` and ``noise`` are the inputs that each
        run is given. Raises ``ModelError`` when a component reads what no earlier one writes, or a graph differs from
        its declaration; ``OutOfMemoryError`` when the backend has no room.
        """
        components = [part for part, _ in parts]
        check_wiring(components, {*constants, *images, *(one.spec.name for one in noise)})
        check_graphs(parts, sizes)
        self.backend, self.parts, self.sizes, self.steps = backend, parts, sizes, steps
        tensors = tensors_read_or_written(components)
        per_step = {one.spec.name for one in noise if one.draw == PER_STEP}
        self.step_noise = [self.allocate(spec for spec in tensors if spec.name in per_step) for _ in steps]
        self.buffers = self.allocate(spec for spec in tensors if spec.name not in per_step)
        for name, value in constants.items():
            self.buffers[name].write(value)
        self.coefficients = [self.write_coefficients(step.coefficients) for step in steps]
        self.work = self.bound()
        # After all are bound: only then is it known how much scratch memory serves every engine.
        self.replay = backend.capture(self.work)

    @property
    def states(self) -> tuple[Buffer, Buffer]:
        """The two latents that the steps read and write in turn, where there is a step."""
        return self.buffers[STATE], self.buffers[NEXT_STATE]

    @property
    def result(self) -> Buffer:
        """The latent that the last step writes, where there is a step."""
        return self.states[len(self.steps) % 2]

    @property
    def nbytes(self) -> int:
        """Size of the buffers in bytes, without the few bytes of coefficients."""
        return sum(buffer.nbytes for own in (self.buffers, *self.step_noise) for buffer in own.values())

    def allocate(self, specs: Iterable[TensorSpec]) -> dict[str, Buffer]:
        """New buffers of these tensors, by name."""
        return {spec.name: self.backend.allocate(resolve(spec.shape, self.sizes), spec.dtype) for spec in specs}

    def bound(self) -> Work:
        """The launches of every stage, bound to the buffers."""
        steps = [bind(self.parts, step.stage, self.tensors_of(i)) for i, step in enumerate(self.steps)]
        return Work(
            prepare=bind(self.parts, PREPARE, self.buffers),
            step=[in_order(launches) for launches in steps],
            finish=bind(self.parts, FINISH, {**self.buffers, STATE: self.result} if self.steps else self.buffers),
            engines=engines_by_stage(self.parts),
        )

    def write_coefficients(self, values: Coefficients) -> dict[str, Buffer]:
        """New buffers with those of a step's coefficients that any component reads."""
        read = {spec.name for part, _ in self.parts for spec in part.inputs}
        arrays = {name: number(value) for name, value in values if name in read}
        buffers = {name: self.backend.allocate(array.shape, array.dtype) for name, array in arrays.items()}
        for name, buffer in buffers.items():
            buffer.write(arrays[name])
        return buffers

    def tensors_of(self, step: int) -> Tensors:
        """The buffers of every name in one step, counted from 0."""
        here, there = self.states[step % 2], self.states[(step + 1) % 2]
        return {**self.buffers, **self.coefficients[step], **self.step_noise[step], STATE: here, NEXT_STATE: there}

    def run(
        self,
        inputs: Mapping[str, Array],
        noise: Mapping[str, Array],
        guidance: float,
        progress: Progress,
        output: str = OUTPUT,
    ) -> tuple[Array, Seconds]:
        """Prepare, all steps, finish. Returns the tensor called ``output`` and the seconds spent in each stage.

        ``noise`` is as ``runtime.noise`` has it. ``progress`` is given how many steps are done: after each, or only
        after the last where the backend runs them in one piece. Raises ``ModelError``, naming the step, when the result
        is not finite.
        """
        for name, array in {**inputs, GUIDANCE: number(guidance)}.items():
            if name in self.buffers:  # stages that are left out may have been its only readers
                self.buffers[name].write(array)
        self.write_noise(noise)
        seconds = self.replay(progress)
        if self.steps and not np.isfinite(self.result.read()).all():
            raise ModelError(self.find_non_finite(noise))
        image = self.buffers[output].read()
        telling = image if output == OUTPUT else self.buffers[OUTPUT_MEAN].read()
        if not np.isfinite(telling).all():
            raise ModelError("the model wrote NaN or infinity in its finish stage; try an fp32 bundle")
        return image, seconds

    def write_noise(self, noise: Mapping[str, Array]) -> None:
        """Write an image's noise, and that of each step, where anything reads it."""
        for name, array in noise.items():
            if name in self.buffers:
                self.buffers[name].write(array)
            for buffers, one in zip(self.step_noise, array, strict=False):
                if name in buffers:
                    buffers[name].write(one)

    def find_non_finite(self, noise: Mapping[str, Array]) -> str:
        """Run the steps again one by one, and say where NaN or infinity first appears.

        The loop itself never looks, since looking costs a synchronisation per step on a device.
        """
        advice = "try an fp32 bundle, or a lower guidance scale"
        prepared = [spec.name for part, _ in self.parts if part.stage == PREPARE for spec in part.outputs]
        for name in prepared:
            if not np.isfinite(self.buffers[name].read()).all():
                return f"the model wrote NaN or infinity to {name!r} before the first step; {advice}"
        if STATE in noise:
            self.states[0].write(noise[STATE])
        else:
            in_order(self.work.prepare)()
        for i, (step, launch) in enumerate(zip(self.steps, self.work.step, strict=True), 1):
            launch()
            if not np.isfinite(self.states[i % 2].read()).all():
                where = f"step {i} of {len(self.steps)} (timestep {step.timestep:g})"
                return f"the model wrote NaN or infinity in {where}; {advice}"
        return f"the model wrote NaN or infinity once and not when run again; {advice}"


class Plans:
    """The plans of a bundle on a backend: made when first needed; the most recent ones are cached."""

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self.bundle, self.backend = bundle, backend
        self.engines: dict[str, list[Engine]] = {}  # by component: one, or several for different sizes
        self.cached: OrderedDict[tuple[object, ...], Plan] = OrderedDict()

    def get(self, mode: str, sizes: Mapping[str, int], steps: Sequence[Step], pixels: bool) -> Plan:
        """The plan for a mode at these sizes and steps; ``pixels``: with uint8 in, and out beside floats."""
        key = (mode, *sorted(sizes.items()), *steps, pixels)
        if key not in self.cached:
            while len(self.cached) >= PLANS_CACHED:
                self.cached.popitem(last=False)
            try:
                self.cached[key] = self.make(mode, sizes, steps, pixels)
            except OutOfMemoryError:
                if not self.cached:
                    raise
            if key not in self.cached:  # the others stood in its way
                self.clear()
                self.cached[key] = self.make(mode, sizes, steps, pixels)
        self.cached.move_to_end(key)
        limit = self.backend.memory_limit
        while limit and len(self.cached) > 1 and sum(plan.nbytes for plan in self.cached.values()) > limit:
            self.cached.popitem(last=False)
        return self.cached[key]

    def make(self, mode: str, sizes: Mapping[str, int], steps: Sequence[Step], pixels: bool) -> Plan:
        """A new plan; loads the engines that it needs."""
        declared = self.bundle.modes[mode]
        stages = {PREPARE, FINISH} | {step.stage for step in steps}
        parts = [self.part(component, sizes) for component in self.bundle.parts(mode) if component.stage in stages]
        if pixels:
            parts = [self.pixels(PIXELS_IN, sizes), *parts, self.pixels(PIXELS_OUT, sizes)]
        constants = {tensor: self.bundle.constants[key] for tensor, key in declared.constants.items()}
        images = [spec.name for spec in declared.inputs]
        return Plan(self.backend, parts, sizes, constants, steps, images, declared.noise)

    def part(self, component: Component, sizes: Mapping[str, int]) -> Part:
        """A component of the bundle with an engine that covers ``sizes``."""
        load = partial(self.backend.load_component, self.bundle, component, sizes)
        return component, self.engine(f"component {component.name}", sizes, load)

    def pixels(self, component: Component, sizes: Mapping[str, int]) -> Part:
        """A component of ``runtime/pixels.py`` with its engine."""
        load = partial(self.backend.load, GRAPHS / component.file)
        return component, self.engine(component.file, sizes, load)

    def engine(self, name: str, sizes: Mapping[str, int], load: Callable[[], Engine]) -> Engine:
        """The loaded engine of ``name`` that covers ``sizes``, or a new one.

        A new one replaces those that no cached plan uses, since each holds the weights.
        """
        loaded = self.engines.get(name, [])
        for engine in loaded:
            if engine.covers(sizes):
                return engine
        used = {id(engine) for plan in self.cached.values() for _, engine in plan.parts}
        self.engines[name] = [engine for engine in loaded if id(engine) in used]
        del loaded
        self.engines[name].append(load())
        return self.engines[name][-1]

    def clear(self) -> None:
        """Forget all plans, and so free their buffers; engines stay."""
        self.cached.clear()


def engines_by_stage(parts: Sequence[Part]) -> dict[str, list[Engine]]:
    """The engines of each stage of the work; all ways to compute a step are one stage."""
    stages = {PREPARE: (PREPARE,), FULL: STEPS, FINISH: (FINISH,)}
    return {stage: [engine for part, engine in parts if part.stage in names] for stage, names in stages.items()}


def number(value: float) -> Array:
    """A number as a tensor, (1,) float32."""
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


def check_wiring(parts: Sequence[Component], given: set[str]) -> None:
    """Raise ``ModelError`` unless every input is given, a name of the runtime's, or written before it is read, and the
    loop and the output are there.
    """
    loop = any(part.stage in STEPS for part in parts)
    known = {IMAGE_PIXELS, GUIDANCE} | given | ({STATE} if loop else set())
    for part in parts:
        check_reads(part, known)
        known |= {spec.name for spec in part.outputs}
    for name in (NEXT_STATE, OUTPUT) if loop else (OUTPUT,):
        if name not in known:
            raise ModelError(f"no component writes {name!r}; export the bundle again")


def check_reads(part: Component, known: Container[str]) -> None:
    """Raise ``ModelError`` where a component reads what it is not given: coefficients are for steps alone, all else has
    to be ``known``.
    """
    for spec in part.inputs:
        if spec.name in COEFFICIENTS:
            if part.stage not in STEPS:
                raise ModelError(f"component {part.name!r} reads {spec.name!r}, which only a step is given")
        elif spec.name not in known:
            raise ModelError(f"component {part.name!r} reads {spec.name!r}, which nothing before it writes")


def check_graphs(parts: Sequence[Part], sizes: Mapping[str, int]) -> None:
    """Raise ``ModelError`` where a graph differs from its declaration, also in the sizes that it has fixed."""
    for part, engine in parts:
        check_declaration(part, engine)
    shapes = resolve_all(tensors_read_or_written(part for part, _ in parts), sizes)
    for part, engine in parts:
        check_sizes(part, engine, shapes)


def tensors_read_or_written(parts: Iterable[Component]) -> list[TensorSpec]:
    """Every tensor of the components once, but for coefficients, of which each step has its own."""
    specs = {spec.name: spec for part in parts for spec in (*part.inputs, *part.outputs)}
    return [spec for name, spec in specs.items() if name not in COEFFICIENTS]


def check_declaration(part: Component, engine: Engine) -> None:
    """The graph's own names, dtypes and ranks must be the manifest's."""
    for declared, actual in ((part.inputs, engine.inputs), (part.outputs, engine.outputs)):
        want = {spec.name: signature(spec) for spec in declared}
        got = {spec.name: signature(spec) for spec in actual.values()}
        if want != got:
            raise ModelError(f"component {part.name!r} has tensors {got}, its manifest declares {want}")


def check_sizes(part: Component, engine: Engine, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A graph's own fixed sizes must be those that the manifest gives its tensors here."""
    for spec in (*engine.inputs.values(), *engine.outputs.values()):
        own = shapes.get(spec.name, spec.shape)
        if len(own) != len(spec.shape) or any(
            isinstance(size, int) and size != here for size, here in zip(spec.shape, own, strict=True)
        ):
            raise ModelError(
                f"component {part.name!r} has {spec.name!r} of shape {list(spec.shape)}, and its manifest makes it "
                f"{list(own)}; export the bundle again"
            )


def signature(spec: TensorSpec) -> str:
    """Dtype and rank, as text for comparison and messages."""
    return f"{spec.dtype}[{len(spec.shape)} dimensions]"
