"""The server as a client meets it: a real process, real HTTP and gRPC."""

import json
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import requests
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from served import DIM, PATCH, free_port, metric, running_server, serve_command
from tritonclient.utils import InferenceServerException

EXPECTED = "input 'images': expected FP32 [N, 3, H, W] with H and W multiples of 8"


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(2, 3, 24, 40)).astype(np.float32)


@pytest.fixture(scope="module")
def grpc(server):
    with grpc_client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        yield client


def body(images, **changes):
    tensor = {"name": "images", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return {"inputs": [{**tensor, **changes}]}


def post(server, payload, **kwargs):
    return requests.post(f"{server.url}/v2/models/mum/infer", json=payload, timeout=30, **kwargs)


def tensor(module, images, *, name="images", datatype="FP32"):
    given = module.InferInput(name, list(images.shape), datatype)
    given.set_data_from_numpy(images)
    return given


def test_starts_without_torch_and_gets_ready(server, grpc):
    """The fixture's process refuses to import torch and timm; that it answers at all is the test."""
    assert requests.get(f"{server.url}/v2/health/live", timeout=5).json() == {"live": True}
    assert requests.get(f"{server.url}/v2/models/mum/ready", timeout=5).json() == {"name": "mum", "ready": True}
    assert grpc.is_server_live()
    assert grpc.is_server_ready()
    assert grpc.is_model_ready("mum")


def test_metadata(server, grpc):
    expected = {
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, -1, -1]}],
        "outputs": [
            {"name": "cls", "datatype": "FP32", "shape": [-1, DIM]},
            {"name": "patch_tokens", "datatype": "FP32", "shape": [-1, -1, DIM]},
        ],
    }
    answer = requests.get(f"{server.url}/v2/models/mum", timeout=5).json()
    assert {key: answer[key] for key in expected} == expected
    metadata = grpc.get_model_metadata("mum", as_json=True)
    assert [output["name"] for output in metadata["outputs"]] == ["cls", "patch_tokens"]
    assert metadata["inputs"][0]["shape"] == ["-1", "3", "-1", "-1"]


def test_rest_agrees_with_torch(server, images, features_by_torch):
    answer = post(server, {"id": "a7", **body(images)})
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == "a7"
    for output, expected in zip(answer.json()["outputs"], features_by_torch(images), strict=True):
        actual = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_grpc_agrees_with_torch(grpc, images, features_by_torch):
    answer = grpc.infer("mum", [tensor(grpc_client, images)])
    for name, expected in zip(("cls", "patch_tokens"), features_by_torch(images), strict=True):
        np.testing.assert_allclose(answer.as_numpy(name), expected, atol=1e-5)


def test_rest_with_binary_tensors(server, images, features_by_torch):
    with http_client.InferenceServerClient(f"127.0.0.1:{server.http_port}") as client:
        wanted = [http_client.InferRequestedOutput("cls", binary_data=True)]
        answer = client.infer("mum", [tensor(http_client, images)], outputs=wanted)
    np.testing.assert_allclose(answer.as_numpy("cls"), features_by_torch(images)[0], atol=1e-5)


def test_only_wanted_outputs_come_back(server, grpc, images):
    answer = post(server, {**body(images), "outputs": [{"name": "cls"}]}).json()
    assert [output["name"] for output in answer["outputs"]] == ["cls"]
    result = grpc.infer("mum", [tensor(grpc_client, images)], outputs=[grpc_client.InferRequestedOutput("cls")])
    assert [output.name for output in result.get_response().outputs] == ["cls"]


def test_as_many_pixels_as_allowed_fit_through_grpc(grpc):
    images = np.zeros((64, 3, 128, 128), np.float32)  # 1048576 pixels, 12.6 MB: above gRPC's and kserve's own limits
    assert grpc.infer("mum", [tensor(grpc_client, images)]).as_numpy("patch_tokens").shape == (64, 256, DIM)


ZEROS = np.zeros((1, 3, 32, 32), np.float32)
NAN = np.where(np.arange(ZEROS.size).reshape(ZEROS.shape) < 2, np.float32("nan"), ZEROS)

WRONG_REQUESTS = {
    "shape": (body(np.zeros((1, 3, 30, 30)), datatype="FP64"), f"{EXPECTED}, got FP64 [1, 3, 30, 30]"),
    "sides": (body(np.zeros((1, 3, 30, 32))), f"{EXPECTED}, got FP32 [1, 3, 30, 32]"),
    "layout": (body(np.zeros((1, 32, 32, 3))), f"{EXPECTED}, got FP32 [1, 32, 32, 3]"),
    "no batch": (body(np.zeros((3, 32, 32))), f"{EXPECTED}, got FP32 [3, 32, 32]"),
    "empty": (body(np.zeros((0, 3, 32, 32))), f"{EXPECTED}, got FP32 [0, 3, 32, 32]"),
    "name": (body(ZEROS, name="image"), f"{EXPECTED}, got input 'image'"),
    "none": ({"inputs": []}, f"{EXPECTED}, got no input"),
    "size": (body(ZEROS, data=[0.0] * 5), "as many numbers as its shape [1, 3, 32, 32] says, got other data"),
    "text": (body(ZEROS, data=["a"] * ZEROS.size), "could not convert string to float"),
    "null": (body(ZEROS, data=[None] * ZEROS.size), "got 3072 that are NaN or infinite"),
    "output": ({**body(ZEROS), "outputs": [{"name": "clz"}]}, "expected any of cls, patch_tokens; got clz"),
    "large": (body(ZEROS, shape=[1, 3, 8192, 8192]), "at most 1048576 pixels (N * H * W) in a request, got 67108864"),
    "protocol": ({"instances": []}, f"{EXPECTED}; got no such request: body.InferenceRequest.inputs"),
}


@pytest.mark.parametrize("case", WRONG_REQUESTS)
def test_wrong_rest_request(server, case):
    payload, message = WRONG_REQUESTS[case]
    answer = post(server, payload)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize("text", ["no json", "[1", ""])
def test_not_even_json(server, text):
    answer = requests.post(
        f"{server.url}/v2/models/mum/infer", data=text, headers={"content-type": "application/json"}, timeout=5
    )
    assert answer.status_code == 400
    assert EXPECTED in answer.json()["error"]


@pytest.mark.parametrize("cut", [1, 4, 1000])
def test_cut_binary_rest_request(server, cut):
    payload, length = http_client.InferenceServerClient.generate_request_body([tensor(http_client, ZEROS)])
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(length)}
    url = f"{server.url}/v2/models/mum/infer"
    assert requests.post(url, data=payload, headers=headers, timeout=5).status_code == 200
    answer = requests.post(url, data=payload[:-cut], headers=headers, timeout=5)
    assert answer.status_code == 400
    assert EXPECTED in answer.json()["error"]


@pytest.mark.parametrize("shape", [["1", 3, 32, 32], [1.0, 3, 32, 32], [[1], 3, 32, 32], [], "1,3,32,32", None])
def test_shape_that_is_none(server, shape):
    """A body of bytes is not checked by kserve."""
    payload = json.dumps(body(ZEROS, shape=shape)).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(payload))}
    answer = requests.post(f"{server.url}/v2/models/mum/infer", data=payload, headers=headers, timeout=5)
    assert answer.status_code == 400
    assert EXPECTED in answer.json()["error"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((np.zeros((1, 3, 30, 30)), "images", "FP64"), f"{EXPECTED}, got FP64 [1, 3, 30, 30]"),
        ((np.zeros((1, 3, 30, 30), np.float32), "images", "FP32"), f"{EXPECTED}, got FP32 [1, 3, 30, 30]"),
        ((ZEROS, "pixels", "FP32"), f"{EXPECTED}, got input 'pixels'"),
        ((NAN, "images", "FP32"), f"{EXPECTED}, all numbers finite; got 2 that are NaN or infinite"),
    ],
)
def test_wrong_grpc_request(grpc, given, message):
    array, name, datatype = given
    with pytest.raises(InferenceServerException) as error:
        grpc.infer("mum", [tensor(grpc_client, array, name=name, datatype=datatype)])
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in error.value.message()


def test_grpc_data_of_another_size(grpc):
    given = tensor(grpc_client, ZEROS)
    given.set_shape([2, 3, 32, 32])
    with pytest.raises(InferenceServerException) as error:
        grpc.infer("mum", [given])
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "as many numbers as its shape [2, 3, 32, 32] says" in error.value.message()


def test_unknown_model(server, grpc):
    answer = requests.get(f"{server.url}/v2/models/other", timeout=5)
    assert answer.status_code == 404
    with pytest.raises(InferenceServerException, match="other does not exist"):
        grpc.infer("other", [tensor(grpc_client, ZEROS)])


def test_protocol_version_1_is_told_where_to_go(server):
    answer = requests.post(f"{server.url}/v1/models/mum:predict", json={"instances": [[1]]}, timeout=5)
    assert answer.status_code == 400
    assert "POST /v2/models/mum/infer" in answer.json()["error"]


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_nobody_unloads_the_model(server, verb):
    answer = requests.post(f"{server.url}/v2/repository/models/mum/{verb}", timeout=5)
    assert answer.status_code == 400
    assert requests.get(f"{server.url}/v2/health/ready", timeout=5).status_code == 200


def test_metrics(server, images):
    def read():
        return {
            "infer": metric(server, 'mum_request_stage_seconds_count{stage="infer"}'),
            "images": metric(server, "mum_request_images_sum"),
            "shape": metric(server, 'mum_request_errors_total{kind="shape"}'),
            "internal": metric(server, 'mum_request_errors_total{kind="internal"}'),
        }

    before = read()
    post(server, body(images))
    post(server, body(images[:, :, :20]))
    after = read()
    assert after["infer"] == before["infer"] + 1
    assert after["images"] == before["images"] + len(images)
    assert after["shape"] == before["shape"] + 1
    assert after["internal"] == 0
    assert metric(server, 'request_predict_seconds_count{model_name="mum"}') > 0  # kserve's own


def test_a_refused_request_is_one_line_of_the_log(server):
    post(server, body(np.zeros((1, 3, 8, 4))))
    text = server.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert f"refused: {EXPECTED}, got FP32 [1, 3, 8, 4]" in [line["message"] for line in lines]
    assert "Traceback" not in text


def test_sigterm_answers_what_is_in_flight_and_exits_clean(exported, tmp_path):
    with running_server(exported, tmp_path / "log") as server:
        answers = []
        # A second of parsing and computing; made before, so that it is on its way when the server is stopped.
        images = np.zeros((8, 3, 32 * PATCH, 32 * PATCH), np.float32)
        url, request = f"{server.url}/v2/models/mum/infer", json.dumps(body(images, data=[0.0] * images.size))
        headers = {"content-type": "application/json"}
        sender = threading.Thread(
            target=lambda: answers.append(requests.post(url, data=request, headers=headers, timeout=30))
        )
        sender.start()
        time.sleep(0.5)
        assert server.stop() == 0, server.log.read_text()
        sender.join()
        assert [answer.status_code for answer in answers] == [200]
        assert "Traceback" not in server.log.read_text()


def refused(exported, http_port=None, grpc_port=None):
    command = serve_command(exported, http_port or free_port(), grpc_port or free_port())
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode != 0
    return process.stderr.strip().splitlines()[-1]


def test_missing_model(tmp_path):
    message = refused(tmp_path / "nowhere")
    assert "UserError" in message
    assert f"{tmp_path / 'nowhere'}: no exported encoder there" in message
    assert "`mum export` writes one" in message


def test_model_of_another_description(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    with (copy / "encoder.onnx").open("ab") as file:
        file.write(b"x")
    assert "SHA-256" in refused(copy)
    (copy / "encoder.onnx").unlink()
    assert "encoder.onnx: missing, though export.json lists it" in refused(copy)


def test_taken_port(server, exported):
    assert f"serve.grpc_port={server.grpc_port}: cannot listen there" in refused(exported, grpc_port=server.grpc_port)


READY_ONLY_AFTER_AN_INFERENCE = """
from concurrent.futures import ThreadPoolExecutor
from mum_model.serve.batching import QueueLimits
from mum_model.serve.contract import Contract, Tensor
from mum_model.serve.model import EncoderModel

class Encoder:
    contract = Contract(Tensor("images", "FP32", ("N", 3, "H", "W")), (), 8, (0, 0, 0), (1, 1, 1))
    digest = ""

    def __call__(self, images):
        print(images.shape, model.ready)

model = EncoderModel("mum", "1", Encoder(), None, ThreadPoolExecutor(1), QueueLimits(1, 1, 1), max_pixels=1000)
model.start()
model.load()
print(model.ready)
"""


def test_ready_only_after_an_inference():
    # In a process of its own: kserve and tritonclient register the same protobuf names and cannot share one.
    command = [sys.executable, "-c", READY_ONLY_AFTER_AN_INFERENCE]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    assert printed.splitlines() == ["(1, 3, 16, 16) False", "True"]
