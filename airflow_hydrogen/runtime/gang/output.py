"""What a rank's process writes: read seldom, which leaves the core to training, and cut into lines."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO

_READ_BYTES = 65536  # what a pipe of Linux holds
_MUCH_BYTES = _READ_BYTES // 4
_PAUSE_S = 0.1
_BUSY_S = 1.0
_MAX_LINE_BYTES = 65536
_ENDS = re.compile(rb"[\r\n]")


def read_at_intervals(
    output: IO[bytes],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[bytes]:
    """What there is, ten times a second; at once for a while where there is much, so that no writer waits.

    A reader that takes each line as it comes wakes for each, on a core where a rank wants to compute.

    Args:
        output: a pipe.
        clock: monotonic seconds.
        sleep: waits so many seconds.
    """
    busy_until = float("-inf")
    while chunk := output.read1(_READ_BYTES):  # type: ignore[attr-defined]
        yield chunk
        if len(chunk) >= _MUCH_BYTES:
            busy_until = clock() + _BUSY_S
        if clock() >= busy_until:
            sleep(_PAUSE_S)


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines as they come; the states of a progress bar (carriage returns, backspaces) are lines too.

    Args:
        chunks: of bytes, cut anywhere. Bytes that are no UTF-8 are replaced; a line above 64 KiB is cut.
    """
    rest = b""
    for chunk in chunks:
        *whole, rest = _ENDS.split(rest + chunk)
        if len(rest) > _MAX_LINE_BYTES:
            whole, rest = [*whole, rest], b""
        yield from filter(None, map(_text, whole))
    yield from filter(None, [_text(rest)])


def _text(raw: bytes) -> str:
    text = raw.decode("utf-8", errors="replace").replace("\b", "")
    return text if text.strip() else ""
