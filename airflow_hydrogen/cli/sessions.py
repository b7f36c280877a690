"""`airflow hydrogen session`: the servers that tasks of this user have left behind on this machine."""

from __future__ import annotations

from argparse import Namespace
from datetime import datetime, timezone

from airflow.cli.simple_table import AirflowConsole

from airflow_hydrogen.contract.errors import HydrogenError
from airflow_hydrogen.hooks.local_servers.listing import ServerInfo, list_servers, stop_server


def list_sessions(args: Namespace) -> None:
    """Print a line for each server."""
    try:
        found = list_servers()
    except HydrogenError as error:
        raise SystemExit(str(error)) from error
    AirflowConsole().print_as(data=found, output=args.output, mapper=_row)


def stop_sessions(args: Namespace) -> None:
    """End servers, and print which. Those that a task uses are left, with exit code 1, or ended by force."""
    if bool(args.key) == args.all:
        raise SystemExit("name one server, as `airflow hydrogen session list` does, or --all")
    try:
        ended, used = stop_server(args.key, force=args.force)
    except HydrogenError as error:
        raise SystemExit(str(error)) from error
    console = AirflowConsole()
    for key in ended:
        console.print(f"{key} has ended")
    if used:
        raise SystemExit(
            f"in use by a task, and left: {', '.join(used)}; --force ends them, and the task fails"
        )
    if args.key and not ended:
        raise SystemExit(f"there is no server {args.key!r} of this user on this machine")


def _row(info: ServerInfo) -> dict[str, object]:
    return {
        "key": info.key,
        "state": info.state,
        "master": info.master,
        "url": info.url,
        "pid": info.pid,
        "since": datetime.fromtimestamp(info.since, timezone.utc).isoformat(timespec="seconds"),
        "unused_s": round(info.unused_s),
        "idle_s": round(info.idle_s),
        "memory_mb": info.memory_bytes >> 20,
    }
