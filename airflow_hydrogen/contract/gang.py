"""How a gang is started, watched and started again: options that do not change what it trains."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from airflow_hydrogen.contract.errors import InvalidJobError

Verbosity = Literal["all", "log_callback_only"]

_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_PORTS = re.compile(r"(\d+)-(\d+)")
_LOWEST_PORT, _HIGHEST_PORT = 1024, 65535


@dataclass(frozen=True, kw_only=True)
class GangOptions:
    """Options of a gang.

    Attributes:
        driver_log_verbosity: "all": every line of every rank reaches the driver's log; "log_callback_only":
            what `report` is given. HorovodRunner's names.
        start_timeout_s: how long to wait for task slots, and for all ranks to start, in seconds.
        stall_timeout_s: how long a gang may make no progress, or a rank not answer, in seconds; None does not
            watch it.
        max_restarts: how often the gang is started again, from its last checkpoint, after a fault of the
            infrastructure. Errors of the program are final at once.
        min_np: start again with fewer ranks, but at least so many, where slots are lost; None waits for all.
        gpus_per_process: GPUs of a rank. Spark assigns them where it knows of them; elsewhere a rank takes
            those of its local rank. With 0 a rank sees none, unless Spark assigned some.
        network_interface: name of the interface over which the ranks speak, on every host; None takes the
            one that routes to the other hosts.
        port_range: `first-last`, ports that a gang may listen on; None leaves the choice to the system.
        fork: fork the ranks of a host from a process that has imported their frameworks, where that works:
            those that the entry point names, or the modules that are named here. With False each rank is a
            process that starts from nothing.

    Raises:
        InvalidJobError: a value that cannot work.
    """

    driver_log_verbosity: Verbosity = "all"
    start_timeout_s: float = 120.0
    stall_timeout_s: float | None = 600.0
    max_restarts: int = 0
    min_np: int | None = None
    gpus_per_process: int = 0
    network_interface: str | None = None
    port_range: str | None = None
    fork: bool | Sequence[str] = True

    def __post_init__(self) -> None:
        if self.driver_log_verbosity not in ("all", "log_callback_only"):
            raise InvalidJobError(
                "driver_log_verbosity must be 'all' or 'log_callback_only', "
                f"found {self.driver_log_verbosity!r}"
            )
        _require_seconds("start_timeout_s", self.start_timeout_s)
        if self.stall_timeout_s is not None:
            _require_seconds("stall_timeout_s", self.stall_timeout_s)
        _require_at_least("max_restarts", self.max_restarts, 0)
        _require_at_least("gpus_per_process", self.gpus_per_process, 0)
        if self.min_np is not None:
            _require_at_least("min_np", self.min_np, 1)
        if self.network_interface is not None and not str(self.network_interface).strip():
            raise InvalidJobError("network_interface must be the name of an interface, such as 'eth0'")
        if not isinstance(self.fork, bool):
            object.__setattr__(self, "fork", _modules(self.fork))
        self.ports()

    def ports(self) -> range | None:
        """The ports of `port_range`."""
        if self.port_range is None:
            return None
        match = _PORTS.fullmatch(str(self.port_range).strip())
        first, last = (int(match[1]), int(match[2])) if match else (0, 0)
        if not _LOWEST_PORT <= first <= last <= _HIGHEST_PORT:
            raise InvalidJobError(
                f"port_range must be 'first-last' within {_LOWEST_PORT}-{_HIGHEST_PORT}, such as "
                f"'40000-40200', found {self.port_range!r}"
            )
        return range(first, last + 1)

    def check_size(self, np: int) -> None:
        """Check the options against the number of processes.

        Args:
            np: as HorovodRunner's.

        Raises:
            InvalidJobError: `min_np` is more than there will ever be.
        """
        if self.min_np is not None and np != 0 and self.min_np > abs(np):
            raise InvalidJobError(f"min_np must be at most np={abs(np)}, found {self.min_np}")

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> GangOptions:
        """Read the JSON form.

        Raises:
            InvalidJobError: an unknown option, or a value that cannot work.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(document) - set(known)):
            raise InvalidJobError(f"GangOptions has no {', '.join(unknown)}; expected {', '.join(known)}")
        return cls(**document)


def _modules(fork: object) -> tuple[str, ...]:
    names = tuple(fork) if isinstance(fork, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) and _MODULE.fullmatch(name) for name in names):
        raise InvalidJobError(
            "fork must be True, False, or the names of modules to import before ranks are forked, such as "
            f"['tensorflow', 'my_package.layers'], found {fork!r}"
        )
    return names


def _require_seconds(option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise InvalidJobError(f"{option} must be a number of seconds above 0, found {value!r}")


def _require_at_least(option: str, value: object, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InvalidJobError(f"{option} must be an integer of at least {minimum}, found {value!r}")
