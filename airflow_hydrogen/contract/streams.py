"""How a stream is scored: when, how much at once, from where on, until when."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.values import refuse_unknown_fields, require_int

AVAILABLE_NOW = "available_now"
BATCH_COLUMN = "batch"
"""The column of the partition that one micro-batch replaces."""
MODEL_VERSION_COLUMN = "model_version"
"""The column that says of every row which version of the model has scored it."""

_INTERVAL = re.compile(r"[1-9]\d* (second|minute|hour)s?")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of a stream.

    Attributes:
        number: the checkpoint's: from 0 on, without a gap.
        stream: the id of the stream, the same for every try.
    """

    number: int
    stream: str


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """How a stream is scored.

    Attributes:
        trigger: "available_now" scores what is new and ends; an interval such as "30 seconds" goes on.
        checkpoint_uri: a folder for the stream's position, of this stream alone.
        max_rows_per_trigger: rows of one micro-batch; None: all that are there.
        stop_after_s: seconds after which the stream ends between two micro-batches; None: never.
    """

    trigger: str
    checkpoint_uri: str
    max_rows_per_trigger: int | None = None
    stop_after_s: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.trigger, str) or not (
            self.trigger == AVAILABLE_NOW or _INTERVAL.fullmatch(self.trigger)
        ):
            raise InvalidJobError(
                f"trigger must be {AVAILABLE_NOW!r} or an interval such as '30 seconds', '5 minutes' or '1 "
                f"hour', found {self.trigger!r}"
            )
        if not isinstance(self.checkpoint_uri, str) or not self.checkpoint_uri.strip():
            raise InvalidJobError(
                "checkpoint_uri must name a folder for the stream's position, of this stream alone; found "
                f"{self.checkpoint_uri!r}"
            )
        uris.require_folder("checkpoint_uri", self.checkpoint_uri)
        if self.max_rows_per_trigger is not None:
            require_int("max_rows_per_trigger", self.max_rows_per_trigger)
            if self.max_rows_per_trigger < 1:
                raise InvalidJobError(
                    f"max_rows_per_trigger must be at least 1, found {self.max_rows_per_trigger}"
                )
        if self.stop_after_s is not None and not (
            isinstance(self.stop_after_s, (int, float))
            and not isinstance(self.stop_after_s, bool)
            and 0 < self.stop_after_s < float("inf")
        ):
            raise InvalidJobError(f"stop_after_s must be more than 0 seconds, found {self.stop_after_s!r}")

    @property
    def drains(self) -> bool:
        """Whether the stream ends when what is new has been scored."""
        return self.trigger == AVAILABLE_NOW

    @property
    def stop_uri(self) -> str:
        """The file that ends the stream once it is there: a hidden neighbour of the checkpoint."""
        return uris.sibling(self.checkpoint_uri, "stop")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; fields at their defaults are left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> StreamOptions:
        """Read the JSON form.

        Raises:
            InvalidJobError: an unknown field, or a field that is missing.
        """
        refuse_unknown_fields(cls, document)
        return cls(**document)
