"""What became of every row: each task's account, and what the driver makes of all of them.

A task ends with a row of its own that holds its account as text, in a column that is not written. Spark
brings the accounts of those tasks to the driver whose rows it accepts: of a task that it ran twice, one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from airflow_hydrogen.contract.errors import BadRowsError, ModelFailedError

ACCOUNT = "_hydrogen_account"
"""The column of accounts: null in every row that is scored."""

REASONS_TOLD = 5

# Counters by number, which JSON has no keys of.
_NUMBERED = ("partitions", "bad_partitions", "batch_rows")


@dataclass
class Account:
    """What became of the rows of a task, or of all tasks.

    Attributes:
        rows_in: rows that were read.
        rows: rows that were scored.
        partitions: number of a partition -> rows that were scored, where the sink replaces many.
        files: those that hold scored rows, by their names, where tasks write them.
        bad: fault -> rows that were set aside with it.
        bad_partitions: number of a partition -> rows that were set aside, where the sink replaces many.
        bad_files: those that hold such rows, by their names.
        unproven: see `Sifter`.
        failure: likewise.
        notes: what the driver's log has to say.
        batch_rows: rows of one call of the model, where workers find out how many are the fastest, as a task
            knew them when it ended -> rows that such tasks have read.
    """

    rows_in: int = 0
    rows: int = 0
    partitions: Counter[int] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    bad_partitions: Counter[int] = field(default_factory=Counter)
    bad_files: list[str] = field(default_factory=list)
    unproven: int = 0
    failure: str = ""
    notes: list[str] = field(default_factory=list)
    batch_rows: Counter[int] = field(default_factory=Counter)

    @property
    def rows_bad(self) -> int:
        """Rows that were set aside."""
        return self.bad.total()

    def dumps(self) -> str:
        """The account in one line."""
        numbered = {name: [*getattr(self, name).items()] for name in _NUMBERED}
        return json.dumps({**vars(self), "bad": dict(self.bad), **numbered})

    @classmethod
    def loads(cls, text: str) -> Account:
        """Read `dumps`."""
        document = json.loads(text)
        numbered = {name: Counter(dict(document[name])) for name in _NUMBERED}
        return cls(**{**document, "bad": Counter(document["bad"]), **numbered})

    @classmethod
    def total(cls, accounts: Iterable[Account]) -> Account:
        """All accounts in one."""
        total = cls()
        for account in accounts:
            total.rows_in += account.rows_in
            total.rows += account.rows
            total.partitions.update(account.partitions)
            total.files += account.files
            total.bad.update(account.bad)
            total.bad_partitions.update(account.bad_partitions)
            total.bad_files += account.bad_files
            total.unproven += account.unproven
            total.failure = total.failure or account.failure
            total.notes += [note for note in account.notes if note not in total.notes]
            total.batch_rows.update(account.batch_rows)
        return total

    def require_working_model(self) -> None:
        """Raise where the model has scored no row in any task, and failed.

        Raises:
            ModelFailedError: the model is to blame, and not the rows.
        """
        if self.unproven and not self.rows:
            raise ModelFailedError(self.failure, f"it scores none of {self.unproven} rows")

    def require_few(self, limit: float | None, uri: str, where: str = "") -> None:
        """Raise where more rows are bad than may be.

        Args:
            limit: a number of rows, or a share of those that were read; None: any.
            uri: what is not replaced then, for the message.
            where: of which rows the account is, likewise.

        Raises:
            BadRowsError: with the commonest faults.
        """
        if limit is None or not self.rows_bad:
            return
        # Divided, because 0.29 * 100 is less than 29.
        found = self.rows_bad / self.rows_in if isinstance(limit, float) else self.rows_bad
        if found > limit:
            raise BadRowsError(self.rows_bad, self.rows_in, limit, self.describe(), uri, where)

    def describe(self) -> str:
        """The commonest faults, with how many rows have each."""
        told = [f"{fault} ({rows:,})" for fault, rows in self.bad.most_common(REASONS_TOLD)]
        others = self.rows_bad - sum(rows for _, rows in self.bad.most_common(REASONS_TOLD))
        return ", ".join([*told, *([f"others ({others:,})"] if others else [])])
