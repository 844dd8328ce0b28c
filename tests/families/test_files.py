"""Files of weights that are not what they should be, and indexes that no bundle can be made of."""

import json
import re
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from click.testing import CliRunner  # noqa: E402  (torch is there)
from safetensors.torch import save_file  # noqa: E402

from uid.errors import CheckpointError  # noqa: E402
from uid.export.bundle import export_bundle  # noqa: E402
from uid.export.cli import main  # noqa: E402
from uid.families import registry  # noqa: E402
from uid.families.restorers.nafnet import NAFNet, NAFNetConfig  # noqa: E402
from uid.families.weight_files import WRAPPERS, read_weights  # noqa: E402
from uid.families.weights import misfits  # noqa: E402

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.bias": torch.ones(3)}
SHAPES = {key: tuple(value.shape) for key, value in WEIGHTS.items()}
NAFNET = NAFNet(NAFNetConfig(4, (1,), 1, (1,))).state_dict()


def saved(contents: object, file: Path) -> Path:
    torch.save(contents, file)
    return file


# -- what a file is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "holds no weights: it is empty"),
        (b"hello world", "it is a text file that begins with 'hello world'"),
        (b"<!DOCTYPE html>\n<html>" + b" " * 600, "it is a text file that begins with '<!DOCTYPE html>"),
        ("é".encode() * 400, "it is a text file that begins with 'é"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "it is a Git LFS pointer.*git lfs pull"),
        (b"\x80\x02}q\x00(X\x01\x00", "it is cut off or no checkpoint"),
        (b"\x80\x02.", "it is cut off or no checkpoint"),
        (b"\x80\x02h\x05.", "it is cut off or no checkpoint"),
        (struct.pack("<Q", 99) + b"{", "it is cut off or no checkpoint"),
        (struct.pack("<Q", 2) + b"{}", "no flat dict of tensors: its keys are none"),
        (bytes(range(256)), "cut off or no checkpoint|holds more than tensors"),
    ],
)
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_what_holds_no_weights_is_named(tmp_path: Path, contents: bytes, message: str, name: str) -> None:
    (tmp_path / name).write_bytes(contents)
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / name)


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about what the altered bytes say
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", ["new", "old", "safetensors"])
def test_altered_files_are_read_or_refused(tmp_path: Path, kind: str, seed: int) -> None:
    file, generator = tmp_path / "file", torch.Generator().manual_seed(seed)
    if kind == "safetensors":
        save_file(WEIGHTS, file)
    else:
        torch.save(WEIGHTS, file, _use_new_zipfile_serialization=kind == "new")
    data = bytearray(file.read_bytes())
    for place in torch.randint(min(len(data), 400), (3,), generator=generator).tolist():
        data[place] = int(torch.randint(256, (), generator=generator))
    file.write_bytes(data)
    with suppress(CheckpointError):
        misfits(read_weights(file), SHAPES)


@pytest.mark.parametrize("name", ["file.pth", "file.sft", "FILE.SAFETENSORS", "file.safetensors", "file"])
@pytest.mark.parametrize("write", [torch.save, save_file])
def test_the_beginning_tells_the_format(tmp_path: Path, name: str, write: Callable[..., None]) -> None:
    write(WEIGHTS, tmp_path / name)
    assert misfits(read_weights(tmp_path / name), SHAPES) == []


# -- wrappers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_wrapper_and_prefix_is_taken_off(tmp_path: Path, wrapper: str, prefix: str) -> None:
    weights = {f"{prefix}{key}": value for key, value in WEIGHTS.items()}
    for contents in ({wrapper: weights, "epoch": 3}, {"state_dict": {wrapper: weights}}):
        assert read_weights(saved(contents, tmp_path / "file.pth")).keys() == WEIGHTS.keys()


@pytest.mark.parametrize("averaged", [None, {}, {"decay": 0.9}])
def test_averaged_weights_come_first_where_there_are_any(tmp_path: Path, averaged: Any) -> None:
    other = {key: value + 1 for key, value in WEIGHTS.items()}
    both = saved({"params": WEIGHTS, "params_ema": other}, tmp_path / "both.pth")
    assert torch.equal(read_weights(both)["b.bias"], other["b.bias"])
    one = saved({"params": WEIGHTS, "params_ema": averaged}, tmp_path / "one.pth")
    assert torch.equal(read_weights(one)["b.bias"], WEIGHTS["b.bias"])


@pytest.mark.parametrize("contents", [{"net_g": WEIGHTS, "epoch": 3}, {"epoch": 3, "net_g": None}])
def test_an_unknown_wrapper_is_named(tmp_path: Path, contents: Any) -> None:
    with pytest.raises(CheckpointError, match=r"its keys are epoch, net_g; expected .* under one of params_ema, ema"):
        read_weights(saved(contents, tmp_path / "file.pth"))


def test_a_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    contents: dict[str, Any] = {"step": 1}
    contents["model"] = contents
    with pytest.raises(CheckpointError, match="its keys are model, step"):
        read_weights(saved(contents, tmp_path / "file.pth"))


# -- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about the kinds themselves
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda x: x.to_sparse(), "sparse"),
        (lambda x: x.to_sparse_csr(), "sparse"),
        (lambda x: torch.nested.nested_tensor([x[0], x[1, :2]]), "nested"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "quantised"),
        (lambda x: x.to("meta"), "without values"),
        (lambda x: torch.zeros(1).expand(1 << 35, 3, 3), "34359738368, 3, 3. repeated from 4 bytes"),
    ],
)
def test_tensors_that_store_no_numbers_of_their_own_are_named(
    tmp_path: Path, make: Callable[[Any], Any], kind: str
) -> None:
    contents = WEIGHTS | {"a.weight": make(WEIGHTS["a.weight"])}
    with pytest.raises(CheckpointError, match=rf"a\.weight \(\[?{kind}\)"):
        read_weights(saved(contents, tmp_path / "file.pth"))


def test_shapes_come_before_values_and_unused_values_do_not_matter() -> None:
    broken = WEIGHTS | {"a.weight": torch.full((2, 2), torch.nan), "extra": torch.full((2,), torch.nan)}
    assert misfits(broken, SHAPES, {"extra": (None,)}) == ["has other shapes: a.weight [2, 2] for [2, 3]"]
    assert misfits(WEIGHTS | {"extra": broken["extra"]}, SHAPES, {"extra": (2,)}) == []
    assert misfits(WEIGHTS | {"extra": broken["extra"]}, SHAPES, {"extra": (3, None)}) == [
        "has other shapes: extra [2] for [3, any]"
    ]


# -- commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bundle", "{nafnet}", "-o", "{out}"), "use `uid-export restorer`"),
        (("bundle", "{missing}", "-o", "{out}"), "there is no .*missing"),
        (("half", "{missing}", "{out}"), "there is no .*missing"),
        (("half", "{nafnet}", "{out}"), "are not rewritten.*--precision fp16"),
        (("int8", "{nafnet}", "{out}"), "are not rewritten.*--precision fp16"),
    ],
)
def test_commands_say_what_to_do_instead(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    nafnet = saved({"params": NAFNET}, tmp_path / "nafnet.pth")
    places = {"nafnet": nafnet, "missing": tmp_path / "missing", "out": tmp_path / "out"}
    result = CliRunner().invoke(main, [word.format(**places) for word in words])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert re.search(message, result.output.replace("\n", " ")), result.output
    assert not (tmp_path / "out").exists()


# -- indexes ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deblurdiff(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny DeblurDiff."""
    folder = tmp_path_factory.mktemp("deblurdiff")
    registry.create("deblurdiff").write_random(folder, "deblurdiff-tiny")
    return folder


BAD = [
    ({"steps": 0}, "has 0 for 'steps'; expected a whole number"),
    ({"steps": 1001}, "has 1001 for 'steps'; expected a whole number"),
    ({"steps": "50"}, "has '50' for 'steps'"),
    ({"guidance": 5000}, "has 5000 for 'guidance'; expected a finite number from -1000 to 1000"),
    ({"guidance": True}, "has True for 'guidance'"),
    ({"guidance": float("nan")}, "is not JSON: it has NaN"),
    ({"tile": 3}, "has 3 for 'tile'; expected a whole number"),
    ({"tile": 100_000}, "has 100000 for 'tile'; expected a whole number, .* to 65536"),
    ({"tile": None}, "has None for 'tile'"),
    ({"name": "a/b"}, "has 'a/b' for 'name'; expected at most 64 ASCII letters"),
    ({"trained": 1}, "has 1 for 'trained'; expected true or false"),
    ({"step": 3}, "has the unknown key 'step'; .* did you mean 'steps'"),
    ({"qualities": {"fast": {"steps": 1}}}, "for 'qualities'; expected presets by name"),
    ({"quality": "fast"}, "has 'fast' for 'quality'; expected null, or one of"),
]


@pytest.mark.parametrize("family", ["deblurdiff", "uid-diff"])
@pytest.mark.parametrize(("change", "message"), BAD)
def test_an_index_is_checked_by_the_manifests_rules(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, change: dict[str, Any], message: str
) -> None:
    source = request.getfixturevalue("deblurdiff" if family == "deblurdiff" else "tiny_checkpoint")
    folder = Path(shutil.copytree(source, tmp_path / "copy", copy_function=link))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(CheckpointError, match=message):
        registry.load(folder)


def link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)


@pytest.mark.parametrize(("family", "steps"), [("deblurdiff", 1), ("uid-diff", 1001)])
def test_steps_of_the_comparison_are_checked_before_it(
    request: pytest.FixtureRequest, tmp_path: Path, family: str, steps: int
) -> None:
    source = request.getfixturevalue("deblurdiff" if family == "deblurdiff" else "tiny_checkpoint")
    said: list[str] = []
    with pytest.raises(CheckpointError, match=f"the comparison of whole images has {steps} for 'steps'; expected a"):
        export_bundle(source, tmp_path / "out", image_steps=steps, report=said.append)
    assert "running PyTorch, to compare with" not in said
