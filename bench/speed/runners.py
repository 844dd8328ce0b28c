"""What is timed: a bundle on a backend, and the PyTorch reference. Each is made and run in a process of its own."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uid.bench.speed.workers import peak_memory
from uid.bundles.tensors import IMAGE, Array
from uid.engines import BackendStatus, probe
from uid.engines.garbage import no_collection
from uid.runtime.colour import colour_fixed
from uid.runtime.noise import drawn
from uid.runtime.pixels import enlarged, like, pad, padded, planes, to_float

STAGES = ("prepare", "step", "finish")


@dataclass(frozen=True)
class Task:
    """How images are made; the same for every runner."""

    bundle: Path
    guidance: float
    seed: int
    threads: int
    tile: int | None = None  # side in pixels; None: images run whole


@dataclass(frozen=True)
class TimedImage:
    """One image, and what it took."""

    image: Array  # shape and dtype of the input
    seconds: float  # all of it, by the wall clock
    stages: dict[str, float]  # seconds of prepare, step (all of the steps) and finish
    peak_bytes: int  # of the process so far
    captured: bool = False  # whether it was run in one piece


class EngineRunner:
    """A bundle on a backend, through the runtime as its users have it."""

    def __init__(self, task: Task, backend: str) -> None:
        from uid.runtime.pipeline import load

        self.task = task
        self.pipeline = load(task.bundle, backend=backend, threads=task.threads)

    def run(self, image: Array, steps: int) -> TimedImage:
        """(H, W, 3), run in the task's tiles, or whole whatever the bundle's tile, as the reference does."""
        from uid.runtime.options import Options

        multiple = self.pipeline.bundle.size_multiple
        tile = self.task.tile or max(*padded(image.shape[:2], multiple), 2 * multiple)
        task = self.task
        options = Options(steps=steps or None, transforms=1, guidance=task.guidance, seed=task.seed, tile=tile)
        started = time.perf_counter()
        result = self.pipeline(image, options)
        seconds = time.perf_counter() - started
        return TimedImage(result.image, seconds, result.seconds, peak_memory(), result.captured)


class Trial:
    """Whether a backend works here, asked in a process of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def status(self) -> BackendStatus:
        """The answer."""
        return probe(self.name)


class TorchRunner:
    """The PyTorch reference, in float32 or float16, on the GPU where torch has one.

    ``channels_last``: weights of convolutions, and with them what they compute, in the order that tensor cores read.
    Not yet run on a GPU.
    """

    def __init__(
        self,
        task: Task,
        checkpoint: Path,
        half: bool = False,
        compiled: bool = False,
        channels_last: bool = False,
    ) -> None:
        import torch

        from uid.command import quieten_libraries
        from uid.families import registry

        quieten_libraries()
        torch.set_num_threads(task.threads)
        torch.backends.cudnn.allow_tf32 = False  # on by default, and three digits short of float32
        self.task, self.torch, self.compiled = task, torch, compiled
        self.model = registry.load(checkpoint)
        components = self.model.components("fp32")
        self.mode, self.declared = next(iter(self.model.modes(components).items()))
        if half:  # as an fp16 bundle: latents, guidance and the DDIM update stay float32
            self.model.half()
        if channels_last:
            module: Any = self.model.module  # torch's annotations of ``to`` leave this out
            module.to(memory_format=torch.channels_last)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        if compiled:
            self.compile()

    def compile(self) -> None:
        """Compile every part that computes, into CUDA graphs on a GPU; they do compile when first called."""
        mode = "reduce-overhead" if self.device.type == "cuda" else None
        for part in self.model.compiled_parts():
            module: Any = part
            module.compile(mode=mode)
            if mode is not None:
                module._compiled_call_impl = self.apart(module._compiled_call_impl)

    def apart(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call with results of their own, which the next replay of its CUDA graph does not overwrite."""
        from torch.utils._pytree import tree_map

        return lambda *values, **named: tree_map(lambda result: result.clone(), call(*values, **named))

    def run(self, image: Array, steps: int) -> TimedImage:
        """(H, W, 3), padded to the model's multiple as the runtime does.

        No garbage is collected meanwhile where the model is compiled: its first runs capture CUDA graphs.
        """
        with no_collection() if self.compiled else nullcontext():
            return self.timed(image, steps)

    def timed(self, image: Array, steps: int) -> TimedImage:
        """What ``run`` gives."""
        height, width = image.shape[:2]
        started = time.perf_counter()
        with self.torch.inference_mode(), self.device:
            model = self.model
            whole = pad(planes(image), model.size_multiple, model.padding, model.min_side)
            pixels = self.torch.from_numpy(to_float(whole)[None]).to(self.device)
            noise = self.noise(whole.shape[1], whole.shape[2], steps)
            marks = [self.mark()]
            features = model.prepare(self.mode, {IMAGE: pixels}, noise)
            marks.append(self.mark())
            state = model.denoise(features, noise, steps, self.task.guidance)
            marks.append(self.mark())
            output = model.finish(features, state)[0].float().cpu().numpy()
            marks.append(self.mark())
        scale = output.shape[1] // whole.shape[1]
        cropped = output[:, : scale * height, : scale * width]
        fixed = colour_fixed(cropped, to_float(planes(enlarged(image, scale))), self.declared.colour_fix)
        sharp = like(fixed, image, model.rounding)
        seconds = time.perf_counter() - started
        return TimedImage(sharp, seconds, dict(zip(STAGES, np.diff(marks).tolist(), strict=True)), peak_memory())

    def noise(self, height: int, width: int, steps: int) -> dict[str, Any]:
        """What the runtime draws from the same seed, by name."""
        arrays = drawn(self.declared.noise, height, width, steps, self.task.seed)
        return {name: self.torch.from_numpy(array.copy()).to(self.device) for name, array in arrays.items()}

    def mark(self) -> float:
        """The time when all that was asked for is done."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()
        return time.perf_counter()
