"""Bundles that are incomplete, altered, hostile or too new are refused before anything of them runs."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from uid.bundles.hashes import sha256
from uid.bundles.manifest import read_bundle
from uid.errors import BundleError, ModelError
from uid.runtime.pipeline import load

MakeToy = Callable[..., Path]
Edit = Callable[[dict[str, Any]], object]


def edit(folder: Path, change: Edit) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_missing_folder_and_manifest(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(BundleError, match=r"is not a bundle: cannot read manifest\.json"):
            read_bundle(folder)


def test_flipped_byte_is_named(make_toy: MakeToy) -> None:
    folder = make_toy()
    for name in ("step.onnx", "constants.safetensors"):
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        with pytest.raises(BundleError, match=rf"{name} was altered or damaged"):
            read_bundle(folder)
        data[-1] ^= 1
        (folder / name).write_bytes(data)
    read_bundle(folder)


def test_missing_file_is_named(make_toy: MakeToy) -> None:
    folder = make_toy()
    (folder / "decode.onnx").unlink()
    with pytest.raises(BundleError, match=r"lacks decode\.onnx"):
        read_bundle(folder)


def output(manifest: dict[str, Any]) -> dict[str, Any]:
    """The declaration of the output."""
    entry: dict[str, Any] = manifest["components"]["decode"]["outputs"][0]
    return entry


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema=3), "has schema 3, this uid-runtime reads up to 2: upgrade"),
        (lambda m: m.pop("schema"), "states no schema version"),
        (lambda m: m.pop("steps"), "lacks 'steps'"),
        (lambda m: m.update(size_multiple="four"), "has size_multiple 'four'; expected a whole number, 1 to 32768"),
        (lambda m: m.update(size_multiple=0), "has size_multiple 0; expected a whole number, 1 to 32768"),
        (lambda m: m.update(tile=0), "has tile 0; expected a whole number, 8 to 65536"),
        (lambda m: m.update(steps=0), "has steps 0; expected a whole number, 1 to 1000"),
        (lambda m: m.update(guidance="strong"), "has guidance 'strong'; expected a finite number"),
        (lambda m: m.update(schedule={}), "schedule lacks 'num_train_timesteps'"),
        (lambda m: m.update(padding="mirror"), "has padding 'mirror'; expected one of reflect, zeros"),
        (lambda m: m.update(rounding="up"), "has rounding 'up'; expected one of nearest, down"),
        (lambda m: m.update(min_side=-1), "has min_side -1; expected a whole number, 1 to 32768"),
        (lambda m: m.update(min_side=40), "has tile 32; expected a whole number, 40 to 65536"),
        (lambda m: m.update(trained="false"), "has trained 'false'; expected true or false"),
        (lambda m: m.update(schema=0), "has schema 0; expected a whole number, 1 or more"),
        (lambda m: m["modes"]["deblur"].update(noise={}), "has noise {}; expected a list"),
        (
            lambda m: m["modes"]["deblur"]["constants"].update(offset="other"),
            "constant 'other', and the file has",
        ),
        (
            lambda m: m["components"]["step"].update(stage="step-shallow"),
            "has the stage step-shallow, and no",
        ),
        (
            lambda m: output(m).update(shape=["batch", 3, "height*2", "width"]),
            "times the same whole number up to 16",
        ),
        (lambda m: output(m).update(shape=["batch", 1, "height", "width"]), r"expected \[batch, 3, height, width\]"),
        (lambda m: output(m).update(shape=["batch", 3, -4, "width"]), "has dimension -4; expected a whole number"),
        (lambda m: m["components"]["encode"]["outputs"][0]["shape"].append("height/3"), "which 3 does not divide"),
        (lambda m: m.update(max_side=4), "has max_side 4; expected a whole number, 8 to 65536"),
        (
            lambda m: m["modes"]["deblur"].update(colour_fix="gamma"),
            "has colour_fix 'gamma'; expected one of none",
        ),
        (lambda m: m["modes"]["deblur"].update(negative_prompt=7), "has prompt 7; expected text"),
        (lambda m: m.update(components=[]), r"has components \[\]; expected an object"),
        (lambda m: m["files"].update({"../secret": "0"}), "leads out of the bundle's folder"),
        (lambda m: m["files"].update({"/etc/passwd": "0"}), "leads out of the bundle's folder"),
        (lambda m: m["files"].update({"a/*.onnx": "0"}), "no plain name"),
        (lambda m: m["files"].pop("step.onnx"), r"uses 'step\.onnx' but lists no sha256"),
        (lambda m: m["components"]["step"].update(stage="later"), "stage 'later'; expected one of prepare"),
        (lambda m: m["modes"]["deblur"]["components"].append("sharpen"), "component 'sharpen'"),
        (lambda m: m["modes"]["deblur"]["components"].append("step"), "the component 'step' twice"),
        (
            lambda m: m["components"]["step"].update(file="constants.safetensors"),
            r"expected a name that ends in \.onnx",
        ),
        (lambda m: m["schedule"].update(beta_start=1e-30), "expected 1e-06 or more at the start"),
        (lambda m: m["schedule"].update(beta_end=0.9), "an alpha_bar of 1e-30 or more at the end"),
        (lambda m: m["schedule"].update(num_train_timesteps=10**9), "expected a whole number, 1 to 100000"),
        (lambda m: m.update(size_multiple=1 << 40), "expected a whole number, 1 to 32768"),
        (lambda m: m.update(guidance=1e30), "expected a finite number from -1000 to 1000"),
        (lambda m: m.update(guidance=10**400), "expected a finite number"),
        (lambda m: m.update(steps=1001), "has steps 1001; expected a whole number, 1 to 1000"),
        (lambda m: m.update(steps=True), "has steps True; expected a whole number"),
        (lambda m: m.update(modes={str(i): {} for i in range(300)}), "expected an object, 256 keys at most"),
        (lambda m: m["modes"].update(deblur=["encode"]), "expected an object"),
        (lambda m: m["modes"]["deblur"].update(components={"encode": 1}), "has components .*; expected a list"),
        (lambda m: m["modes"]["deblur"].update(prompt="x" * 5000), "expected text, 4096 characters at most"),
        (lambda m: output(m).update(dtype="object"), "has dtype 'object'; expected one of float32"),
        (lambda m: output(m).update(shape=["batch", 3, "height*32", "width*32"]), "same whole number up to 16"),
        (lambda m: m["components"]["step"]["inputs"][0].update(shape=[1 << 20] * 4), "elements: export"),
        (lambda m: m["components"]["step"]["inputs"][0].update(shape=[1] * 9), "at most 8 dimensions"),
        (lambda m: m["components"]["step"]["inputs"][3].update(shape=[2]), r"expected float32\[1\]"),
        (lambda m: m["components"]["encode"]["inputs"][0].update(shape=[1, 3, 8, 8]), r"expected float32\[batch, 3"),
        (lambda m: m["files"].update({"step.onnx": "0" * 63}), "expected 64 hexadecimal digits"),
        (lambda m: m["files"].update({"/".join(["a" * 60] * 50): "0" * 64}), "no plain name"),
    ],
)
def test_bad_manifests(make_toy: MakeToy, change: Edit, message: str) -> None:
    folder = make_toy()
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


def renamed(entries: dict[str, Any], old: str, new: str) -> None:
    entries[new] = entries.pop(old)


NAMED: dict[str, Callable[[dict[str, Any], str], object]] = {
    "name": lambda m, bad: m.update(name=bad),
    "family": lambda m, bad: m.update(family=bad),
    "precision": lambda m, bad: m.update(precision=bad),
    "component": lambda m, bad: renamed(m["components"], "step", bad),
    "mode": lambda m, bad: renamed(m["modes"], "deblur", bad),
    "preset": lambda m, bad: m.update(qualities={bad: {"steps": 1, "views": 1}}),
    "figure": lambda m, bad: m.update(qualities={"full": {"steps": 1, "views": 1, "figures": {bad: 1.0}}}),
    "variant": lambda m, bad: m["components"]["step"].update(variants={bad: "step.onnx"}),
    "tensor": lambda m, bad: m["components"]["step"]["inputs"][0].update(name=bad),
    "dtype": lambda m, bad: m["components"]["step"]["inputs"][0].update(dtype=bad),
    "dimension": lambda m, bad: m["components"]["step"]["inputs"][0].update(shape=[1, 3, bad, "width"]),
    "constant": lambda m, bad: m["modes"]["deblur"].update(constants={"prompt": bad}),
}
BAD_NAMES = [
    "",
    "/some/folder/*",
    "../../up",
    "..",
    "a/b",
    "a\\b",
    "*",
    "a[0]",
    ".hidden",
    "-option",
    "a b",
    "a\n",
    "ä",
]
BAD_NAMES += ["\x1b[31mred", "[red]x[/]", "x" * 65, "C:x"]


@pytest.mark.parametrize("what", NAMED)
def test_names_that_are_paths_patterns_or_a_terminals_codes_are_refused(make_toy: MakeToy, what: str) -> None:
    folder = make_toy()
    sound = json.loads((folder / "manifest.json").read_text())
    for bad in BAD_NAMES:
        manifest = copy.deepcopy(sound)
        NAMED[what](manifest, bad)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=f"the manifest has {what} .*expected at most 64") as caught:
            read_bundle(folder)
        assert str(caught.value).isprintable()


def test_what_a_library_quotes_from_a_bundle_does_not_reach_a_terminal_as_it_is(make_toy: MakeToy) -> None:
    folder = make_toy()
    graph = onnx.load(folder / "step.onnx")
    graph.graph.node[0].op_type = "\x1b]0;title\x07"
    onnx.save(graph, folder / "step.onnx")
    edit(folder, lambda m: m["files"].update({"step.onnx": sha256(folder / "step.onnx")}))
    with pytest.raises(BundleError, match=r"cannot load .*\\x1b\]0;title\\x07") as caught:
        load(folder)(np.zeros((8, 8, 3), np.uint8))
    assert str(caught.value).replace("\n", "").isprintable()


def test_a_link_out_of_the_folder_is_refused(make_toy: MakeToy, tmp_path: Path) -> None:
    folder = make_toy()
    outside = tmp_path / "outside.onnx"
    (folder / "step.onnx").rename(outside)
    (folder / "step.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="leads out of the bundle's folder"):
        read_bundle(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "states no schema"),
        ("null", "states no schema"),
        ('{"schema": NaN}', "it has NaN, which is no number"),
        ('{"schema": -Infinity}', "it has -Infinity"),
        ('{"schema": 1e999}', "has the number 1e999, which is too large"),
        ('{"schema": 1, "schema": 2}', "it has the key 'schema' twice"),
        ('{"schema": 1, "a": ' + "[" * 40 + "]" * 40 + "}", "nested deeper than 32"),
        ("[" * 100_000, "nested too deep|nested deeper|is not JSON"),
        ('{"schema": ' + "1" * 5000 + "}", "is not JSON"),
        ('{"schema": 1, "a": "' + "x" * (1 << 20) + '"}', "it has more than 1048576 bytes"),
        ('{"schema": 1, "a": "\ud800"}', "is not JSON"),
    ],
)
def test_not_json(make_toy: MakeToy, text: str, message: str) -> None:
    folder = make_toy()
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BundleError, match=message):
        read_bundle(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
@pytest.mark.parametrize("name", ["manifest.json", "constants.safetensors", "step.onnx"])
def test_what_is_no_regular_file_is_refused_at_once(make_toy: MakeToy, name: str) -> None:
    folder = make_toy()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BundleError, match="it is not a regular file"):
        read_bundle(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(BundleError, match=r"it is not a regular file|Is a directory"):
        read_bundle(folder)


def test_a_path_is_text_too_and_nothing_else(make_toy: MakeToy) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    folder = make_toy()
    np.testing.assert_array_equal(load(str(folder))(image).image, load(folder)(image).image)
    for bad in (7, b"toy", ["toy"]):
        with pytest.raises(BundleError, match="expected the path of a bundle's folder"):
            load(bad)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="is not a bundle"):
        load("a\0b")


def test_graphs_must_be_what_the_manifest_declares(make_toy: MakeToy) -> None:
    folder = make_toy()
    edit(folder, lambda m: m["components"]["encode"]["outputs"][0].update(dtype="float16"))
    with pytest.raises(ModelError, match="its manifest declares"):
        load(folder)(np.zeros((8, 8, 3), np.uint8))


def test_unwired_tensor_is_named(make_toy: MakeToy) -> None:
    folder = make_toy()
    edit(folder, lambda m: m["modes"]["deblur"]["components"].remove("encode"))
    with pytest.raises(ModelError, match="'step' reads 'z', which nothing before it writes"):
        load(folder)(np.zeros((8, 8, 3), np.uint8))


def test_a_file_that_is_no_graph_is_refused(make_toy: MakeToy) -> None:
    folder = make_toy()
    (folder / "step.onnx").write_bytes(b"not a graph")
    edit(folder, lambda m: m["files"].update({"step.onnx": sha256(folder / "step.onnx")}))
    with pytest.raises(BundleError, match=r"cannot load .*step\.onnx"):
        load(folder)(np.zeros((8, 8, 3), np.uint8))


SPEC = {"name": "blur_image", "dtype": "float32", "shape": ["batch", 3, "blur_height", "blur_width"]}
IMAGE = {"name": "image", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}


@pytest.mark.parametrize(
    "inputs",
    [[], [SPEC], [IMAGE, SPEC], [IMAGE | {"dtype": "uint8"}], [IMAGE | {"shape": [1, 3, "width", "height"]}]],
    ids=["none", "another", "one more", "another dtype", "another shape"],
)
def test_inputs_of_a_mode_are_those_that_its_components_read(make_toy: MakeToy, inputs: list[dict[str, Any]]) -> None:
    folder = make_toy()
    edit(folder, lambda manifest: manifest["modes"]["deblur"].update(inputs=[IMAGE]))
    assert [spec.name for spec in read_bundle(folder).modes["deblur"].inputs] == ["image"]
    edit(folder, lambda manifest: manifest["modes"]["deblur"].update(inputs=inputs))
    with pytest.raises(BundleError, match=r"declares the inputs .*, and its components read image float32"):
        read_bundle(folder)


@pytest.mark.parametrize("preset", [{"steps": 0, "views": 1}, {"steps": 1, "views": 12}])
def test_presets_that_cannot_run_are_refused(make_toy: MakeToy, preset: dict[str, int]) -> None:
    folder = make_toy()
    edit(folder, lambda manifest: manifest.update(qualities={"odd": preset}))
    with pytest.raises(BundleError, match=r"of preset 'odd' (0|12); expected a whole number, 1 to (1000|8)"):
        read_bundle(folder)
