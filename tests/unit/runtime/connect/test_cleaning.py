from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_hydrogen.runtime.connect import sessions
from airflow_hydrogen.runtime.connect.leases import Lease

KEY = "spark.hadoop.fs.s3a.secret.key"
BEFORE = {KEY: "hush", "spark.sql.ansi.enabled": "true"}


class Settings(dict[str, str]):
    """Of a session."""

    def set(self, name: str, value: str) -> None:
        self[name] = value

    unset = dict.__delitem__


def clean(found: dict[str, str]) -> dict[str, str]:
    """What is left of settings, in a session that began with BEFORE."""
    remembered = sessions._remembered("a session", BEFORE)
    assert "hush" not in str(remembered)
    spark: Any = SimpleNamespace(conf=Settings(found))
    sessions._clean(spark, Lease(0, "a session", settings=remembered), found)
    return dict(spark.conf)


def test_settings_are_put_back() -> None:
    assert clean({**BEFORE, "spark.sql.ansi.enabled": "false", "spark.sql.more": "1"}) == BEFORE


@pytest.mark.parametrize("found", [{**BEFORE, KEY: "other"}, {"spark.sql.ansi.enabled": "true"}])
def test_a_secret_of_the_server_that_is_another_now_cannot_be_put_back(found: dict[str, str]) -> None:
    with pytest.raises(sessions._UncleanError, match=KEY):
        clean(found)
