"""The marks between which Airflow folds the lines of a task's log.

Airflow's page shows a group as one line that opens on a click. What an application prints is in the task's
log word for word, so that its marks are Airflow's.
"""

from __future__ import annotations

BEGIN = "::group::"
END = "::endgroup::"


def is_mark(line: str) -> bool:
    """Whether a line is a mark and nothing else."""
    return line.startswith(BEGIN) or line.strip() == END
