"""A service of the Open Inference Protocol v2 for the tests, which can be told to fail in many ways."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

DTYPES = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8", "UINT8": "u1", "INT32": "<i4", "INT64": "<i8"}
FAILURES = ("500", "503", "reset", "cut off", "no JSON")


def tensor(name: str, datatype: str, *shape: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), **more}


class Service:
    """What a service knows: `answers` (name of an output -> function of x), metadata, and how it fails.

    `failing` and `slow` are shares of the requests for answers, drawn with a seed; `change` alters an answer before it
    is sent; `failures` and `shown` tell what was done and asked.
    """

    def __init__(
        self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], answers: dict[str, Callable[[Any], Any]]
    ) -> None:
        self.metadata: Any = {"name": "net", "platform": "made", "inputs": inputs, "outputs": outputs}
        self.answers = answers
        self.server: dict[str, Any] = {"name": "made", "extensions": []}
        self.config: dict[str, Any] = {}
        self.failing = self.slow = 0.0
        self.dead_after: int | None = None
        self.raw: Callable[[str], tuple[int, dict[str, str], bytes] | None] = lambda path: None
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.failures: Counter[str] = Counter()
        self.shown: list[np.ndarray] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.random = random.Random(0)
        self.stopping = threading.Event()
        self.base = ""

    def fate(self) -> str | None:
        """How the next request for an answer fails."""
        if self.dead_after is not None and sum(map(len, self.shown)) >= self.dead_after:
            return "503"
        drawn = self.random.random()
        if drawn < self.failing:
            return self.random.choice(FAILURES)
        return "slow" if drawn < self.failing + self.slow else None

    def infer(self, body: bytes, length: str | None) -> tuple[bytes, dict[str, str]]:
        size = len(body) if length is None else int(length)
        asked = json.loads(body[:size])
        (given,) = asked["inputs"]
        data = np.frombuffer(body[size:], DTYPES[given["datatype"]]) if length else given["data"]
        x = np.array(data, DTYPES[given["datatype"]]).reshape(given["shape"])
        self.shown.append(x)
        wanted = [one["name"] for one in asked.get("outputs", [])] or list(self.answers)
        binary = {one["name"] for one in asked.get("outputs", []) if one.get("parameters", {}).get("binary_data")}
        outputs, raw = [], b""
        for name in wanted:
            values = np.asarray(self.answers[name](x))
            datatype = next((kind for kind, dtype in DTYPES.items() if values.dtype == np.dtype(dtype)), "BYTES")
            one: dict[str, Any] = tensor(name, datatype, *values.shape)
            if name in binary:
                one["parameters"] = {"binary_data_size": values.nbytes}
                raw += values.tobytes()
            else:
                one["data"] = values.tolist()
            outputs.append(one)
        answer = json.dumps(self.change({"model_name": "net", "id": asked["id"], "outputs": outputs})).encode()
        return answer + raw, {"Inference-Header-Content-Length": str(len(answer))} if raw else {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    service: Service

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(length or len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        service = self.service
        service.paths.append(self.path)
        service.headers.append(dict(self.headers))
        made = service.raw(self.path)
        known = {
            "/v2": service.server,
            "/v2/models/net": service.metadata,
            "/v2/models/net/ready": {},
            "/v2/models/net/config": service.config,
        }
        if made is not None:
            self.send(made[0], made[2], made[1])
        elif self.path in known:
            self.send(200, json.dumps(known[self.path]).encode())
        else:
            self.send(404, b'{"error": "unknown model"}')

    def do_POST(self) -> None:
        service = self.service
        service.paths.append(self.path)
        service.headers.append(dict(self.headers))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        made = service.raw(self.path)
        if made is not None:
            return self.send(made[0], made[2], made[1])
        fate = service.fate()
        if fate is not None:
            service.failures[fate] += 1
        if fate in ("500", "503"):
            return self.send(int(fate), b'{"error": "busy"}', {"Retry-After": "0"})
        if fate == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return self.connection.close()
        answer, headers = service.infer(body, self.headers.get("Inference-Header-Content-Length"))
        if fate is not None:
            service.shown.pop()
        if fate == "slow":
            service.stopping.wait(3)  # the client hangs up long before
            self.close_connection = True
        elif fate == "cut off":
            self.close_connection = True
            self.send(200, answer[: len(answer) // 2], headers, length=len(answer))
        elif fate == "no JSON":
            self.send(200, answer[: len(answer) // 2])
        else:
            self.send(200, answer, headers)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hung up


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The address of the model of a service that runs in a thread."""
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"service": service}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        service.base = f"http://127.0.0.1:{server.server_port}"
        yield f"{service.base}/v2/models/net"
    finally:
        service.stopping.set()
        server.shutdown()
        server.server_close()
        thread.join()
