"""Kubernetes' API as far as the steps use it, over real HTTP; what a cluster's controllers do is played by tests."""

import copy
import json
import threading
import time
import uuid
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml

NAMESPACE = "mum"


def now() -> str:
    """Kubernetes' time of day, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class KubernetesStub:
    """Objects by path, with what was asked of them.

    Attributes:
        objects: Path (`/api/v1/namespaces/mum/pods/x`) -> object.
        logs: Name of a pod -> file of its log, each line with its time in front.
        refusals: (method, plural) -> status and message that are answered instead.
        requests: Method, path and body of everything that was asked.
        on_change: Called with the method and the object after POST, PATCH, PUT and DELETE; a deleted object stays
            until `remove`.
    """

    def __init__(self):
        self.objects, self.logs, self.refusals, self.requests = {}, {}, {}, []
        self.on_change = lambda method, thing: self.remove(thing) if method == "DELETE" else None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, folder: Path) -> Path:
        path = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "stub",
            "clusters": [{"name": "stub", "cluster": {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}}],
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub", "namespace": NAMESPACE}}],
            "users": [{"name": "stub", "user": {}}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    def put(self, group: str, plural: str, thing: dict) -> dict:
        """Store an object as the cluster itself does."""
        metadata = thing.setdefault("metadata", {})
        metadata |= {"namespace": NAMESPACE, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
        metadata["resourceVersion"] = "1"
        with self.lock:
            self.objects[f"{group}/namespaces/{NAMESPACE}/{plural}/{metadata['name']}"] = thing
        return thing

    def remove(self, thing: dict) -> None:
        """Let an object be gone."""
        with self.lock:
            for path in [path for path, each in self.objects.items() if each is thing]:
                del self.objects[path]

    def sent(self, method: str, plural: str) -> list:
        """Bodies that were sent to objects of a kind, in their order."""
        return [body for sent, path, body in self.requests if sent == method and plural in path.split("/")]


def _handler(stub: KubernetesStub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def do_GET(self):
            path, query = self._path()
            if not self._refused("GET", path, None):
                self._get(path, query)

        def do_POST(self):
            path, _ = self._path()
            body = self._body()
            if self._refused("POST", path, body):
                return
            thing = copy.deepcopy(body)
            with stub.lock:
                if f"{path}/{thing['metadata']['name']}" in stub.objects:
                    self._status(409, f'"{thing["metadata"]["name"]}" already exists')
                    return
                group, _, plural = path.partition(f"/namespaces/{NAMESPACE}/")
                stub.put(group, plural, thing)
            stub.on_change("POST", thing)
            self._json(201, thing)

        def do_PATCH(self):
            path, _ = self._path()
            body = self._body()
            if self._refused("PATCH", path, body):
                return
            with stub.lock:
                thing = stub.objects.get(path)
                if thing is not None:
                    _merge(thing, body)
                    thing["metadata"]["resourceVersion"] = str(int(thing["metadata"]["resourceVersion"]) + 1)
            self._changed("PATCH", path, thing)

        def do_PUT(self):
            path, _ = self._path()
            body = self._body()
            if self._refused("PUT", path, body):
                return
            with stub.lock:
                thing = stub.objects.get(path)
                if thing is not None:
                    if body["metadata"].get("resourceVersion") != thing["metadata"]["resourceVersion"]:
                        self._status(409, "the object has been modified")
                        return
                    thing["spec"] = body["spec"]
                    thing["metadata"]["resourceVersion"] = str(int(thing["metadata"]["resourceVersion"]) + 1)
            self._changed("PUT", path, thing)

        def do_DELETE(self):
            path, query = self._path()
            body = self._body()
            if self._refused("DELETE", path, {**body, **query}):
                return
            with stub.lock:
                thing = stub.objects.get(path)
                if thing is not None:
                    thing["metadata"]["deletionTimestamp"] = now()
            self._changed("DELETE", path, thing)

        def _changed(self, method, path, thing):
            if thing is None:
                self._missing(path)
                return
            answer = json.dumps(thing)
            stub.on_change(method, thing)
            self._json(200, json.loads(answer))

        def _get(self, path, query):
            if path.endswith("/log"):
                self._log(path.split("/")[-2], query)
                return
            with stub.lock:
                if path in stub.objects:
                    self._json(200, stub.objects[path])
                elif path.rsplit("/", 1)[-1] in ("pods", "events", "trainjobs", "inferenceservices"):
                    things = [each for at, each in stub.objects.items() if at.rpartition("/")[0] == path]
                    wanted = dict(each.split("=") for each in query.get("labelSelector", "").split(",") if each)
                    self._json(
                        200,
                        {
                            "kind": "List",
                            "apiVersion": "v1",
                            "metadata": {"resourceVersion": "1"},
                            "items": [each for each in things if wanted.items() <= _labels(each).items()],
                        },
                    )
                else:
                    self._missing(path)

        def _log(self, pod, query):
            file = stub.logs.get(pod)
            if file is None:
                self._missing(self.path)
                return
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with file.open("rb") as lines:
                while True:
                    done = _ended(stub, pod)  # asked before reading, so that nothing written since is missed
                    text = lines.read().splitlines(keepends=True)[-int(query.get("tailLines", 0)) :]
                    for line in text:
                        self._chunk(line if "timestamps" in query else line.partition(b" ")[2])
                    if done or "follow" not in query:
                        break
                    time.sleep(0.02)
            self._chunk(b"")

        def _chunk(self, data):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        def _path(self):
            parts = urlsplit(self.path)
            return parts.path, {name: values[0] for name, values in parse_qs(parts.query).items()}

        def _body(self):
            return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")

        def _refused(self, method, path, body):
            stub.requests.append((method, path, body))
            for (refused, plural), (status, message) in stub.refusals.items():
                if refused == method and plural in path.split("/"):
                    self._status(status, message)
                    return True
            return False

        def _missing(self, path):
            self._status(404, f'{path.split("/")[-2]} "{path.split("/")[-1]}" not found')

        def _status(self, code, message):
            self._json(code, {"kind": "Status", "status": "Failure", "code": code, "message": message})

        def _json(self, code, value):
            data = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler


def _labels(thing):
    return thing["metadata"].get("labels", {})


def _ended(stub, pod):
    with stub.lock:
        found = stub.objects.get(f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}")
    return found is None or found["status"]["phase"] in ("Succeeded", "Failed")


def _merge(thing, patch):
    """RFC 7386."""
    for name, value in patch.items():
        if value is None:
            thing.pop(name, None)
        elif isinstance(value, dict):
            _merge(thing.setdefault(name, {}), value)
        else:
            thing[name] = value
