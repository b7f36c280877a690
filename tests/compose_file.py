"""docker-compose.yaml as its services see it, without a Docker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE_FILE = ROOT / "docker-compose.yaml"
ENV_EXAMPLE = ROOT / ".env.example"

# `$$`, `${NAME}`, `${NAME:-default}`: the forms that the file uses.
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")


@dataclass(frozen=True)
class Service:
    """One service, its variables put in."""

    name: str
    document: Mapping[str, Any]

    @property
    def command(self) -> list[str]:
        return [str(word) for word in self.document.get("command", [])]

    @property
    def environment(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.document.get("environment", {}).items()}

    @property
    def health_check(self) -> list[str] | None:
        """The command, as Docker runs it inside."""
        test = self.document.get("healthcheck", {}).get("test")
        if test is None:
            return None
        assert test[0] == "CMD", "a shell is not there in every image"
        return [str(word) for word in test[1:]]

    @property
    def dependencies(self) -> dict[str, str]:
        """Service -> what has to have become of it before this one starts."""
        return {name: wanted["condition"] for name, wanted in self.document.get("depends_on", {}).items()}

    @property
    def volumes(self) -> dict[str, str]:
        """Path inside -> volume, or path beside docker-compose.yaml."""
        parts = [volume.split(":") for volume in self.document.get("volumes", [])]
        return {inside: source for source, inside, *_ in parts}

    @property
    def runs_on(self) -> bool:
        """It is there to stay, instead of doing one thing."""
        return self.document.get("restart") != "no"

    @property
    def replicas(self) -> int:
        return int(self.document.get("deploy", {}).get("replicas", 1))


def services(environ: Mapping[str, str] | None = None) -> dict[str, Service]:
    """All services by name, with the file's defaults for what `environ` does not have."""
    document = interpolate(yaml.safe_load(COMPOSE_FILE.read_text()), environ or {})
    return {name: Service(name, service) for name, service in document["services"].items()}


def interpolate(node: Any, environ: Mapping[str, str]) -> Any:
    """Put variables in as Compose does: after parsing, so that an empty one is an empty text and not null."""
    if isinstance(node, dict):
        return {key: interpolate(value, environ) for key, value in node.items()}
    if isinstance(node, list):
        return [interpolate(value, environ) for value in node]
    if not isinstance(node, str):
        return node

    def value(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        return environ.get(found["name"]) or found["default"] or ""

    return _VARIABLE.sub(value, node)


def defaults() -> dict[str, set[str]]:
    """Variable -> the defaults that the file gives it."""
    found: dict[str, set[str]] = {}
    for match in _VARIABLE.finditer(COMPOSE_FILE.read_text()):
        if match["name"]:
            found.setdefault(match["name"], set()).add(match["default"] or "")
    return found
