"""The training loop that every stage shares.

Nothing is carried from step to step but weights, their average and the optimizer: which examples a step sees follows
from its number, and all random numbers from the examples. So a run that was killed goes on from its last state exactly
as it would have gone, and P processes with batches of B take the steps that one would with batches of P * B.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from uid.train.log import Log, write_sheet
from uid.train.memory import fixed_memory, told
from uid.train.optimizers import make_optimizer
from uid.train.stage import Batch, Stage
from uid.train.state import Average, Store

FROZEN_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingSettings:
    """How one stage is trained."""

    steps: int
    batch: int = 8  # examples at a time in each process
    accumulate: int = 1  # batches of each process in a step
    learning_rate: float = 3e-4
    seed: int = 0
    save_every: int = 250  # steps between states, and so the most that a kill can lose
    sheet_every: int = 1000  # steps between sample sheets
    warm_up: int = 100  # steps over which the learning rate rises
    workers: int = 1  # processes that make examples, for each that trains
    average: float = 0.999  # decay of the weights' moving average, which is what a stage gives in the end
    mixed_precision: str = "no"  # "no", "bf16" or "fp16", as accelerate names them; what is frozen is held in it
    checkpointing: bool = False  # compute activations again in the backward pass instead of storing them
    optimizer: str = "adamw"  # one of uid.train.optimizers.OPTIMIZERS


def train(
    stage: Stage,
    examples: Dataset[Any],
    settings: TrainingSettings,
    folder: Path,
    report: Callable[[str], None] = print,
) -> None:
    """Train ``stage`` to ``settings.steps`` in ``folder``, going on from the state there if there is one.

    Leaves the average of the weights in ``stage``, and all of it in float32. Every process of a launch (torchrun,
    ``accelerate launch``) calls it; the main one writes the state, ``losses.csv``, TensorBoard events in ``events/``
    and ``sheet-NNNNNN.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(settings)
    set_seed(settings.seed, device_specific=True)  # for what draws by itself: nothing here does, a library may
    hold_frozen(stage, FROZEN_DTYPES[settings.mixed_precision])
    report(told(fixed_memory(stage, settings.optimizer)))
    if settings.checkpointing:
        checkpoint_activations(stage)
    trained = [p for p in stage.parameters() if p.requires_grad]
    model, optimizer = accelerator.prepare(stage, make_optimizer(settings.optimizer, trained, settings.learning_rate))
    average = Average(stage, settings.average)
    store = Store(folder, accelerator, average)
    start = store.load()
    log = Log(folder, start, settings.steps, report) if accelerator.is_main_process else None
    loader = batches(examples, settings, start, accelerator)
    for step in range(start, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step)
        losses, batch = take_step(accelerator, model, optimizer, islice(loader, settings.accumulate))
        average.update(step)
        last = step + 1 == settings.steps
        if log:
            log.add(step, losses)
            if last or (step + 1) % settings.sheet_every == 0:
                with average.applied(), accelerator.autocast():
                    write_sheet(stage, batch, folder / f"sheet-{step + 1:06d}.png")
        if last or (step + 1) % settings.save_every == 0:
            if log:
                log.write()  # first, so that no step of a state lacks its row
            store.save(step + 1)
    if log:
        log.close()
    average.exchange()
    stage.float()
    accelerator.free_memory()


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """What runs the loop on one device or on many."""
    parallel = DistributedDataParallelKwargs(
        find_unused_parameters=True,  # CLIP's last norm, and what an ablation leaves out
        gradient_as_bucket_view=True,  # or every gradient would be held twice
    )
    return Accelerator(
        cpu=not torch.accelerator.is_available(),  # or accelerate does not see that there are several processes
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.accumulate,
        kwargs_handlers=[parallel],
    )


def take_step(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, group: Iterator[Batch]
) -> tuple[dict[str, float], Batch]:
    """One step over its batches; returns the mean losses over all processes, and the last batch."""
    rows = []
    for batch in group:
        with accelerator.accumulate(model):
            losses: dict[str, Tensor] = model(batch)
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        rows.append(torch.stack([value.detach().float() for value in losses.values()]))
    means = accelerator.reduce(torch.stack(rows).mean(dim=0), "mean").tolist()
    return dict(zip(losses, means, strict=True)), batch


def batches(
    examples: Dataset[Any], settings: TrainingSettings, start: int, accelerator: Accelerator
) -> Iterator[Batch]:
    """The process's own batches of the steps from ``start`` on, on its device."""
    in_step = settings.batch * settings.accumulate * accelerator.num_processes
    loader = DataLoader(
        examples,
        settings.batch,
        sampler=range(start * in_step, settings.steps * in_step),
        collate_fn=collated,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
    )
    return iter(accelerator.prepare(loader))


def collated(examples: list[dict[str, Any]]) -> Batch:
    """A batch of examples; their keys stay whole numbers."""
    return {
        name: [x[name] for x in examples] if name == "key" else torch.stack([x[name] for x in examples])
        for name in examples[0]
    }


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Linear warm-up, constant, and over the last quarter of the steps down to a hundredth.

    It does not depend on the number of steps before that quarter, so that a run may still be made longer there.
    """
    rise = (step + 1) / settings.warm_up if settings.warm_up else 1.0
    fall = 4.0 * (settings.steps - step) / settings.steps
    return settings.learning_rate * min(1.0, rise, max(fall, 0.01))


def hold_frozen(stage: Stage, dtype: torch.dtype) -> None:
    """Hold the parameters that do not train in ``dtype``."""
    for p in stage.parameters():
        if not p.requires_grad:
            p.data = p.data.to(dtype)


def checkpoint_activations(stage: Stage) -> None:
    """Switch on gradient checkpointing in every network that knows it."""
    names = ("enable_gradient_checkpointing", "activation_checkpointing_enable", "gradient_checkpointing_enable")
    for module in stage.modules():
        switches = [getattr(module, name) for name in names if hasattr(module, name)]
        if switches and getattr(module, "_supports_gradient_checkpointing", True):
            switches[0]()
