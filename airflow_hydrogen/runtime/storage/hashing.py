"""Hashes of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

_READ_BYTES = 1024 * 1024


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
