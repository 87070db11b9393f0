"""Seeds as pure functions of where we are: the same run, step and prompt give the same draw, resumed or not."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any mix of integers and strings, stable across processes and machines."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
