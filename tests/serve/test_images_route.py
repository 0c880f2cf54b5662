"""The route for people with photos: files in, features out, and a reason for every file that is refused."""

import contextlib
import io
import json
import time

import numpy as np
import pytest
import requests
from pictures import animation, bomb, encoded, picture
from served import DIM, PATCH, metric


def post(server, *, files=None, data=None, accept=None, **query):
    url = f"{server.url}/v2/models/mum/images"
    headers = {"Accept": accept} if accept else {}
    return requests.post(url, params=query, files=files, data=data, headers=headers, timeout=30)


def normalised(pixels):
    images = (np.float32(pixels) / 255 - np.float32([0.4, 0.5, 0.6])) / np.float32([0.2, 0.3, 0.4])
    return np.ascontiguousarray(images.transpose(2, 0, 1)[None])


def test_one_image_as_the_body(server, features_by_torch):
    pixels = picture(48, 64)
    answer = post(server, data=encoded(pixels, "PNG"), size=48, outputs="cls,patch_tokens")
    assert answer.status_code == 200, answer.text
    (image,) = answer.json()["images"]
    cls, patch_tokens = features_by_torch(normalised(pixels))
    assert (image["rows"], image["columns"]) == (6, 8)
    np.testing.assert_allclose(image["cls"], cls[0], atol=1e-5)
    np.testing.assert_allclose(image["patch_tokens"], patch_tokens[0], atol=1e-5)
    assert answer.headers["x-model-version"] == answer.json()["model_version"]


def test_a_form_of_files_of_different_sizes(server):
    files = [("file", ("a.jpg", encoded(picture(40, 80)))), ("file", ("b.png", encoded(picture(80, 40), "PNG")))]
    answer = post(server, files=files, size=40).json()
    assert [(image["name"], image["rows"], image["columns"]) for image in answer["images"]] == [
        ("a.jpg", 5, 10),
        ("b.png", 10, 5),
    ]
    assert all(len(image["cls"]) == DIM and "patch_tokens" not in image for image in answer["images"])


def test_full_size_and_npz(server):
    answer = post(
        server, data=encoded(picture(24, 48)), size="full", accept="application/x-npz", outputs="patch_tokens"
    )
    with np.load(io.BytesIO(answer.content)) as archive:
        assert archive["grids"].tolist() == [[24 // PATCH, 48 // PATCH]]
        assert archive["patch_tokens"].shape == (1, 18, DIM)


def test_in_a_form_larger_than_memory_files_usually_are(server):
    """Nothing is spooled to a disk that may be full or read-only."""
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    assert post(server, files={"file": encoded(noise, "PNG")}, size=32).status_code == 200


WRONG = {
    "cut": ({"data": encoded(picture(64, 64))[:-40]}, "breaks off before the image ends"),
    "bomb": ({"data": bomb()}, "30000 x 30000 pixels; at most 50000000 are read"),
    "animation": ({"data": animation()}, "an animation or a file of 3 pages"),
    "text": ({"data": b"hello"}, "not an image that can be read; expected one of JPEG"),
    "nothing": ({"data": b""}, "not an image that can be read"),
    "wide": ({"data": encoded(picture(4, 8000)), "size": 64}, "at most 1048576 pixels"),
    "output": ({"data": encoded(picture(32, 32)), "outputs": "clz"}, "expected any of cls, patch_tokens; got clz"),
    "size": ({"data": encoded(picture(32, 32)), "size": 0}, "query.size"),
    "one of two": ({"files": [("f", ("a", encoded(picture(32, 32)))), ("f", ("b.jpg", b"x"))]}, "b.jpg: not an image"),
    "too many": ({"files": [("f", (str(i), b"x")) for i in range(65)]}, "a form of at most 64 files"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_with_the_reason(server, case):
    given, reason = WRONG[case]
    answer = post(server, **given)
    assert answer.status_code == 400, answer.text
    assert reason in answer.json()["error"]


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_a_damaged_form(server, kind):
    url = f"{server.url}/v2/models/mum/images"
    answer = requests.post(url, data=b"--y\r\nno form", headers={"content-type": kind}, timeout=5)
    assert answer.status_code == 400
    assert "form" in answer.json()["error"]


def test_too_many_bytes_are_refused_by_their_number_alone(server):
    url = f"{server.url}/v2/models/mum/images"
    request = requests.Request("POST", url).prepare()
    request.headers["content-length"] = str(1 << 40)
    with requests.Session() as session:
        answer = session.send(request, timeout=5)
    assert answer.status_code == 413
    assert "expected a body of at most 67108864 bytes" in answer.json()["error"]


def test_a_body_without_end_is_cut(server):
    def endless():
        while True:
            yield bytes(1 << 20)

    before = metric(server, 'mum_request_errors_total{kind="size"}')
    with contextlib.suppress(requests.ConnectionError):  # the server answers and closes while we still send
        requests.post(f"{server.url}/v2/models/mum/images", data=endless(), timeout=20)
    assert metric(server, 'mum_request_errors_total{kind="size"}') == before + 1


def test_request_id_is_given_back_and_logged(server):
    answer = requests.get(f"{server.url}/v2/models", headers={"x-request-id": "abc-1"}, timeout=5)
    assert answer.headers["x-request-id"] == "abc-1"
    deadline = time.monotonic() + 5
    while "abc-1" not in server.log.read_text() and time.monotonic() < deadline:  # written after the answer was sent
        time.sleep(0.02)
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "abc-1"]
    assert (line["message"], line["path"], line["status"]) == ("request", "/v2/models", 200)
    hostile = requests.get(f"{server.url}/v2/models", headers={"x-request-id": "a b" * 99}, timeout=5)
    assert len(hostile.headers["x-request-id"]) == 32
