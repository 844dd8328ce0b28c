"""A cluster of this machine alone: the same bytes as without, whatever dies; and the service on it."""

import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import pytest
from inverting_cli import draw, tree
from PIL import Image

from uid.errors import BackendError, InputError
from uid.runtime.app.settings import RunSettings
from uid.serve import cluster, ray_session
from uid.serve.actors import Share, shared, spread

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="needs Ray: pip install -e '.[cluster]'")
FAST = ("--preset", "fast", "--backend", "onnxruntime")
CLUSTER = ("--cluster", "local", "--workers", "2", "--threads", "1")
WAIT = 600.0  # seconds; ends what hangs


def run(folder: Path, *words: str, code: int = 0) -> str:
    """``uid-run``; its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "uid", *words], cwd=folder, capture_output=True, text=True, timeout=WAIT
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in tree(folder)}


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_what_to_install_is_told() -> None:
    with pytest.raises(BackendError, match=r"needs Ray, which is not installed: .*install"):
        ray_session.imported()


@pytest.mark.parametrize(
    ("nodes", "asked", "expected"),
    [
        ([{"CPU": 8.0}], {}, Share(8, 1, 0)),
        ([{"CPU": 8.0}, {"CPU": 3.0}], {"threads": 2}, Share(5, 2, 0)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}], {}, Share(4, 1, 1)),
        ([{"CPU": 8.0, "GPU": 4.0}], {"device": "cpu", "actors": 2}, Share(2, 1, 0)),
        ([{"CPU": 8.0, "GPU": 4.0}], {"backend": "onnxruntime", "threads": 4}, Share(2, 4, 0)),
        ([{"CPU": 1.0}], {"backend": "tensorrt", "actors": 3}, Share(3, 1, 1)),  # which nodes to come may have
    ],
)
def test_actors_get_a_gpu_or_cpus(nodes: list[dict[str, float]], asked: dict[str, object], expected: Share) -> None:
    none: dict[str, object] = {"backend": "auto", "device": None, "threads": None, "actors": None}
    assert shared(nodes, **{**none, **asked}) == expected


@pytest.mark.parametrize("asked", [{"device": "cuda"}, {"threads": 16}])
def test_a_cluster_without_room_is_refused(asked: dict[str, object]) -> None:
    none: dict[str, object] = {"backend": "auto", "device": None, "threads": None, "actors": None}
    with pytest.raises(BackendError, match="no node of the cluster has"):
        shared([{"CPU": 8.0}], **{**none, **asked})


def test_a_gpu_by_its_number_is_refused() -> None:
    with pytest.raises(BackendError, match="the cluster gives each actor its GPU"):
        spread(RunSettings(("in",), "out", cluster="local", device="cuda:1"), lambda line: None)


def test_the_service_has_the_options_of_one_box() -> None:
    with pytest.raises(click.UsageError, match="--colour"):
        cluster.app({"colour": "red"})
    with pytest.raises(InputError, match="give a --token"):
        cluster.app({"host": "0.0.0.0"})  # noqa: S104


@needs_ray
def test_the_manifest_in_the_docs_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ray's schema, and by the application itself; KubeRay's own schema is not at hand."""
    import yaml
    from ray.serve.schema import ServeDeploySchema

    monkeypatch.setenv("UID_SERVE_TOKEN", "secret")
    page = Path(__file__).parents[2] / "docs" / "cluster.md"
    (text,) = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    spec = yaml.safe_load(text)["spec"]
    (served,) = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"])).applications
    assert served.import_path == f"{cluster.app.__module__}:{cluster.app.__name__}"
    deployment = cluster.app(served.args)._bound_deployment
    assert deployment.ray_actor_options == {"num_cpus": 1, "num_gpus": 1}
    assert deployment.max_queued_requests == 16
    for group in (spec["rayClusterConfig"]["headGroupSpec"], *spec["rayClusterConfig"]["workerGroupSpecs"]):
        assert set(group) <= {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@needs_ray
@pytest.mark.long
def test_photos_and_videos_are_those_of_one_process(tmp_path: Path) -> None:
    """Also files that fail, rows, and what a rerun leaves."""
    from video_files import make_clip

    for index in range(5):
        draw(tmp_path / "in" / f"{index}.png", seed=index)
    (tmp_path / "in" / "3.png").write_bytes(b"no image")
    make_clip(tmp_path / "in" / "clip.mp4", count=40, audio="aac")
    rows = {}
    for out, words in {"alone": (), "cluster": CLUSTER}.items():
        told = run(tmp_path, "in", "-o", out, "--json", "--keep-going", *FAST, *words, code=1)
        rows[out] = [json.loads(line) for line in told.splitlines()]
    assert files(tmp_path / "alone") == files(tmp_path / "cluster")
    for alone, spread_out in zip(*rows.values(), strict=True):
        assert {**alone, "output": "", "seconds": 0} == {**spread_out, "output": "", "seconds": 0}
    (tmp_path / "in" / "3.png").unlink()
    again = run(tmp_path, "in", "-o", "cluster", "--json", *FAST)  # alone, on what the cluster left
    assert all(json.loads(line)["why"] == "done before" for line in again.splitlines())


@pytest.mark.parametrize(
    ("address", "told"), [("127.0.0.1:1", "no cluster answers at 127.0.0.1:1"), ("cluster", "is no address")]
)
def test_no_cluster_there_is_told(address: str, told: str) -> None:
    with pytest.raises(BackendError, match=told), ray_session.joined(address):
        pass


@needs_ray
@pytest.mark.long
def test_a_machine_that_is_lost_is_done_without(tmp_path: Path) -> None:
    import lost_node

    for index in range(40):
        draw(tmp_path / "in" / f"{index:03}.png", seed=index)
    run(tmp_path, "in", "-o", "alone", *FAST)
    words = [sys.executable, lost_node.__file__, "in", "-o", "out", "--json", *FAST]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT)
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "out") == files(tmp_path / "alone")
    assert all(json.loads(line)["ok"] for line in done.stdout.splitlines() if line.startswith("{"))


@needs_ray
@pytest.mark.long
@pytest.mark.parametrize("kind", ["actor", "driver", "node"])
def test_what_dies_loses_nothing(tmp_path: Path, kind: str) -> None:
    from kill_cluster import faults

    assert list(faults(tmp_path, 40, [kind], seed=1)) == []


def assert_replicas_want_the_token() -> None:
    """Of all processes of this one, replicas alone listen on more than loopback, and refuse who has no token."""
    grpc, psutil = pytest.importorskip("grpc"), pytest.importorskip("psutil")
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            name = process.name()
            for one in process.net_connections("inet"):
                found += [(name, end) for end in (one.laddr, one.raddr) if end and "127.0.0.1" not in end.ip]
    assert found
    assert all(name.startswith("ray::ServeR") for name, _ in found), found
    with grpc.insecure_channel(f"127.0.0.1:{found[0][1].port}") as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/ray.serve.ASGIService/HandleRequest")(b"", timeout=60.0)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED


@contextmanager
def service(home: Path, *words: str) -> Iterator[str]:
    """``uid-serve --cluster local``, until SIGTERM, after which it ends with 0."""
    command = [sys.executable, "-m", "uid", "serve", "--cluster", "local", "--port", "0", "--preset", "fast", *words]
    environment = os.environ | {"HOME": str(home)}
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        found = re.search(r"http://\S+", server.stdout.readline())
        assert found, server.communicate()
        yield found[0]
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT) == 0
    finally:
        server.kill()
        server.communicate()


@needs_ray
@pytest.mark.long
def test_the_service_is_that_of_one_box(tmp_path: Path) -> None:
    """The same bytes, routes and page; what is too much is refused with 429, and what was taken is answered."""
    httpx = pytest.importorskip("httpx")
    draw(tmp_path / "in.png")
    run(tmp_path, "in.png", "-o", "out.png", *FAST)
    data, expected = (tmp_path / "in.png").read_bytes(), (tmp_path / "out.png").read_bytes()
    with (
        service(tmp_path / "home", "--queue", "2", "--replicas", "1", "--backend", "onnxruntime") as url,
        httpx.Client(timeout=WAIT) as http,
    ):
        api = f"{url}api/deblur"
        assert http.get(f"{url}readyz").json() == {"ready": True, "stopping": False}
        assert "<html" in http.get(url).text
        assert not list(tmp_path.glob("home/**/*token*"))
        assert_replicas_want_the_token()
        assert http.post(api, content=data).content == expected
        assert http.post(api, content=b"no image").status_code == 422
        with ThreadPoolExecutor(12) as pool:
            slow = {"preset": "full", "transforms": "8"}
            answers = list(pool.map(lambda _: http.post(api, content=data, params=slow), range(12)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
        else:
            assert np.asarray(Image.open(io.BytesIO(answer.content))).shape == (32, 48, 3)
