"""What the server answers; the model only inverts."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from image_files import ICC, camera_exif
from inverting_cli import pixels
from PIL import Image
from serving import Running, opened, png, served

from uid.errors import InputError
from uid.runtime.media.decode import read_image
from uid.serve.app import application
from uid.serve.hosting import host_app, listening
from uid.serve.openapi import description
from uid.serve.queue import Queue
from uid.serve.settings import ServeSettings


def error_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


def test_an_image_comes_back_in_its_format_with_all_beside_its_pixels(server: Running) -> None:
    answer = server.deblur(png(pixels()), seed=7)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert np.array_equal(opened(answer.content), 255 - pixels())
    assert (answer.headers["uid-backend"], answer.headers["uid-seed"]) == ("inverter", "7")
    assert "queued;dur=" in answer.headers["server-timing"]

    photo = io.BytesIO()
    Image.fromarray(pixels()).save(photo, "JPEG", exif=camera_exif(6), icc_profile=ICC)
    sharp = Image.open(io.BytesIO(server.deblur(photo.getvalue()).content))
    assert (sharp.format, sharp.size, sharp.info["icc_profile"]) == ("JPEG", (32, 48), ICC)
    assert sharp.getexif()[271] == "camera"


def test_options_come_in_the_query_or_in_the_form_by_the_names_of_uid_run(server: Running) -> None:
    form = {"seed": "5", "jpeg-quality": "50", "format": "jpg"}
    answer = server.http.post("/api/deblur", files={"image": ("a.png", png(pixels()))}, data=form)
    assert (answer.headers["content-type"], answer.headers["uid-seed"]) == ("image/jpeg", "5")
    part = server.deblur(png(pixels()), preview="4,8,16,12", format="webp")
    assert part.headers["content-type"] == "image/webp"
    assert np.array_equal(opened(part.content), 255 - pixels()[8:20, 4:20])


@pytest.mark.parametrize(
    ("accept", "format"), [("image/webp", "webp"), ("image/webp, image/png", "png"), ("image/*", "png"), ("*/*", "png")]
)
def test_the_format_is_one_that_the_client_accepts(server: Running, accept: str, format: str) -> None:
    answer = server.http.post("/api/deblur", content=png(pixels()), headers={"accept": accept})
    assert answer.headers["content-type"] == f"image/{format}"


WRONG: list[tuple[dict[str, str], int, str]] = [
    ({"steps": "many"}, 400, "Invalid value for '--steps'"),
    ({"seed": "-1"}, 400, "Invalid value for '--seed'"),
    ({"stps": "2"}, 400, "there is no option 'stps'; expected one of cache-interval"),
    ({"model": "/etc"}, 400, "there is no option 'model'"),
    ({"mode": "paint"}, 400, "bundle 'fake' has no mode 'paint'"),
    ({"format": "gif"}, 400, "'gif' is no format"),
    ({"preview": "0,0,999,1"}, 422, "is not within the image"),
]


@pytest.mark.parametrize(("options", "status", "told"), WRONG, ids=lambda value: str(value)[:30])
def test_options_are_refused_in_the_words_of_uid_run(
    server: Running, options: dict[str, str], status: int, told: str
) -> None:
    answer = server.deblur(png(pixels()), **options)
    assert answer.status_code == status
    assert told in error_of(answer)


@pytest.mark.parametrize(
    "data",
    [b"", b"no image", png(pixels())[:99], png(pixels(height=1001, width=100))],
    ids=["empty", "text", "cut", "large"],
)
def test_an_image_is_refused_in_the_words_of_uid_run(server: Running, data: bytes) -> None:
    with pytest.raises(InputError) as error:
        read_image(data, name="b.png", max_pixels=100_000)
    answer = server.http.post("/api/deblur", files={"image": (r"..\..\a/../b.png", data)})
    assert (answer.status_code, error_of(answer)) == (422, str(error.value))
    assert not server.pipeline.finished
    assert server.deblur(png(pixels())).status_code == 200


def test_progress_ends_in_the_image_or_the_error(server: Running) -> None:
    def lines(data: bytes) -> list[dict[str, Any]]:
        headers = {"accept": "application/x-ndjson"}
        answer = server.http.post("/api/deblur", files={"image": ("a.png", data)}, headers=headers)
        return [json.loads(line) for line in answer.text.splitlines()]

    *steps, last = lines(png(pixels()))
    assert base64.b64decode(last["image"]) == server.deblur(png(pixels())).content
    assert last["type"] == "image/png"
    assert last["headers"]["uid-backend"] == "inverter"
    assert all(set(step) in ({"ahead"}, {"done", "total"}) for step in steps)
    *_, last = lines(b"no image")
    assert (last["status"], last["error"]["code"]) == (422, "bad_image")


# -- the OpenAI form --------------------------------------------------------------------------------------------------


def test_openais_own_client_edits_an_image(server: Running) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{server.url}v1", api_key="none", max_retries=0)
    edited = client.images.edit(
        image=("a.png", png(pixels())), prompt="sharpen", model="edge", output_format="webp", extra_body={"seed": 3}
    )
    assert np.array_equal(opened(base64.b64decode(edited.data[0].b64_json)), 255 - pixels())
    assert edited.output_format == "webp"
    with pytest.raises(openai.UnprocessableEntityError, match=r"bad\.png is of no format that is known here"):
        client.images.edit(image=("bad.png", b"no image"), prompt="")
    with pytest.raises(openai.BadRequestError, match="leave it out"):
        client.images.edit(image=("a.png", png(pixels())), mask=("m.png", b"m"), prompt="")


# -- what operators see -----------------------------------------------------------------------------------------------


def test_states_and_counters(server: Running) -> None:
    server.deblur(png(pixels()))
    server.deblur(b"no image")
    assert server.http.get("/healthz").json() == {"alive": True}
    assert server.http.get("/readyz").status_code == 200
    lines = server.http.get("/metrics").text.splitlines()
    assert 'uid_requests_total{route="/api/deblur",status="200"} 1.0' in lines
    assert 'uid_failures_total{kind="bad_image"} 1.0' in lines
    assert f"uid_pixels_total {32 * 48:.1f}" in lines
    assert "uid_computed_seconds_count 1.0" in lines
    assert "uid_queue_length 0.0" in lines


def test_the_description_has_every_option_and_the_model(server: Running) -> None:
    api = server.http.get("/api").json()
    options = {one["name"] for one in api["paths"]["/api/deblur"]["post"]["parameters"]}
    assert {"preset", "seed", "strength", "jpeg_quality"} <= options
    assert api["x-uid"]["model"]["name"] == "fake"
    assert description(None, ServeSettings())["x-uid"]["model"] is None


WORD = "a word that both know"


def test_a_server_with_a_token_wants_it() -> None:
    with served(token=WORD) as server:
        assert server.http.get("/").status_code == server.http.get("/readyz").status_code == 200
        for path in ("/api", "/metrics"):
            assert server.http.get(path).status_code == 401
        assert server.deblur(png(pixels())).status_code == 401
        server.http.headers["authorization"] = "Bearer wrong"
        assert server.deblur(png(pixels())).status_code == 401
        server.http.headers["authorization"] = f"Bearer {WORD}"
        assert server.deblur(png(pixels())).status_code == 200


def test_without_a_token_other_sites_cannot_use_it() -> None:
    with served(hosts=("127.0.0.1", "localhost", "::1")) as server:
        assert server.http.get("/healthz", headers={"host": "evil.example"}).status_code == 421
        assert server.http.get("/healthz", headers={"host": "[::1]:7000"}).status_code == 200
        own = {"origin": str(server.http.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
        assert server.http.post("/api/deblur", content=png(pixels()), headers=own).status_code == 200
        sites = [{"sec-fetch-site": site} for site in ("cross-site", "same-site")]
        for foreign in (*sites, {"origin": "http://evil.example"}, {"origin": "null"}):
            assert server.http.post("/api/deblur", content=png(pixels()), headers=foreign).status_code == 403
        assert server.deblur(png(pixels())).status_code == 200


def test_a_model_that_does_not_load_ends_the_server() -> None:
    def load() -> Any:
        raise InputError("no such bundle")

    queue = Queue(load, places=1, workers=1)
    app = application(queue, ServeSettings())
    with pytest.raises(InputError, match="no such bundle"):
        host_app(app, queue, listening("127.0.0.1", 0))
