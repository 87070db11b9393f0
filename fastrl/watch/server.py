"""`fastrl watch`: the page of one or two runs on 127.0.0.1. It reads the run folder and writes nothing.

No request names a file: a run is a number, a rollout a step and a line, an evaluation one of those that were listed.
A request under another host name is refused, so that no web page can make a browser ask on its behalf (DNS rebinding).
"""

import json
import math
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from fastrl.evaluation.kept import load_kept
from fastrl.records.jsonl import as_json
from fastrl.watch.answers import completions_page
from fastrl.watch.page import page
from fastrl.watch.rollout_index import Filter, RolloutIndex
from fastrl.watch.rollout_view import shown
from fastrl.watch.snapshot import RunView

HOST, LOOK_EVERY_S = "127.0.0.1", 2.0
MOST_SOUGHT = 1000  # characters; SQLite has a bound of its own
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class NotThereError(LookupError):
    """A path, a run, a rollout or an evaluation that there is not."""


class Asked(dict):
    """The query of a request: one text a name."""

    def whole(self, name: str, default: int = 0) -> int:
        """ValueError unless it is a number of at most nine digits, not below 0."""
        text = self.get(name, str(default))
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(f"{name} = {text[:40]!r} is not a whole number")
        return int(text)

    def filter(self) -> Filter:
        """ValueError for a bound that is not a number, and for a text that is longer than is searched for."""
        values = {}
        for field in fields(Filter):
            if text := self.get(field.name, ""):
                if len(text) > MOST_SOUGHT:
                    raise ValueError(f"{field.name} has more than {MOST_SOUGHT} characters")
                values[field.name] = text if isinstance(field.default, str) else float(text)
                if isinstance(values[field.name], float) and math.isnan(values[field.name]):
                    raise ValueError(f"{field.name} = {text[:40]!r} is not a number")
        return Filter(**values)


class WatchServer(ThreadingHTTPServer):
    """Of the runs at `paths`. A context manager; port 0: any that is free. ValueError for a path that is no run."""

    daemon_threads = True

    def __init__(self, paths: Sequence[Path], port: int):
        self.runs = [RunView(path) for path in paths]
        self._lock, self._stop, self._stack = threading.Lock(), threading.Event(), ExitStack()
        self.indexes = [RolloutIndex(path / "rollouts") for path in paths]
        for index in self.indexes:
            self._stack.callback(index.close)
        self._looker = threading.Thread(target=self._look, name="index", daemon=True)
        try:
            super().__init__((HOST, port), Handler)
        except OverflowError:
            raise ValueError(f"port = {port}: a port is a number from 0 to 65535") from None
        except OSError as error:
            raise OSError(f"port {port} cannot be used ({error.strerror}); --port 0 takes one that is free") from None
        self._looker.start()

    def _look(self) -> None:
        while not self._stop.is_set():
            for index in self.indexes:
                index.refresh(self._stop)
            self._stop.wait(LOOK_EVERY_S)

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_port}/"

    def server_close(self) -> None:
        super().server_close()
        self._stop.set()
        if self._looker.is_alive():  # it is not where the port was taken
            self._looker.join()
        self._stack.close()

    def snapshots(self, versions: str) -> list[dict | None]:
        """Of each run; null where the asker has this version."""
        known = versions.split(",")
        with self._lock:
            return [None if run.version() in known else run.snapshot() for run in self.runs]

    def answer(self, path: str, asked: Asked) -> object:
        """NotThereError for a path or a thing that there is not, ValueError for a bad question."""
        if path == "/api/runs":
            return self.snapshots(asked.get("versions", ""))
        number = asked.whole("run")
        if number >= len(self.runs):
            raise NotThereError("there is no such run")
        run, index = self.runs[number], self.indexes[number]
        if path == "/api/rollouts":
            return index.page(asked.filter(), asked.whole("offset"), asked.whole("limit", 100))
        if path == "/api/rollout":
            row = index.row(asked.whole("step"), asked.whole("line"))
            if row is None:
                raise NotThereError("this rollout is not there any more")
            return shown(row)
        if path == "/api/completions":
            file = next((f for f in run.evaluation_files() if f.stem == asked.get("name")), None)
            if file is None:
                raise NotThereError("there is no such evaluation")
            return completions_page(
                load_kept(file), asked.whole("offset"), asked.get("text", ""), asked.get("which", "")
            )
        raise NotThereError("there is nothing of that name")


class Handler(BaseHTTPRequestHandler):
    server: WatchServer
    server_version, sys_version, timeout = "fastrl", "", 30

    def do_GET(self) -> None:
        port = self.server.server_port
        ends = (f":{port}", "") if port == 80 else (f":{port}",)  # a browser leaves out :80
        if self.headers.get_all("Host") not in [[name + end] for name in (HOST, "localhost") for end in ends]:
            return self._send(HTTPStatus.FORBIDDEN, "text/plain", f"ask for {self.server.url}")
        if self.path.partition("?")[0] == "/":
            title = " and ".join(run.name for run in self.server.runs)
            return self._send(HTTPStatus.OK, "text/html", page(f"{title}: fastrl"))
        status, text = self._answer()
        return self._send(status, "application/json", text)

    def _answer(self) -> tuple[HTTPStatus, str]:
        """Whatever goes wrong over what a run's folder holds, the page says it: a closed line would say nothing."""
        try:
            url = urlsplit(self.path)
            asked = Asked({name: values[-1] for name, values in parse_qs(url.query, max_num_fields=40).items()})
            return HTTPStatus.OK, json.dumps(as_json(self.server.answer(url.path, asked)), allow_nan=False)
        except NotThereError as error:
            status, said = HTTPStatus.NOT_FOUND, str(error)
        except (ValueError, OSError) as error:
            status, said = HTTPStatus.BAD_REQUEST, str(error)
        except Exception as error:
            status, said = HTTPStatus.INTERNAL_SERVER_ERROR, repr(error)
        return status, json.dumps({"error": said})

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        headers = HEADERS | {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the page was left

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a page asks every other second."""


def serve(paths: Sequence[Path], port: int) -> None:
    """Until Ctrl-C. Prints the address."""
    with WatchServer(paths, port) as server:
        print(f"{', '.join(run.name for run in server.runs)}: {server.url}  (Ctrl-C ends it)", flush=True)
        server.serve_forever(poll_interval=0.2)
