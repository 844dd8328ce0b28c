"""What training takes of the device's memory before the first activation: counted, not measured."""

from torch import nn

from uid.train.optimizers import OPTIMIZERS

GIB = 1 << 30


def fixed_memory(stage: nn.Module, optimizer: str) -> dict[str, float]:
    """Bytes by what they hold: frozen weights as they are held, and of those that train also what goes with them."""
    trained = [p for p in stage.parameters() if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in trained)
    return {
        "frozen weights": sum(p.numel() * p.element_size() for p in stage.parameters() if not p.requires_grad),
        "weights that train": weights,
        "gradients": weights,
        "optimizer": OPTIMIZERS[optimizer] * sum(p.numel() for p in trained),
        "average": weights,
    }


def told(memory: dict[str, float]) -> str:
    """The count as a line."""
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory.items())
    return f"memory before activations: {sum(memory.values()) / GIB:.2f} GiB ({parts})"
