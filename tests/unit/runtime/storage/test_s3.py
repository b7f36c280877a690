from __future__ import annotations

import os

import pytest
from pyarrow.fs import S3FileSystem

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.runtime import session
from airflow_hydrogen.runtime.data import scans
from airflow_hydrogen.runtime.scoring.inference import Scorer
from airflow_hydrogen.runtime.storage import filesystems, s3

LAKE = S3Access(conn_id="lake", access_key="A", secret_key="B", endpoint_url="http://127.0.0.1:1")
OTHER = S3Access(conn_id="other", access_key="C", secret_key="D", endpoint_url="https://127.0.0.1:2")


def test_a_place_of_s3_is_reached_as_the_process_was_told():
    before = dict(os.environ)
    with s3.using(LAKE):
        filesystem, path = filesystems.resolve("s3a://bucket/a%20b/c")
        with s3.using(OTHER):
            other, _ = filesystems.resolve("s3://bucket/x")
        again, whole = filesystems.resolve("s3://bucket")
    assert (path, whole) == ("bucket/a%20b/c", "bucket")
    wanted = S3FileSystem(
        access_key="A", secret_key="B", region="us-east-1", scheme="http", endpoint_override="127.0.0.1:1"
    )
    assert filesystem.equals(wanted) and again.equals(wanted)
    assert not other.equals(wanted)
    assert s3.current() is None
    assert dict(os.environ) == before


def test_what_is_open_to_all_is_on_s3_and_has_a_connection():
    assert not s3.is_open_to_all("s3://bucket/x")
    with s3.using(LAKE):
        assert s3.is_open_to_all("s3n://bucket/x")
        assert not s3.is_open_to_all("/bucket/x")
        assert not s3.is_open_to_all(None)


def test_a_bucket_with_settings_of_sparks_own_is_left_to_spark():
    settings = {"spark.hadoop.fs.s3a.bucket.theirs.secret.key": "x"}
    assert scans._is_seen_by_all("file:/lake/t", settings)
    assert not scans._is_seen_by_all("s3a://ours/t", settings), "no connection"
    with s3.using(LAKE):
        assert scans._is_seen_by_all("s3a://ours/t", settings)
        assert not scans._is_seen_by_all("s3a://theirs/t", settings)
        assert not scans._is_seen_by_all("hdfs://name/t", settings)


def test_every_task_of_a_worker_is_told_anew():
    def scorer(access):
        return Scorer("/m", None, None, "tensorflow", (), {}, {}, 8, 1, s3=access)

    with s3.using(OTHER):
        for access in (LAKE, None):
            assert list(scorer(access)([])) == []
            assert s3.current() is access
    assert "hush" not in repr(scorer(S3Access(conn_id="lake", access_key="A", secret_key="hush")))


def test_a_block_that_fails_leaves_nothing_behind():
    with pytest.raises(ValueError, match="x"), s3.using(LAKE):
        raise ValueError("x")
    assert s3.current() is None


def test_keys_stay_hidden_where_the_user_has_said_what_else_is_to_be():
    settings = session._store_settings(LAKE, {"spark.redaction.regex": "(?i)mine"})
    assert settings["spark.redaction.regex"].startswith("(?i)mine|")
    assert "spark.redaction.regex" not in session._store_settings(LAKE, {})
    assert session._store_settings(None, {"spark.redaction.regex": "(?i)mine"}) == {}


def test_a_session_serves_one_connection(monkeypatch):
    monkeypatch.setattr(session, "_stores", {"local-1": LAKE})
    session._require_same_store("local-1", LAKE)
    session._require_same_store("local-2", None)
    for application, access in (("local-1", OTHER), ("local-1", None), ("local-2", LAKE)):
        with pytest.raises(InvalidJobError, match=r"stop the session first \(spark\.stop\(\)\)") as told:
            session._require_same_store(application, access)
        assert ("'other'" if access is OTHER else "no connection") in str(told.value)
