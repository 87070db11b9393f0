"""A server in the place of the Hugging Face hub, for what a push asks of it."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub(BaseHTTPRequestHandler):
    """What a push asks of the hub. Files come in the commit itself: `received` holds them; `status`: of each answer;
    `private`: whether a repository that is there is."""

    received: dict[str, bytes]
    created: list[dict]
    status = 200
    private = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            type(self).received = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            answer = {"commitUrl": f"http://{self.headers['Host']}/me/tiny/commit/1", "commitOid": "1" * 40}
        elif self.path.endswith("/preupload/main"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]}
        elif self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            answer = {"url": f"http://{self.headers['Host']}/me/tiny", "id": "me/tiny"}
        else:
            answer = {"warnings": [], "errors": []}  # /api/validate-yaml
        self._answer(answer)

    def do_GET(self):
        self._answer({"id": self.path.removeprefix("/api/models/"), "private": self.private})

    def _answer(self, answer: dict) -> None:
        text = json.dumps(answer).encode()
        self.send_response(self.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@contextmanager
def serve() -> Iterator[str]:
    """A fresh one; its address."""
    Hub.received, Hub.created, Hub.status, Hub.private = {}, [], 200, True
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def at_hub(address: str) -> dict[str, str]:
    """The environment's variables of a process that takes the server for the hub."""
    return {"HF_ENDPOINT": address, "HF_TOKEN": "hf_test", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
