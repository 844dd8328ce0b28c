"""The training loop and its command line on real stages at tiny size."""

import csv
import importlib.util
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from uid.errors import BackendError
from uid.families.uid_diff import checkpoint
from uid.train.blur import Random, RgbImage
from uid.train.cli import main
from uid.train.data import Blurred, Examples
from uid.train.loop import TrainingSettings, collated, train
from uid.train.memory import fixed_memory, told
from uid.train.optimizers import OPTIMIZERS, make_optimizer
from uid.train.presets import EDGE, PAPER, preset_of
from uid.train.stage import Choices, Draws, Stage
from uid.train.stages import STAGES


def smooth(rng: Random, height: int, width: int) -> RgbImage:
    """A few soft blobs."""
    blobs = rng.random((5, 5, 3), dtype=np.float32)
    return cv2.resize(blobs, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


EXAMPLES = Examples(Blurred(smooth), 16, seed=1)


def stage(tiny_checkpoint: Path, name: str = "vae") -> Stage:
    """A stage on the tiny random checkpoint."""
    return STAGES[name].make(checkpoint.load(tiny_checkpoint), Choices(steps=2, guidance=1.0))


def losses(folder: Path) -> list[float]:
    with (folder / "losses.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def settings(steps: int, **changes: object) -> TrainingSettings:
    chosen: dict[str, object] = {"batch": 4, "save_every": 4, "warm_up": 5, "workers": 0, "learning_rate": 1e-3}
    return TrainingSettings(steps=steps, **(chosen | changes))  # type: ignore[arg-type]


def test_same_seed_same_losses_and_a_resumed_run_goes_on_as_it_would_have(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    train(stage(tiny_checkpoint), EXAMPLES, settings(20), tmp_path / "whole")
    train(stage(tiny_checkpoint), EXAMPLES, settings(20), tmp_path / "again")
    assert len(losses(tmp_path / "whole")) == 20
    assert losses(tmp_path / "whole") == losses(tmp_path / "again")

    class KilledError(Exception):
        pass

    class Deadly(Examples):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            if index >= 4 * 10:  # in the eleventh batch, two after a state
                raise KilledError
            return super().__getitem__(index)

    with pytest.raises(KilledError):
        train(stage(tiny_checkpoint), Deadly(Blurred(smooth), 16, seed=1), settings(20), tmp_path / "killed")
    resumed, whole = stage(tiny_checkpoint), stage(tiny_checkpoint)
    train(resumed, EXAMPLES, settings(20), tmp_path / "killed")
    train(whole, EXAMPLES, settings(20), tmp_path / "whole")  # done already: the state alone
    np.testing.assert_allclose(losses(tmp_path / "killed")[-12:], losses(tmp_path / "whole")[-12:], rtol=1e-5)
    for (name, one), other in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, msg=name)
    assert [path.name for path in (tmp_path / "killed").glob("*state*")] == ["state-00000020"]


def test_accumulated_batches_are_one_batch(tmp_path: Path, tiny_checkpoint: Path) -> None:
    for name, changes in {"one": {"batch": 8}, "four": {"batch": 2, "accumulate": 4}}.items():
        train(stage(tiny_checkpoint), EXAMPLES, settings(6, **changes), tmp_path / name)
    np.testing.assert_allclose(losses(tmp_path / "one"), losses(tmp_path / "four"), rtol=1e-4)


def test_checkpointed_activations_change_nothing(tmp_path: Path, tiny_checkpoint: Path) -> None:
    examples = Examples(Blurred(smooth), 16, 1, lambda rng, h, w: (smooth(rng, h, w), smooth(rng, h, w)))
    stages = {checkpointing: stage(tiny_checkpoint, "joint") for checkpointing in (False, True)}
    saved: dict[bool, list[int]] = {False: [], True: []}
    for checkpointing, module in stages.items():
        count = saved[checkpointing]
        with torch.autograd.graph.saved_tensors_hooks(lambda x, count=count: count.append(x.numel()) or x, lambda x: x):
            train(module, examples, settings(3, checkpointing=checkpointing), tmp_path / str(checkpointing))
    np.testing.assert_allclose(losses(tmp_path / "True"), losses(tmp_path / "False"), rtol=1e-5)
    assert sum(saved[True]) < 0.5 * sum(saved[False])


def test_what_is_frozen_is_held_in_bfloat16_while_it_trains(tmp_path: Path, tiny_checkpoint: Path) -> None:
    told_lines: list[str] = []
    module = stage(tiny_checkpoint, "deblur")
    train(module, EXAMPLES, settings(3, mixed_precision="bf16"), tmp_path, told_lines.append)
    assert all(np.isfinite(losses(tmp_path)))
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert told_lines[0].startswith("memory before activations")


def test_the_memory_is_what_the_tensors_take(tiny_checkpoint: Path) -> None:
    module = stage(tiny_checkpoint, "deblur")
    optimizer = make_optimizer("adamw", [p for p in module.parameters() if p.requires_grad], 1e-3)
    module(collated([EXAMPLES[0]]))["loss"].backward()
    optimizer.step()
    counted = fixed_memory(module, "adamw")
    trained = [p for p in module.parameters() if p.grad is not None]
    assert counted["gradients"] == sum(p.grad.nbytes for p in trained if p.grad is not None)
    stored = sum(x.nbytes for state in optimizer.state.values() for x in state.values() if x.ndim)
    assert counted["optimizer"] == stored
    assert f": {sum(counted.values()) / 2**20:.2f} MiB (frozen" in told(counted)
    assert ": 2.00 GiB (x 2.00)" in told({"x": 2.0**31})


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_eight_bit_adamw_says_what_it_needs(tiny_checkpoint: Path) -> None:
    with pytest.raises(BackendError, match=r"needs bitsandbytes.*install"):
        make_optimizer("adamw-8bit", stage(tiny_checkpoint).parameters(), 1e-3)


def test_eight_bit_adamw_learns_and_resumes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    pytest.importorskip("bitsandbytes")
    eight_bit = {"optimizer": "adamw-8bit"}
    train(stage(tiny_checkpoint), EXAMPLES, settings(12, **eight_bit), tmp_path / "whole")
    train(stage(tiny_checkpoint), EXAMPLES, settings(4, warm_up=5, **eight_bit), tmp_path / "stopped")
    train(stage(tiny_checkpoint), EXAMPLES, settings(12, **eight_bit), tmp_path / "stopped")
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]
    p = torch.nn.Parameter(torch.randn(1 << 14))
    p.grad = torch.randn_like(p)
    optimizer = make_optimizer("adamw-8bit", [p], 1e-3)
    optimizer.step()
    stored = sum(x.nbytes for x in optimizer.state[p].values() if isinstance(x, torch.Tensor) and x.numel() > 256)
    assert stored / p.numel() == pytest.approx(OPTIMIZERS["adamw-8bit"], rel=0.1)


def test_random_numbers_follow_from_the_example_and_not_from_its_batch() -> None:
    device = torch.device("cpu")
    together = Draws([3, 5, 8], device, times=2)
    alone = [Draws([key], device, times=2) for key in (3, 5, 8)]
    drawn = [together.normal((2, 3)), together.uniform(), together.below(1000)]
    single = [[draws.normal((2, 3)), draws.uniform(), draws.below(1000)] for draws in alone]
    for i, all_of_them in enumerate(drawn):
        for j in range(3):
            assert torch.equal(all_of_them[j::3], single[j][i])
    assert len(drawn[0].unique()) == drawn[0].numel()


def test_what_the_paper_says_is_the_default_but_for_the_small_configurations() -> None:
    assert [preset_of(name) for name in ("sd15", "edge", "a user's own")] == [PAPER, EDGE, PAPER]
    assert (PAPER.learning_rate, PAPER.visited, PAPER.backbone) == (5e-5, 0.0, False)


def test_queries_of_a_new_q_former_differ(tmp_path: Path) -> None:
    """Equal ones have equal gradients, and would stay one query for ever."""
    checkpoint.write_untrained(tmp_path / "new", "tiny")
    model = checkpoint.load(tmp_path / "new")
    for extractor in (model.structure, model.blur):
        features = extractor(torch.rand(1, 3, 16, 16))[0]
        assert torch.pdist(features).min() > 1e-3


def run(*words: str | Path, code: int = 0) -> str:
    """The output of ``uid-train`` at tiny size, which must end with this status."""
    small = ["--size", "16", "--batch", "2", "--workers", "0", "--images", "8"]
    result = CliRunner().invoke(main, [*map(str, words), *small], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_checkpoint_is_written_and_the_first_stays_as_it_is(tmp_path: Path, tiny_checkpoint: Path) -> None:
    source, new = Path(shutil.copytree(tiny_checkpoint, tmp_path / "released")), tmp_path / "new"
    before = contents(source)
    assert "give one of -o FOLDER" in run("vae", source, "--steps", "3", code=2)
    assert "lies in the checkpoint itself" in run("vae", source, "-o", source / "new", "--steps", "3", code=1)
    run("vae", source, "-o", new, "--steps", "3")
    assert contents(source) == before
    assert set(contents(new)) == set(before)
    assert contents(new)["vae/config.json"] != before["vae/config.json"]
    assert {path.name for path in tmp_path.iterdir()} == {"released", "new", "new.training"}
    assert (tmp_path / "new.training" / ".gitignore").read_text() == "*\n"
    assert "new is in use" in run("vae", source, "-o", new, "--steps", "4", code=1)


def test_training_in_place_is_asked_for_and_the_result_exports_as_it_is(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    before = checkpoint.load(folder).encoder.vae.state_dict()
    (folder / "training").mkdir()
    assert "earlier version's training; move it to" in run("vae", folder, "--in-place", "--steps", "3", code=1)
    (folder / "training").rmdir()
    run("vae", folder, "--in-place", "--steps", "3")
    loaded = checkpoint.load(folder)
    assert any(not torch.equal(before[key], value) for key, value in loaded.encoder.vae.state_dict().items())
    z = torch.cat([loaded.encoder(torch.rand(1, 3, 16, 16))[0].flatten() for _ in range(4)])
    assert 0.01 < z.std() < 100.0
    assert loaded.encoder.vae.config.scaling_factor != 0.18215
    assert set(contents(folder)) == set(contents(tiny_checkpoint))
