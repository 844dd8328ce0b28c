"""Examples made ahead by other processes."""

import numpy as np
import torch

from uid.train.blur import NOISES
from uid.train.data import made_image
from uid.train.supply import IMAGES, Supply


def test_batches_are_crops_of_what_was_made_and_their_blur() -> None:
    with Supply(64, torch.device("cpu"), seed=3, processes=1, places=2 * IMAGES) as supply:
        supply.take(least=IMAGES)
        first = torch.from_numpy(made_image((3, 0))).permute(2, 0, 1)
        torch.testing.assert_close(supply.images[0], first)
        batch = supply.batch(24)
        supply.take(least=3 * IMAGES)  # more than there is room for: the oldest are replaced
        torch.testing.assert_close(supply.images[0], torch.from_numpy(made_image((3, 2 * IMAGES))).permute(2, 0, 1))
    sharp, blurred = batch["sharp"], batch["blurred"]
    assert sharp.shape == blurred.shape == (24, 3, 64, 64)
    assert (blurred.min() >= 0.0) & (blurred.max() <= 1.0)
    assert len(set(batch["key"])) == 24
    assert sharp[0].std(dim=(1, 2)).max() == 0.0  # of one colour
    errors = (sharp - blurred).square().mean(dim=(1, 2, 3)).sqrt()
    assert errors[0] < 2 * max(NOISES)
    assert np.median(errors) > 0.01
    assert sharp.diff(dim=3).square().mean() > blurred.diff(dim=3).square().mean()
