"""The queue: requests are computed together, and what cannot be done in time is refused at once."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from pictures import encoded, picture
from served import metric, running_server

from mum_model.serve.batching import Batcher, OverloadedError, QueueLimits

LIMITS = QueueLimits(queued_images=4, wait_seconds=30, batch_images=3)


class Doubler:
    """Stands for an encoder: gives back twice what it gets, once it is let go; notes the batches."""

    def __init__(self):
        self.batches, self.outputs, self.go = [], [], threading.Event()

    def __call__(self, inputs, outputs):
        images = inputs["images"]
        self.go.wait(10)
        self.batches.append(len(images))
        self.outputs.append(outputs)
        if (images < 0).any():
            raise ValueError("negative")
        return dict.fromkeys(outputs or ["a", "b"], 2 * images)


def images(count, value=1.0, side=2):
    return np.full((count, 3, side, side), value)


def run(scenario, limits=LIMITS):
    """Run requests against a batcher whose encoder is busy until all of them have been sent."""
    encoder = Doubler()

    async def all_of_it():
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(encoder, executor, limits)
            tasks = []
            for request in scenario:
                tasks.append(asyncio.create_task(batcher({"images": request[0]}, request[1])))
                await asyncio.sleep(0.01)  # the first one begins, the others wait
            encoder.go.set()
            return await asyncio.gather(*tasks, return_exceptions=True)

    return encoder, asyncio.run(all_of_it())


def test_what_waits_is_computed_together_and_handed_out_again():
    encoder, answers = run([(images(1, 1), None), (images(1, 2), None), (images(2, 3), None)])
    assert encoder.batches == [1, 3]
    for answer, (count, value) in zip(answers, [(1, 1), (1, 2), (2, 3)], strict=True):
        np.testing.assert_array_equal(answer["a"], images(count, 2 * value))


def test_other_sizes_wait_for_their_own_turn():
    encoder, answers = run([(images(1), None), (images(1, side=4), None), (images(1), None), (images(1, side=4), None)])
    assert encoder.batches == [1, 2, 1]
    assert [answer["a"].shape[-1] for answer in answers] == [2, 4, 2, 4]


def test_only_wanted_outputs_are_computed_and_handed_out():
    encoder, answers = run([(images(1), ["a"]), (images(1), ["b"]), (images(1), ["b", "a"])])
    assert encoder.outputs == [["a"], ["b", "a"]]
    assert [list(answer) for answer in answers] == [["a"], ["b"], ["b", "a"]]


def test_more_than_may_wait_is_refused_at_once():
    _, answers = run([(images(1), None), (images(3), None), (images(2), None), (images(1), None)])
    assert [isinstance(answer, OverloadedError) for answer in answers] == [False, False, True, False]
    assert answers[2].retry_after >= 1
    assert "3 images wait already, at most 4 may; try again in 1 s" in answers[2].details


def test_a_large_request_gets_in_when_nothing_waits():
    encoder, (answer,) = run([(images(9), None)])
    assert encoder.batches == [9]
    assert len(answer["a"]) == 9


def test_nobody_waits_for_ever():
    limits = QueueLimits(queued_images=4, wait_seconds=0.001, batch_images=3)
    encoder, answers = run([(images(1), None), (images(1), None)], limits)
    assert encoder.batches == [1]
    assert isinstance(answers[1], OverloadedError)
    assert "waited 0.001 s without its turn" in answers[1].details


def test_a_failure_is_told_to_its_own_batch_only():
    _, answers = run([(images(1), None), (images(1, -1), None), (images(1, side=4), None)])
    assert [type(answer) for answer in answers] == [dict, ValueError, dict]


OVERLOAD = """
import sys, threading
import numpy as np
import tritonclient.grpc as client
from tritonclient.utils import InferenceServerException

http_port, grpc_port = sys.argv[1:]
images = np.zeros((4, 3, 160, 160), np.float32)

def ask(answers):
    given = client.InferInput("images", list(images.shape), "FP32")
    given.set_data_from_numpy(images)
    with client.InferenceServerClient(f"127.0.0.1:{grpc_port}") as grpc:
        try:
            grpc.infer("mum", [given])
            answers.append("answered")
        except InferenceServerException as error:
            answers.append(error.status() + " " + error.message())

answers = []
threads = [threading.Thread(target=ask, args=(answers,)) for _ in range(12)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("\\n".join(answers))
"""


@pytest.fixture(scope="module")
def narrow_server(exported, tmp_path_factory):
    overrides = ["serve.queued_images=4", "serve.batch_images=4"]
    with running_server(exported, tmp_path_factory.mktemp("narrow") / "log", *overrides) as server:
        yield server


def test_an_overloaded_server_says_when_to_come_again(narrow_server):
    data = encoded(picture(256, 256), "PNG")

    def ask(_):
        url = f"{narrow_server.url}/v2/models/mum/images"
        return requests.post(url, params={"size": 256}, data=data, timeout=60)

    with ThreadPoolExecutor(16) as executor:
        answers = list(executor.map(ask, range(16)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert int(refused.headers["Retry-After"]) >= 1
    assert "images wait already, at most 4 may" in refused.json()["error"]
    overloaded = sum(answer.status_code == 503 for answer in answers)
    assert metric(narrow_server, 'mum_request_errors_total{kind="overloaded"}') == overloaded
    assert metric(narrow_server, 'mum_batch_images_bucket{le="1.0"}') < metric(narrow_server, "mum_batch_images_count")
    assert metric(narrow_server, "mum_queued_images ") == 0


def test_overloaded_over_grpc(narrow_server):
    ports = [str(narrow_server.http_port), str(narrow_server.grpc_port)]
    done = subprocess.run([sys.executable, "-c", OVERLOAD, *ports], capture_output=True, text=True, timeout=60)
    answers = done.stdout.splitlines()
    assert len(answers) == 12, done.stderr
    refused = [answer for answer in answers if answer != "answered"]
    assert 0 < len(refused) < 12
    assert all("RESOURCE_EXHAUSTED" in answer and "try again in" in answer for answer in refused)
