"""The measurement of the host's own share: the runtime's real work around launches that do nothing."""

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from uid.bench.cli import main
from uid.bench.speed.host import IdleBackend
from uid.bundles.declarations import built_in
from uid.bundles.manifest import read_bundle
from uid.runtime.options import Options
from uid.runtime.pipeline import Pipeline


def test_rows_say_what_ran(tmp_path: Path) -> None:
    words = ["host", "--size", "40x72", "--size", "200", "--transforms", "1", "--transforms", "8", "--tile", "128"]
    result = CliRunner().invoke(main, [*words, "--repeats", "2", "-o", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    ran = [(row["height"], row["width"], row["transforms"], row["tiles"], row["repeat"]) for row in rows]
    cases = [(40, 72, 1, 1), (40, 72, 8, 1), (200, 200, 1, 4), (200, 200, 8, 4)]
    assert ran == [(*case, repeat) for case in cases for repeat in range(2)]
    assert all(row["seconds"] > 0.0 for row in rows)
    assert len(result.output.splitlines()) == 4


def test_nothing_computes_and_the_image_has_its_shape() -> None:
    image = np.random.default_rng(0).integers(0, 256, (33, 50, 3), np.uint8)
    result = Pipeline(read_bundle(built_in()), IdleBackend())(image, Options(transforms=2))
    assert (result.image.shape, result.image.dtype, int(result.image.max())) == (image.shape, np.uint8, 0)
