"""The route that hides parts of photos and shows what the whole model makes of them."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
import requests
import torch
from pictures import encoded, picture
from PIL import Image
from served import PATCH, metric, running_server

from mum_model.errors import UserError
from mum_model.model.pixels import normalise_pixels
from mum_model.pretrain.pictures import GAP, reconstruction
from mum_model.serve.encoder import OnnxEncoder


def post(server, views, *, accept=None, **query):
    files = [("file", (f"{i}.png", encoded(view, "PNG"))) for i, view in enumerate(views)]
    headers = {"Accept": accept} if accept else {}
    url = f"{server.url}/v2/models/mum/reconstruct"
    return requests.post(url, params=query, files=files, headers=headers, timeout=30)


def pixels_of(text):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


VIEWS = [picture(48, 64, seed) for seed in range(3)]


def test_it_is_what_pytorch_makes_of_it(server, model):
    """Input, what was seen and the reconstruction, as the picture that training draws of the same masks."""
    answer = post(server, VIEWS, size=48, mask_ratio=0.6, seed=5)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["rows"], content["columns"], content["patch_size"]) == (6, 8, PATCH)
    assert [view["name"] for view in content["views"]] == ["0.png", "1.png", "2.png"]
    noise = torch.ones(3, 48)
    for row, view in zip(noise, content["views"], strict=True):
        assert len(view["visible"]) == int(48 * 0.4)
        row[view["visible"]] = 0
    images = normalise_pixels(torch.from_numpy(np.stack(VIEWS)).permute(0, 3, 1, 2))
    with torch.no_grad():
        output = model[0](images[None], mask_ratio=0.6, noise=noise)
    drawn = np.float32(reconstruction(model[0], images, output))
    for i, view in enumerate(content["views"]):
        column = drawn[:, i * (64 + GAP) :][:, :64]
        for row, kind in enumerate(("input", "seen", "reconstruction")):
            expected = column[row * (48 + GAP) :][:48]
            assert np.abs(pixels_of(view[kind]) - expected).max() <= 1, kind
    shown = post(server, VIEWS, size=48, mask_ratio=0.6, seed=5, accept="image/png")
    assert shown.headers["content-type"] == "image/png"
    assert np.abs(np.float32(Image.open(io.BytesIO(shown.content))) - drawn).max() <= 1


def test_the_seed_decides_the_mask(server):
    masks = [
        [view["visible"] for view in post(server, VIEWS, size=48, seed=seed).json()["views"]] for seed in (1, 1, 2)
    ]
    assert masks[0] == masks[1] != masks[2]
    assert masks[0][0] != masks[0][1]


def test_one_image_as_the_body(server):
    url = f"{server.url}/v2/models/mum/versions/{version(server)}/reconstruct"
    answer = requests.post(url, params={"size": 32}, data=encoded(picture(32, 64)), timeout=30).json()
    assert (answer["rows"], answer["columns"], len(answer["views"])) == (4, 8, 1)


def version(server):
    (entry,) = requests.post(f"{server.url}/v2/repository/index", timeout=5).json()
    return entry["version"]


def test_other_shapes_are_cut_to_that_of_the_first(server):
    portrait = np.zeros((90, 30, 3), np.uint8)
    portrait[30:60] = 255  # its middle square
    first, second = post(server, [picture(40, 40), portrait], size=40).json()["views"]
    assert pixels_of(first["input"]).shape == pixels_of(second["input"]).shape == (40, 40, 3)
    assert pixels_of(second["input"]).min() > 250


WRONG = {
    "nothing seen": ({"size": 48, "mask_ratio": 0.999}, "leaves some of 48 patches seen"),
    "ratio": ({"mask_ratio": 1.5}, "query.mask_ratio"),
    "ratio that is none": ({"mask_ratio": "nan"}, "query.mask_ratio"),
    "seed": ({"seed": -1}, "query.seed"),
    "large": ({"size": 800}, "at most 1048576 pixels (N * H * W) in a request"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_with_the_reason(server, case):
    query, reason = WRONG[case]
    before = metric(server, 'mum_request_errors_total{kind="internal"}')
    answer = post(server, VIEWS, **query)
    assert answer.status_code == 400, answer.text[:300]
    assert reason in answer.json()["error"]
    assert metric(server, 'mum_request_errors_total{kind="internal"}') == before


def test_a_broken_view_is_named(server):
    files = [("file", ("a.png", encoded(VIEWS[0], "PNG"))), ("file", ("b.png", b"cut"))]
    answer = requests.post(f"{server.url}/v2/models/mum/reconstruct", files=files, timeout=30)
    assert answer.status_code == 400
    assert "b.png: not an image" in answer.json()["error"]


def test_an_encoder_alone(exported, tmp_path):
    """Features as ever, no reconstruction, and the reason."""
    copy = shutil.copytree(exported, tmp_path / "copy")
    description = json.loads((copy / "export.json").read_text())
    description |= {"reconstruction": None, "files": description["files"][:1]}
    (copy / "reconstruction.onnx").unlink()
    (copy / "export.json").write_text(json.dumps(description))
    with running_server(copy, tmp_path / "log") as server:
        answer = post(server, VIEWS)
        assert answer.status_code == 400
        assert "`mum export export.reconstruction=true` adds the rest" in answer.json()["error"]
        assert {model["reconstructs"] for model in requests.get(f"{server.url}/page/models", timeout=5).json()} == {
            False
        }
        assert requests.post(f"{server.url}/v2/models/mum/images", data=encoded(VIEWS[0]), timeout=30).ok


def test_a_damaged_whole_model_is_refused(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "reconstruction.onnx").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"reconstruction.onnx: SHA-256 is"):
        OnnxEncoder(copy)
