"""The page: one source for the server and for a file that is opened by double click.

Without data the page asks the server that it came from; with data it needs nothing else. Scripts and styles are part
of it, and a Content-Security-Policy allows these alone: nothing that a model wrote can run or load anything.
"""

import base64
import hashlib
import json
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = ("text.js", "source.js", "charts.js", "curves.js", "flow.js", "tokens.js", "rollouts.js", "page.js")


def page(title: str, data: dict | None = None) -> str:
    """The whole HTML document. data: what `report` collects; None: it is fetched."""
    script = "\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)
    style = (HERE / "page.css").read_text(encoding="utf-8")
    parts = {
        "policy": f"default-src 'none'; base-uri 'none'; form-action 'none'; connect-src 'self'; "
        f"script-src {_hash(script)}; style-src {_hash(style)}",
        "title": _text(title),
        "style": style,
        "data": embedded(data),
        "script": script,
    }
    document = (HERE / "page.html").read_text(encoding="utf-8")
    pieces = document.split("%%")  # text, name, text, name, …, text
    return "".join(parts[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def embedded(data: dict | None) -> str:
    """JSON that no HTML parser takes for markup: `<`, `>` and `&` are escaped, and so is all that is not ASCII."""
    text = json.dumps(data, allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _text(text: str) -> str:
    text = text.encode("utf-8", "replace").decode()
    for sign, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(sign, name)
    return text


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
