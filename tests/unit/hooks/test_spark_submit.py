"""The hook: connections, environment, log and kill; spark-submit is a shell script here."""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.providers.common.compat.sdk import AirflowException

from airflow_hydrogen.contract.errors import InvalidJobError, JavaNotFoundError, SparkSubmitNotFoundError
from airflow_hydrogen.hooks.sessions import session_processes
from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("AIRFLOW_CONN_SPARK_DEFAULT", "PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_HOME"):
        monkeypatch.delenv(name, raising=False)


def connect(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", **fields}))


def script(tmp_path: Path, text: str) -> str:
    """A spark-submit that does what the test wants."""
    file = tmp_path / "spark-submit"
    file.write_text(f"#!/bin/bash\n{text}\n")
    file.chmod(0o755)
    return str(file)


# --- connections -------------------------------------------------------------------------------------


def test_without_a_connection_spark_runs_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    hook = HydrogenSparkSubmitHook()
    assert (hook.master, hook.is_local, hook.is_cluster_mode) == ("local[*]", True, False)
    log = capsys.readouterr().out
    assert "There is no Spark connection 'spark_default': running on this machine with master local[*]" in log
    assert "yarn" not in log


def test_embedded_connection_has_what_the_providers_has() -> None:
    assert set(HydrogenSparkSubmitHook().resolved_connection) == set(SparkSubmitHook()._connection)


def test_connection_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, host="spark://master", port=7077, extra={"deploy-mode": "client"})
    hook = HydrogenSparkSubmitHook()
    assert (hook.master, hook.is_local) == ("spark://master:7077", False)


@pytest.mark.parametrize(
    "value", ['{"conn_type": "spark", "host": "local[2]"}', "spark://local%5B2%5D"], ids=["json", "uri"]
)
def test_connection_may_be_local(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", value)
    assert HydrogenSparkSubmitHook().master == "local[2]"


def test_brackets_in_a_uri_do_not_silently_mean_yarn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", "spark://local[2]")
    assert SparkSubmitHook()._connection["master"] == "yarn"  # the trap
    with pytest.raises(InvalidJobError, match=r"_SPARK_DEFAULT is set but .* spark://local%5B2%5D"):
        HydrogenSparkSubmitHook()


def test_local_is_no_host(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, host="spark://local[2]")
    with pytest.raises(
        InvalidJobError, match=r"master 'spark://local\[2\]'.* write 'local\[2\]' as its host"
    ):
        HydrogenSparkSubmitHook()


def test_connection_without_host(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch)
    with pytest.raises(InvalidJobError, match=r"'spark_default' has no host; expected a master such as"):
        HydrogenSparkSubmitHook()


def test_connection_asked_for_by_name_must_exist() -> None:
    with pytest.raises(InvalidJobError, match=r"there is no connection 'my_cluster'; create it, or"):
        HydrogenSparkSubmitHook(conn_id="my_cluster")


def test_cluster_mode_needs_a_cluster() -> None:
    with pytest.raises(InvalidJobError, match=r"deploy_mode='cluster' needs a cluster"):
        HydrogenSparkSubmitHook(deploy_mode="cluster")


def test_given_connection_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    connect(monkeypatch, host="yarn")
    connection = HydrogenSparkSubmitHook().resolved_connection
    connect(monkeypatch, host="spark://other:7077")
    assert HydrogenSparkSubmitHook(connection=connection).master == "yarn"


# --- launching ---------------------------------------------------------------------------------------


def test_missing_spark_submit_is_found_before_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    hook = HydrogenSparkSubmitHook(spark_binary="/opt/spark/bin/spark-submit")
    with pytest.raises(SparkSubmitNotFoundError, match="spark_binary is '/opt/spark/bin/spark-submit'"):
        hook.require_launcher()


def test_missing_java_is_found_before_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = HydrogenSparkSubmitHook(spark_binary=script(tmp_path, ""), env_vars={"JAVA_HOME": "/jdk"})
    with pytest.raises(JavaNotFoundError, match="JAVA_HOME=/jdk has no bin/java"):
        hook.require_launcher()


def test_this_interpreter_is_sparks_python(tmp_path: Path) -> None:
    binary = script(tmp_path, 'echo "python=$PYSPARK_PYTHON driver=$PYSPARK_DRIVER_PYTHON extra=$EXTRA"')
    hook = HydrogenSparkSubmitHook(spark_binary=binary, env_vars={"EXTRA": "kept"})
    assert hook.uses_this_interpreter()
    hook.submit("app.py")
    assert hook.log_tail == f"python={sys.executable} driver={sys.executable} extra=kept"


def test_chosen_python_stays(tmp_path: Path) -> None:
    binary = script(tmp_path, 'echo "python=$PYSPARK_PYTHON driver=$PYSPARK_DRIVER_PYTHON"')
    hook = HydrogenSparkSubmitHook(spark_binary=binary, env_vars={"PYSPARK_PYTHON": "/opt/python"})
    assert not hook.uses_this_interpreter()
    hook.submit("app.py")
    assert hook.log_tail == "python=/opt/python driver="
    assert not HydrogenSparkSubmitHook(conf={"spark.pyspark.python": "/p"}).uses_this_interpreter()


def test_spark_ui_is_told_as_soon_as_it_is_known(tmp_path: Path) -> None:
    told: list[str] = []
    binary = script(tmp_path, 'echo "x airflow-hydrogen: spark-ui http://host:4040 "; echo later')
    HydrogenSparkSubmitHook(spark_binary=binary, on_spark_ui=told.append).submit("app.py")
    assert told == ["http://host:4040"]


@pytest.mark.parametrize(
    ("driver", "ends"),
    [("echo ::endgroup::; echo seen", ["::endgroup::", "seen"]), ("exit 1", ["::endgroup::"])],
    ids=["ends its group", "dies in its group"],
)
def test_groups_of_the_log_follow_each_other_and_all_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], driver: str, ends: list[str]
) -> None:
    binary = script(tmp_path, f"echo java; echo ::group::Spark; echo detail; {driver}")
    hook = HydrogenSparkSubmitHook(spark_binary=binary)
    with suppress(AirflowException):
        hook.submit("app.py")
    told = [
        line.partition("] ")[2].partition(" [airflow")[0].strip()
        for line in capsys.readouterr().out.splitlines()
    ]
    assert told[told.index("::group::Submission") :][2:] == [
        *("java", "::endgroup::", "::group::Spark", "detail"),
        *ends,
    ]
    assert "::" not in hook.log_tail


def test_sparks_classes_are_kept_by_the_second_job_and_used_by_the_third(tmp_path: Path) -> None:
    spark = tmp_path / "spark"
    (spark / "jars").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    java = Path(script(tmp_path, "")).rename(tmp_path / "bin" / "java")
    assert java.exists()
    binary = script(
        tmp_path,
        'echo "$SPARK_SUBMIT_OPTS"; file=${SPARK_SUBMIT_OPTS#*AtExit=}\n'
        '[ "$file" = "$SPARK_SUBMIT_OPTS" ] || touch "${file%%\\"*}"',
    )
    variables = {"SPARK_HOME": str(spark), "JAVA_HOME": str(tmp_path), "SPARK_SUBMIT_OPTS": "-Dmy=own"}
    said = []
    for _ in range(3):
        hook = HydrogenSparkSubmitHook(spark_binary=binary, env_vars=variables)
        hook.submit("app.py")
        said.append(hook.log_tail)
    assert said[0] == "-Dmy=own"
    assert "ArchiveClassesAtExit" in said[1]
    assert "SharedArchiveFile" in said[2]
    assert all(line.endswith("-Dmy=own") for line in said), "the user's own stay, and win"
    own = HydrogenSparkSubmitHook(spark_binary=binary, env_vars=variables, driver_class_path="/my/classes")
    own.submit("app.py")
    assert own.log_tail == "-Dmy=own"


def test_a_jvm_that_could_not_keep_the_classes_is_known_and_the_next_ones_keep_none(tmp_path: Path) -> None:
    (tmp_path / "spark" / "jars").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    Path(script(tmp_path, "")).rename(tmp_path / "bin" / "java")
    binary = script(tmp_path, 'case "$SPARK_SUBMIT_OPTS" in *AtExit*) exit 1;; esac')
    variables = {
        "SPARK_HOME": str(tmp_path / "spark"),
        "JAVA_HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }

    def submitted() -> HydrogenSparkSubmitHook:
        return HydrogenSparkSubmitHook(spark_binary=binary, env_vars=variables)

    first, second = submitted(), submitted()
    first.submit("app.py")
    assert not first.give_up_archive("it wrote none")
    with pytest.raises(AirflowException, match="Error code is: 1"):
        second.submit("app.py")
    assert second.give_up_archive("Error code is: 1")
    for _ in range(3):
        submitted().submit("app.py")


def test_tail_of_the_log_has_no_secrets(tmp_path: Path) -> None:
    binary = script(tmp_path, 'for i in $(seq 60); do echo "line $i"; done; echo "password=hunter2"; exit 3')
    hook = HydrogenSparkSubmitHook(spark_binary=binary)
    with pytest.raises(AirflowException, match="Error code is: 3"):
        hook.submit("app.py")
    assert hook.log_tail.splitlines()[-2:] == ["line 60", "password=******"]
    assert len(hook.log_tail.splitlines()) == 40


def test_kill_ends_the_whole_session(tmp_path: Path) -> None:
    binary = script(tmp_path, "setsid --fork true; (trap '' TERM; sleep 60) & sleep 60 & echo started; wait")
    hook = HydrogenSparkSubmitHook(spark_binary=binary)
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            hook.submit("app.py")
        except AirflowException as error:
            errors.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    deadline = time.monotonic() + 10
    while hook.log_tail != "started" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert hook._submit_sp is not None
    session = hook._submit_sp.pid
    assert len(session_processes(session)) >= 3
    start = time.monotonic()
    hook.on_kill()
    assert time.monotonic() - start < 4.5  # Airflow's supervisor waits 5 s
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert session_processes(session) == []
    assert hook.killed
    assert "Error code is" in str(errors[0])


def test_kill_before_submission_does_nothing() -> None:
    hook = HydrogenSparkSubmitHook()
    hook.on_kill()
    assert not hook.submitted
