"""Aliases of models: a small file beside the models that names one of them, such as `production.alias`.

A URI is an alias where its last name ends in `.alias`, and a model otherwise: both sides can tell without a
look at the store.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import NotAnAliasError

FORMAT_VERSION = 1
SUFFIX = ".alias"


def is_alias(uri: str) -> bool:
    """Whether a URI is the name of an alias."""
    name = uris.parse(uri).path.rpartition("/")[2]
    return name.endswith(SUFFIX) and name != SUFFIX


@dataclass(frozen=True, kw_only=True)
class Alias:
    """What the file of an alias says.

    Attributes:
        model_uri: the model that it names.
        model_version: the version of that model, and no other: the SHA-256 of its manifest.
        set_at: when that was said, by the clock of who said it: UTC, ISO 8601, to the microsecond.
        set_by: who did: the Airflow task, or what the caller gave. Empty: nobody knows.
    """

    model_uri: str
    model_version: str
    set_at: str
    set_by: Mapping[str, Any] = field(default_factory=dict)

    def dumps(self) -> str:
        """The text of the file."""
        document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        return json.dumps(document, indent=2, sort_keys=True)

    @classmethod
    def loads(cls, uri: str, text: str) -> Alias:
        """Read the text of the file.

        Raises:
            NotAnAliasError: it is none, or one of another format version.
        """
        try:
            document = json.loads(text)
            version = document.pop("format_version")
            if version == FORMAT_VERSION:
                return cls(**document)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise NotAnAliasError(uri, f"the file cannot be read ({error!r})") from error
        raise NotAnAliasError(
            uri, f"it has format version {version!r}, this version of airflow-hydrogen reads {FORMAT_VERSION}"
        )
