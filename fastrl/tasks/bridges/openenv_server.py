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
from typing import Any

START_S = 100.0  # for the imports of a server on a cold disk
REPLY_S = 600.0  # longer than any task.timeout_s should be: the pool ends the worker before
CLOSE_S = 5.0

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
            address = target.rstrip("/") if is_address else stack.enter_context(_Served(target, folder)).address
            self.action = _fetched(f"{address}/schema")["action"]
            self._socket = stack.enter_context(_connected(address.replace("http", "ws", 1) + "/ws"))
            self._stack = stack.pop_all()

    def __exit__(self, *_: object) -> None:
        with self._stack, contextlib.suppress(ConnectionError):
            self._send("close", {})

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
        if answer["type"] == "error":
            message = f"{answer['data'].get('message')} ({answer['data'].get('code')})"
            is_invalid = kind == "step" and answer["data"].get("code") == "VALIDATION_ERROR"
            raise (InvalidAction if is_invalid else RuntimeError)(message)
        return answer["data"]

    def _send(self, kind: str, data: dict) -> dict:
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(json.dumps({"type": kind, "data": data}))
            return json.loads(self._socket.recv(timeout=REPLY_S))
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
    with contextlib.suppress(json.JSONDecodeError):
        if isinstance(found := json.loads(text), dict):
            return found
    required = schema.get("required", [])
    if len(required) != 1:
        raise InvalidAction(f"an action is a JSON object with the fields {sorted(schema.get('properties', {}))}")
    (name,) = required
    if schema["properties"][name].get("type") == "string":
        return {name: text}
    try:
        return {name: json.loads(text)}
    except json.JSONDecodeError:
        raise InvalidAction(f"{name} must be JSON, found {text!r:.80}") from None


def _fetched(address: str) -> dict:
    try:
        with urllib.request.urlopen(address, timeout=START_S) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no OpenEnv server answers at {address}: {error}") from error


def _connected(address: str) -> AbstractContextManager[Any]:
    try:
        from websockets.sync.client import connect
    except ImportError as error:
        raise ValueError("tasks named openenv:… need: pip install websockets") from error
    return connect(address, open_timeout=START_S, max_size=None, ping_interval=None)
