from __future__ import annotations

import json
import threading
from itertools import islice

import pytest

from airflow_hydrogen.contract.errors import (
    AliasedModelError,
    InvalidUriError,
    ModelChangedError,
    NotAModelError,
    NotAnAliasError,
)
from airflow_hydrogen.runtime.models import directory
from airflow_hydrogen.runtime.models.aliases import NamedModel, history, read_alias, resolve, set_alias
from airflow_hydrogen.runtime.storage import filesystems
from tests.unit.runtime.models.test_directory import _publish
from tests.unit.runtime.storage.failing_store import failing  # noqa: F401


@pytest.fixture
def alias(tmp_path):
    return str(tmp_path / "models" / "production.alias")


def model(tmp_path, name):
    """A published model: its URI and version."""
    uri = str(tmp_path / "models" / name)
    return uri, _publish(uri, content=name).version


def test_an_alias_names_a_version_of_a_model(tmp_path, alias):
    uri, version = model(tmp_path, "m1")
    set_alias(alias, uri)
    assert resolve(alias) == NamedModel(uri, version, alias)
    assert resolve(alias).open().version == version


def test_a_model_is_itself_and_nobody_looks_at_it(tmp_path):
    assert resolve(str(tmp_path / "nothing")) == NamedModel(str(tmp_path / "nothing"))
    with pytest.raises(NotAModelError):
        resolve(str(tmp_path / "nothing")).open()


def test_all_that_an_alias_has_named_is_remembered_newest_first(tmp_path, alias, monkeypatch):
    (first, version), (second, _) = model(tmp_path, "m1"), model(tmp_path, "m2")
    for variable, value in [("DAG_ID", "d"), ("TASK_ID", "t"), ("DAG_RUN_ID", "r")]:
        monkeypatch.setenv(f"AIRFLOW_CTX_{variable}", value)
    set_alias(alias, first)
    set_alias(alias, second, by={"user": "ada"})
    set_alias(alias, first)
    found = list(history(alias))
    assert [said.model_uri for said in found] == [first, second, first]
    assert [said.set_by for said in found] == [
        {"dag_id": "d", "task_id": "t", "run_id": "r"},
        {"user": "ada"},
        {"dag_id": "d", "task_id": "t", "run_id": "r"},
    ]
    assert found[0] == read_alias(alias)
    assert {said.model_version for said in (found[0], found[2])} == {version}


def test_a_retry_of_the_task_that_set_it_says_nothing_new(tmp_path, alias):
    uri, _ = model(tmp_path, "m1")
    said = set_alias(alias, uri)
    assert set_alias(alias, uri) == said
    assert list(history(alias)) == [said]


def test_an_alias_may_be_set_to_what_another_one_names_now(tmp_path, alias):
    (first, version), (second, _) = model(tmp_path, "m1"), model(tmp_path, "m2")
    candidate = str(tmp_path / "models" / "candidate.alias")
    set_alias(candidate, first)
    set_alias(alias, candidate)
    set_alias(candidate, second)
    assert (read_alias(alias).model_uri, read_alias(alias).model_version) == (first, version)


@pytest.mark.parametrize("name", ["production", "production.alias/m", ".alias"])
def test_the_name_of_an_alias_tells_that_it_is_one(tmp_path, name):
    uri, _ = model(tmp_path, "m1")
    with pytest.raises(InvalidUriError, match=r"expected one that ends in '\.alias'"):
        set_alias(str(tmp_path / name), uri)


def test_an_alias_in_the_folder_of_its_model_would_go_with_it(tmp_path):
    uri, _ = model(tmp_path, "m1")
    with pytest.raises(InvalidUriError, match="which the next model there replaces"):
        set_alias(f"{uri}/production.alias", uri)


def test_what_is_no_whole_model_gets_no_alias(tmp_path, alias):
    with pytest.raises(NotAModelError):
        set_alias(alias, str(tmp_path / "nothing"))
    uri, _ = model(tmp_path, "m1")
    (tmp_path / "models" / "m1" / "model.keras").write_text("damaged")
    with pytest.raises(ModelChangedError):
        set_alias(alias, uri)
    with pytest.raises(NotAnAliasError, match="there is no such file"):
        resolve(alias)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format_version": 1}', '{"format_version": 2}'])
def test_a_file_that_is_no_alias_is_neither_read_nor_overwritten(tmp_path, alias, text):
    uri, _ = model(tmp_path, "m1")
    (tmp_path / "models" / "production.alias").write_text(text)
    for attempt in (lambda: resolve(alias), lambda: set_alias(alias, uri)):
        with pytest.raises(NotAnAliasError, match="names no model: (the file cannot be read|it has format)"):
            attempt()
    assert (tmp_path / "models" / "production.alias").read_text() == text


def test_a_folder_is_no_alias(tmp_path):
    (tmp_path / "folder.alias").mkdir()
    with pytest.raises(NotAnAliasError, match="it is a folder"):
        resolve(str(tmp_path / "folder.alias"))


def test_a_model_that_was_published_in_the_place_of_the_one_that_is_named_is_not_meant(tmp_path, alias):
    uri, version = model(tmp_path, "m1")
    set_alias(alias, uri)
    other = _publish(uri, content="another").version
    with pytest.raises(
        AliasedModelError, match=f"version {version[:12]} .* version {other[:12]} is there now"
    ):
        resolve(alias).open()
    filesystems.remove(uri)
    with pytest.raises(AliasedModelError, match="there is no model now: set it"):
        resolve(alias).open()


def test_of_many_who_set_it_at_once_each_is_in_the_history_and_readers_find_whole_files(tmp_path, alias):
    models = [model(tmp_path, f"m{number}")[0] for number in range(4)]
    set_alias(alias, models[0])
    done, found, failures = threading.Event(), set(), []

    def read():
        while not done.is_set():
            try:
                found.add(resolve(alias).uri)
            except Exception as error:
                failures.append(error)

    def write(number):
        for turn in range(10):
            set_alias(alias, models[number], by={"setter": number, "turn": turn})

    reader = threading.Thread(target=read)
    setters = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in (reader, *setters):
        thread.start()
    for thread in setters:
        thread.join()
    done.set()
    reader.join()
    assert failures == []
    assert found <= set(models)
    said = list(history(alias))
    assert read_alias(alias) in said
    # Whoever found that it names his model already has said nothing.
    assert {entry.model_uri for entry in said} == set(models)
    assert len({entry.dumps() for entry in said}) == len(said) > 4
    assert [entry.set_at for entry in said] == sorted((entry.set_at for entry in said), reverse=True)


@pytest.mark.parametrize("after", [False, True])
def test_it_names_the_old_model_or_the_new_one_wherever_a_setter_dies(failing, tmp_path, after):  # noqa: F811
    lake, faults = failing
    alias = f"{lake}/production.alias"
    (first, _), (second, _) = model(tmp_path, "m1"), model(tmp_path, "m2")
    set_alias(alias, first)
    faults.reset(None)
    set_alias(alias, second)
    operations = faults.count
    assert operations >= 3
    for number in range(operations):
        set_alias(alias, first)
        remembered = len(list(history(alias)))
        faults.reset(number, after=after, dead=True)
        with pytest.raises(OSError, match="503"):
            set_alias(alias, second)
        faults.reset(None)
        named = resolve(alias).uri
        assert named in (first, second)
        assert len(list(history(alias))) == remembered + (named == second)
        said = set_alias(alias, second)
        assert resolve(alias).uri == second
        assert next(islice(history(alias), 1)) == said


def test_the_file_is_small_and_for_people_to_read(tmp_path, alias):
    uri, version = model(tmp_path, "m1")
    set_alias(alias, uri, by={"user": "ada"})
    document = json.loads((tmp_path / "models" / "production.alias").read_text())
    assert document.pop("set_at").endswith("+00:00")
    assert document == {
        "format_version": 1,
        "model_uri": uri,
        "model_version": version,
        "set_by": {"user": "ada"},
    }
    assert directory.find_manifest(str(tmp_path / "models")) is None
