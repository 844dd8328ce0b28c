"""Windows and tiles in ONNX: one graph gives what PyTorch gives at every size."""

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402  (torch is there)

from uid.families.deblurdiff import windows  # noqa: E402
from uid.families.deblurdiff.operators import tile_cover, window_cover  # noqa: E402
from uid.families.deblurdiff.translations import TRANSLATIONS  # noqa: E402

SIZES = [(8, 8), (16, 24), (64, 8), (72, 64), (136, 40), (8, 200), (96, 160)]


class Windows(nn.Module):
    """Windows of a map at half of the sides of ``x``, each normalised by its largest value."""

    def forward(self, x: Tensor) -> Tensor:
        half = x[:, :, ::2, ::2]
        cover = window_cover(x, 2, 16)
        pieces = cover.cut(half)
        return cover.merge(pieces / pieces.amax(dim=(1, 2, 3), keepdim=True) + cover.image[:, None, None, None], half)


class Tiles(nn.Module):
    """Tiles of 16 with a stride of 12, each multiplied by its number; they grow to twice their size."""

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        cover = tile_cover(x, 16, 12, self.weights, 2)
        pieces = cover.cut(x)
        numbers = torch.cumsum(torch.ones_like(cover.image), 0)[:, None, None, None]
        return cover.merge((pieces * numbers).repeat_interleave(2, 2).repeat_interleave(2, 3), x)


def windows_by_hand(x: Tensor) -> Tensor:
    half = x[:, :, ::2, ::2]
    grid = windows.windows_of(half.shape, 16)
    pieces = windows.cut(half, grid)
    image = torch.arange(len(x)).repeat_interleave(grid.count)
    results = pieces / pieces.amax(dim=(1, 2, 3), keepdim=True) + image[:, None, None, None]
    total, count = torch.zeros_like(half), torch.zeros(half.shape[-2:])
    origins = [(top, left) for top in grid.starts[0] for left in grid.starts[1]]
    for image_ in range(len(x)):
        for piece, (top, left) in zip(results[image_ * grid.count :], origins, strict=False):
            total[image_, :, top : top + grid.side[0], left : left + grid.side[1]] += piece
            count[top : top + grid.side[0], left : left + grid.side[1]] += 1 / len(x)
    return total / count


def tiles_by_hand(x: Tensor, weights: str) -> Tensor:
    grid, (height, width) = windows.tiles_of(x.shape, 16, 12), x.shape[-2:]
    own = torch.outer(windows.gaussian(32, 16.0), windows.gaussian(32, 15.5))
    total, weight = torch.zeros(*x.shape[:2], 2 * height, 2 * width), torch.zeros(2 * height, 2 * width)
    for image in range(len(x)):
        number = image * grid.count
        weight.zero_()
        for top in grid.starts[0]:
            for left in grid.starts[1]:
                number += 1
                piece = x[image, :, top : top + 16, left : left + 16]
                large = (piece * number).repeat_interleave(2, 1).repeat_interleave(2, 2)
                rows = slice(2 * top, 2 * top + large.shape[1])
                columns = slice(2 * left, 2 * left + large.shape[2])
                if weights == windows.LAST:
                    total[image, :, rows, columns], weight[rows, columns] = large, 1
                else:
                    share = own[: large.shape[1], : large.shape[2]]
                    total[image, :, rows, columns] += share * large
                    weight[rows, columns] += share
        total[image] /= weight
    return total


def session(module: nn.Module) -> onnxruntime.InferenceSession:
    """The module, exported for every size."""
    sizes = {0: torch.export.Dim("batch"), 2: 8 * torch.export.Dim("h"), 3: 8 * torch.export.Dim("w")}
    program = torch.onnx.export(
        module.eval(),
        (torch.rand(5, 3, 16, 24),),
        dynamo=True,
        opset_version=20,
        dynamic_shapes=(sizes,),
        custom_translation_table=dict(TRANSLATIONS),
        verbose=False,
    )
    assert program is not None
    return onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kind", ["windows", windows.GAUSSIAN, windows.LAST])
def test_one_graph_serves_every_size(kind: str) -> None:
    module = Windows() if kind == "windows" else Tiles(kind)
    run = session(module)
    for index, size in enumerate(SIZES):
        x = torch.rand(1 + index % 3, 3, *size, generator=torch.Generator().manual_seed(index)) + 0.1
        expected = windows_by_hand(x) if kind == "windows" else tiles_by_hand(x, kind)
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
        (got,) = run.run(None, {run.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-5, atol=1e-5)
