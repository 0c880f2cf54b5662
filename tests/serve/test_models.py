"""Several models and versions, exchanged while the server runs; and a stop that loses nothing."""

import contextlib
import json
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
import requests
from pictures import encoded, picture
from served import metric, running_server

from mum_model.export.provenance import described


def scaled(exported, target, factor):
    """The same encoder with a CLS token of another length, so that its answers are told apart."""
    shutil.copytree(exported, target)
    model = onnx.load(target / "encoder.onnx")
    cls = next(node for node in model.graph.node if "cls" in node.output)
    cls.output[0] = "unscaled"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(factor), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["unscaled", "factor"], ["cls"]))
    onnx.save(model, target / "encoder.onnx")
    description = json.loads((target / "export.json").read_text())
    description["files"] = [described(target / "encoder.onnx")]
    (target / "export.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def folder(exported, tmp_path_factory):
    """Of two models; every test leaves it as it was."""
    folder = tmp_path_factory.mktemp("models")
    scaled(exported, folder / "rooms" / "1", 1)
    scaled(exported, folder / "streets" / "9", 5)
    return folder


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("many") / "log"
    with running_server("nowhere", log, f"serve.models={folder}", "serve.reload_seconds=0.1") as server:
        yield server


PICTURE = encoded(picture(32, 32), "PNG")


def cls(server, path):
    answer = requests.post(f"{server.url}/v2/models/{path}/images?size=32", data=PICTURE, timeout=10)
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["images"][0]["cls"])


def index(server):
    return requests.post(f"{server.url}/v2/repository/index", timeout=5).json()


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing changed in 20 s"
        time.sleep(0.05)


def test_versions_come_are_damaged_and_go(server, exported, folder):
    one = cls(server, "rooms")
    np.testing.assert_allclose(cls(server, "streets"), 5 * one, rtol=1e-4)

    scaled(
        exported, folder / "rooms" / ".new", 3
    )  # written beside, then named: a copy that takes long is not seen half
    (folder / "rooms" / ".new").rename(folder / "rooms" / "10")
    wait_until(lambda: any(entry["version"] == "10" for entry in index(server)))
    np.testing.assert_allclose(cls(server, "rooms"), 3 * one, rtol=1e-4)
    np.testing.assert_allclose(cls(server, "rooms/versions/1"), one, rtol=1e-4)
    assert requests.get(f"{server.url}/v2/models/rooms/versions/10/ready", timeout=5).status_code == 200
    assert requests.get(f"{server.url}/v2/models/rooms/versions/2/ready", timeout=5).status_code == 404
    assert metric(server, 'mum_model_info{model="rooms",sha256=') == 1

    (folder / "rooms" / "10" / "encoder.onnx").write_bytes(b"garbage")
    wait_until(lambda: any(entry["state"] == "UNAVAILABLE" for entry in index(server)))
    np.testing.assert_allclose(cls(server, "rooms"), 3 * one, rtol=1e-4)
    (problem,) = [entry for entry in index(server) if entry["state"] == "UNAVAILABLE"]
    assert problem["name"] == str(folder / "rooms" / "10")
    assert "SHA-256" in problem["reason"]
    assert "the version loaded before goes on serving" in server.log.read_text()
    assert metric(server, 'mum_model_loads_total{outcome="refused"}') == 1

    shutil.rmtree(folder / "rooms" / "10")
    wait_until(lambda: [entry["version"] for entry in index(server)] == ["1", "9"])
    np.testing.assert_allclose(cls(server, "rooms"), one, rtol=1e-4)


def test_garbage_that_describes_itself_well_is_refused(server, folder):
    """A file with the right checksum that is no ONNX."""
    (folder / "rooms" / "2").mkdir()
    (folder / "rooms" / "2" / "encoder.onnx").write_bytes(b"garbage")
    description = json.loads((folder / "rooms" / "1" / "export.json").read_text())
    description["files"] = [described(folder / "rooms" / "2" / "encoder.onnx")]
    (folder / "rooms" / "2" / "export.json").write_text(json.dumps(description))
    wait_until(lambda: any("ONNX Runtime cannot run it" in entry["reason"] for entry in index(server)))
    assert requests.get(f"{server.url}/v2/health/ready", timeout=5).status_code == 200
    (folder / "rooms" / "2" / "export.json").write_text("{}")
    wait_until(lambda: any("not what `mum export` writes" in entry["reason"] for entry in index(server)))
    shutil.rmtree(folder / "rooms" / "2")
    wait_until(lambda: [entry["version"] for entry in index(server)] == ["1", "9"])


def test_no_answer_is_wrong_or_lost_while_versions_change(server, exported, folder):
    one = cls(server, "rooms")
    failures = []

    def ask():
        while not stop.is_set():
            try:
                ratio = np.median(cls(server, "rooms") / one)
                assert min(abs(ratio - 1), abs(ratio - 2)) < 1e-3
            except Exception as error:
                failures.append(error)

    stop = threading.Event()
    with ThreadPoolExecutor(3) as executor:
        for _ in range(3):
            executor.submit(ask)
        scaled(exported, folder / "rooms" / ".new", 2)
        (folder / "rooms" / ".new").rename(folder / "rooms" / "2")
        wait_until(lambda: any(entry["version"] == "2" for entry in index(server)))
        time.sleep(0.5)
        stop.set()
    assert failures == []
    np.testing.assert_allclose(cls(server, "rooms"), 2 * one, rtol=1e-4)


def test_sigterm_under_load_loses_no_accepted_request(exported, tmp_path):
    """What the server has logged, somebody got an answer to; after the stop, clients find the door closed."""
    answered = []
    pixels = encoded(picture(128, 128))

    def ask(server):
        with contextlib.suppress(requests.ConnectionError):
            while True:
                url = f"{server.url}/v2/models/mum/images?size=128"
                answered.append(requests.post(url, data=pixels, timeout=30).status_code)

    with running_server(exported, tmp_path / "log") as server:
        with ThreadPoolExecutor(8) as executor:
            for _ in range(8):
                executor.submit(ask, server)
            time.sleep(1)
            assert server.stop() == 0, server.log.read_text()
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        requested = [line for line in lines if line["message"] == "request"]
        assert len(requested) == len(answered) > 16
        assert set(answered) == {200}
        assert not any("traceback" in line for line in lines)


def test_load_balancers_are_told_before_the_door_closes(exported, tmp_path):
    with running_server(exported, tmp_path / "log", "serve.linger_seconds=1.5") as server:
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert requests.get(f"{server.url}/v2/health/ready", timeout=5).status_code == 503
        assert requests.get(f"{server.url}/v2/health/live", timeout=5).status_code == 200
        assert len(cls(server, "mum")) > 0
        assert server.process.wait(timeout=30) == 0
