"""What `airflow hydrogen` can do. Airflow reads it at each command of its own, so that it imports little."""

from __future__ import annotations

from airflow.cli.cli_config import (
    ARG_OUTPUT,
    ARG_VERBOSE,
    ActionCommand,
    Arg,
    CLICommand,
    GroupCommand,
    lazy_load_command,
)

_COMMANDS = "airflow_hydrogen.cli.sessions"

_KEY = Arg(("key",), nargs="?", help="The server, as `list` names it")  # type: ignore[no-untyped-call]
_ALL = Arg(("--all",), help="All of them", action="store_true")  # type: ignore[no-untyped-call]
_FORCE = Arg(  # type: ignore[no-untyped-call]
    ("--force",), help="Those too that a task uses, or waits for; the task fails", action="store_true"
)

_SESSION = GroupCommand(
    name="session",
    help="Local Spark Connect servers that tasks have left behind for later ones",
    subcommands=(
        ActionCommand(
            name="list",
            help="List this user's servers on this machine",
            func=lazy_load_command(f"{_COMMANDS}.list_sessions"),
            args=(ARG_OUTPUT, ARG_VERBOSE),
        ),
        ActionCommand(
            name="stop",
            help="End servers on this machine, and what dead ones have left",
            func=lazy_load_command(f"{_COMMANDS}.stop_sessions"),
            args=(_KEY, _ALL, _FORCE, ARG_VERBOSE),
        ),
    ),
)


def get_cli_commands() -> list[CLICommand]:
    """The provider's commands."""
    return [GroupCommand(name="hydrogen", help="Distributed deep learning on Spark", subcommands=(_SESSION,))]
