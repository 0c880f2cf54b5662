"""A stub of the Kubeflow Pipelines API."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

RUN = {
    "run_id": "r-1",
    "experiment_id": "e-1",
    "display_name": "first",
    "created_at": "2026-11-24T08:00:00Z",
    "state": "RUNNING",
}
TASKS = [
    {"display_name": "prepare", "state": "SUCCEEDED"},
    {"display_name": "pretrain", "state": "FAILED", "error": {"code": 2, "message": "out of memory"}},
]


class Kubeflow(BaseHTTPRequestHandler):
    """As much of the KFP API as runs, schedules and their state take; it keeps what it is sent."""

    def do_GET(self):
        server = self.server
        if "healthz" in self.path:
            self.answer({"multi_user": server.shared})
        elif "/runs/" in self.path:
            self.answer(RUN | {"run_details": {"task_details": TASKS}})
        elif "/runs" in self.path:
            self.answer({"runs": [RUN]})
        else:
            self.answer({})

    def do_POST(self):
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuses:
            self.answer({"error": "not you"}, self.server.refuses)
            return
        kind = self.path.rpartition("/")[2]
        self.server.posted[kind] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(
            {"experiments": {"experiment_id": "e-1"}, "runs": RUN, "recurringruns": {"recurring_run_id": "s-1"}}[kind]
        )

    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def kubeflow(monkeypatch):
    monkeypatch.delenv("KF_PIPELINES_TOKEN", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Kubeflow) as http:
        http.posted, http.tokens, http.shared, http.refuses = {}, set(), False, None
        http.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http
        http.shutdown()
