"""An OpenEnv server and one session with it, over its WebSocket protocol.

    {"type": "reset", "data": {"seed": 3}}  →  {"type": "observation", "data": {"observation": …, "reward", "done"}}
    {"type": "step", "data": <action>}      →  the same, or {"type": "error", "data": {"message", "code"}}

The protocol is spoken here, not through the package's own client: that imports a web framework into each worker, and an
MCP library of a version beside which no vLLM can be installed. So a server that runs elsewhere, by its address, needs
`websockets` alone.
"""

import contextlib
import json
import socket
import subprocess
import sys
import urllib.request
from contextlib import AbstractContextManager, ExitStack
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

START_S = 100.0  # for the imports of a server on a cold disk
REPLY_S = 600.0  # longer than any task.timeout_s should be: the pool ends the worker before
CLOSE_S = 5.0
HERE = ("127.0.0.1", "localhost", "::1")  # hosts that no proxy of the environment leads to

# What goes wrong in a step comes back as an error of the protocol; a session whose client was killed is nobody's error.
_PROGRAM = """
import importlib, sys
sys.path[:] = {path!r}
import uvicorn
uvicorn.run(getattr(importlib.import_module({module!r}), {app!r}), fd={fd}, log_level="critical")
"""


class InvalidAction(ValueError):
    """The server understands no such action: the model's doing."""


class Session(AbstractContextManager):
    """One environment of a server, for one conversation after the other; a context manager.

    target: `http://…`, a server that runs; or `<module>:<app>`, an ASGI application, served on this machine by a
    process of its own until the session is closed. folder: where that module lies.
    """

    def __init__(self, target: str, folder: str = ""):
        with ExitStack() as stack:
            is_address = target.startswith(("http://", "https://"))
            served = None if is_address else stack.enter_context(_Served(target, folder))
            self._address = served.address if served else target.rstrip("/")
            try:
                self.action = _action_schema(self._address)
                self._socket = _connected(self._address)
            except ConnectionError as error:
                if served and served.has_ended():
                    raise ConnectionError(f"the process that should serve {target} has ended, see above") from error
                raise
            self._stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self._leave()

    def reset(self, **arguments: Any) -> dict:
        """The first observation of a new conversation: `observation`, `reward`, `done`.

        RuntimeError where the environment raises, ConnectionError where the server has gone: also of `step`.
        """
        return self._asked("reset", arguments)

    def step(self, text: str) -> dict:
        """What comes of an action. InvalidAction where the text is none."""
        return self._asked("step", action_of(text, self.action))

    def _asked(self, kind: str, data: dict) -> dict:
        answer = self._send(kind, data)
        if answer["type"] != "error":
            return answer["data"]
        code, said = answer["data"].get("code"), str(answer["data"].get("message"))
        if kind != "step":
            raise RuntimeError(f"{said} ({code})")
        if code == "SESSION_ERROR" and "serializ" in said.lower():
            # A validator of the action has raised: the server fails to say so, its details being no JSON, and hangs up.
            self._leave()
            self._socket = _connected(self._address)
            raise InvalidAction("the action is not valid")
        raise (InvalidAction if code == "VALIDATION_ERROR" else RuntimeError)(f"{said} ({code})")

    def _leave(self) -> None:
        """End the session, and wait a moment for the server to have done so."""
        with self._socket, contextlib.suppress(ConnectionError, TimeoutError):
            self._send("close", {}, CLOSE_S)

    def _send(self, kind: str, data: dict, timeout_s: float | None = None) -> dict:
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(json.dumps({"type": kind, "data": data}))
            return json.loads(self._socket.recv(timeout=timeout_s or REPLY_S))
        except ConnectionClosed as error:
            raise ConnectionError(f"the OpenEnv server has closed the session: {error}") from error


class _Served(AbstractContextManager):
    """uvicorn in a process of its own. Its port is open before it starts: to connect is to wait for it."""

    def __init__(self, target: str, folder: str):
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            descriptor = listening.fileno()
            module, _, app = target.partition(":")
            program = _PROGRAM.format(path=[*filter(None, [folder]), *sys.path], module=module, app=app, fd=descriptor)
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )

    def has_ended(self) -> bool:
        """Whether it ends by itself, which a connection may know first."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1.0)
        return self._process.returncode is not None

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=CLOSE_S)
        self._process.kill()
        self._process.wait()


def action_of(text: str, schema: dict) -> dict:
    """A text as an action: a JSON object as it is, else the value of the schema's only required field.

    schema: JSON schema of the server's actions. InvalidAction where a field is no text and the text is not JSON.
    """
    text = text.strip()
    with contextlib.suppress(ValueError):
        if isinstance(found := _parsed(text), dict):
            return found
    required = schema.get("required", [])
    if len(required) != 1:
        raise InvalidAction(f"an action is a JSON object with the fields {sorted(schema.get('properties', {}))}")
    (name,) = required
    if schema["properties"][name].get("type") == "string":
        return {name: text}
    try:
        return {name: _parsed(text)}
    except ValueError:
        raise InvalidAction(f"{name} must be JSON, found {text!r:.80}") from None


def _parsed(text: str) -> Any:
    """JSON that can be sent on. ValueError for any other text, whatever the model wrote: numbers of thousands of
    digits, thousands of brackets, half a character."""
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
    return found


def _action_schema(address: str) -> dict:
    """JSON schema of the server's actions. ConnectionError where none is told."""
    place = f"{address}/schema"
    try:
        proxies = urllib.request.ProxyHandler({} if _is_here(address) else None)
        with urllib.request.build_opener(proxies).open(place, timeout=START_S) as answer:
            found = json.load(answer)
    except (OSError, ValueError, HTTPException) as error:
        raise ConnectionError(f"no OpenEnv server answers at {place}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("action"), dict):
        raise ConnectionError(f"no OpenEnv server answers at {place}: it tells of no 'action', but {found!r:.80}")
    return found["action"]


def _connected(address: str) -> Any:
    """A socket to a session of its own, a context manager that is entered. ConnectionError where there is none."""
    try:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect
    except ImportError as error:
        raise ValueError("tasks named openenv:… need: pip install websockets") from error
    place, proxy = address.replace("http", "ws", 1) + "/ws", None if _is_here(address) else True
    limits = {"open_timeout": START_S, "close_timeout": CLOSE_S, "max_size": None, "ping_interval": None}
    try:
        return connect(place, proxy=proxy, **limits).__enter__()
    except (OSError, WebSocketException) as error:
        raise ConnectionError(f"no OpenEnv session at {place}: {error}") from error


def _is_here(address: str) -> bool:
    return urlsplit(address).hostname in HERE
