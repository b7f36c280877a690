"""What became of every row."""

from __future__ import annotations

from collections import Counter

import pytest

from airflow_hydrogen.contract.errors import BadRowsError, ModelFailedError
from airflow_hydrogen.runtime.scoring.accounts import Account


def test_accounts_survive_their_text_and_add_up():
    first = Account(
        rows_in=10,
        rows=7,
        files=["c.parquet"],
        bad=Counter({"x": 2, "y": 1}),
        bad_files=["a.parquet"],
        unproven=1,
        failure="E: e",
        notes=["no GPU"],
    )
    second = Account(
        rows_in=5, rows=4, bad=Counter({"x": 1}), bad_files=["b.parquet"], notes=["no GPU", "slow"]
    )
    texts = [first.dumps(), second.dumps(), Account().dumps()]
    assert "\n" not in "".join(texts)
    total = Account.total(map(Account.loads, texts))
    assert total == Account(
        rows_in=15,
        rows=11,
        files=["c.parquet"],
        bad=Counter({"x": 3, "y": 1}),
        bad_files=["a.parquet", "b.parquet"],
        unproven=1,
        failure="E: e",
        notes=["no GPU", "slow"],
    )
    assert total.rows_bad == 4
    assert Account.total([]) == Account()


@pytest.mark.parametrize(
    ("bad", "rows", "limit", "few"),
    [
        (0, 0, 0, True),
        (1, 10, 0, False),
        (3, 10, 3, True),
        (4, 10, 3, False),
        (29, 100, 0.29, True),  # 0.29 * 100 is less than 29
        (30, 100, 0.29, False),
        (10, 10, None, True),
    ],
)
def test_a_limit_is_a_number_or_a_share(bad, rows, limit, few):
    account = Account(rows_in=rows, bad=Counter({"x": bad} if bad else {}))
    if few:
        account.require_few(limit, "/scores")
        return
    with pytest.raises(
        BadRowsError, match=rf"^{bad} of {rows} rows.* max_bad_rows={limit} allows: x \({bad}\)\."
    ):
        account.require_few(limit, "/scores")


def test_the_commonest_faults_are_told():
    account = Account(bad=Counter({f"fault {number}": number for number in range(1, 8)}))
    assert account.describe() == "fault 7 (7), fault 6 (6), fault 5 (5), fault 4 (4), fault 3 (3), others (3)"


def test_rows_that_no_task_could_score_are_the_models_fault():
    account = Account(rows_in=3, bad=Counter({"x": 3}), unproven=3, failure="ValueError: e")
    with pytest.raises(ModelFailedError, match="it scores none of 3 rows.*ValueError: e"):
        account.require_working_model()
    account.rows = 1
    account.require_working_model()
    Account(rows_in=3, bad=Counter({"column 'a': null": 3})).require_working_model()
