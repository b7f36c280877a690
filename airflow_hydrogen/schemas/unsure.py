"""Why a schema is left to Spark."""

from __future__ import annotations


class UnsureError(Exception):
    """It cannot be said for certain what Spark will find; the message says why."""
