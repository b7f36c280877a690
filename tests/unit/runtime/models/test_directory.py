from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import (
    CheckpointError,
    ModelChangedError,
    ModelFormatError,
    NotAModelError,
)
from airflow_hydrogen.runtime.data.columns import ColumnSpec
from airflow_hydrogen.runtime.models import directory
from airflow_hydrogen.runtime.models.manifest import InputSpec, Manifest, OutputSpec, Signature
from airflow_hydrogen.runtime.storage import filesystems, swap, uris
from airflow_hydrogen.runtime.storage.checkpoints import CheckpointStore
from tests.unit.runtime.storage.failing_store import failing  # noqa: F401


def _publish(folder, content="weights", **changes):
    staged = directory.staging_uri(str(folder))
    os.makedirs(staged)
    with open(f"{staged}/model.keras", "w") as stream:
        stream.write(content)
    signature = Signature(
        (InputSpec("x", (ColumnSpec("a", "float32"), ColumnSpec("p", "float32", 3)), "float32", (4,)),),
        (OutputSpec("prediction", "float32", (1,)),),
    )
    manifest = Manifest(
        framework="keras",
        entry="model.keras",
        signature=signature,
        files=directory.describe_files(Path(staged), ["model.keras"]),
        **changes,
    )
    directory.publish(staged, str(folder), manifest, keep_checkpoints=False)
    return manifest


def test_a_published_model_is_read_back_as_it_was(tmp_path):
    written = _publish(tmp_path / "m", metrics={"loss": 0.5}, np=2)
    manifest, folder = directory.open_model(str(tmp_path / "m"))
    assert manifest == written
    assert folder == tmp_path / "m"


def test_publishing_replaces_the_model_and_keeps_its_events_but_no_checkpoints(tmp_path):
    _publish(tmp_path / "m", "old")
    for name in ("events", "checkpoints", "data"):
        (tmp_path / "m" / name).mkdir()
        (tmp_path / "m" / name / "file").write_text(name)
    _publish(tmp_path / "m", "new")
    assert sorted(os.listdir(tmp_path / "m")) == ["events", "manifest.json", "model.keras"]
    assert (tmp_path / "m" / "model.keras").read_text() == "new"
    assert os.listdir(tmp_path) == ["m"]


def test_a_folder_without_manifest_is_not_a_model(tmp_path):
    (tmp_path / "m" / "checkpoints").mkdir(parents=True)
    with pytest.raises(NotAModelError, match=r"is not a model: it holds no manifest.json"):
        directory.open_model(str(tmp_path / "m"))
    assert directory.find_manifest(str(tmp_path / "m")) is None


def test_a_changed_file_is_named(tmp_path):
    _publish(tmp_path / "m")
    (tmp_path / "m" / "model.keras").write_text("weightz")
    with pytest.raises(ModelChangedError, match="file 'model.keras' has another sha256"):
        directory.open_model(str(tmp_path / "m"))


def test_a_cut_file_is_named_with_both_sizes(tmp_path):
    _publish(tmp_path / "m")
    (tmp_path / "m" / "model.keras").write_text("wei")
    with pytest.raises(ModelChangedError, match="has 3 bytes, its manifest says 7"):
        directory.open_model(str(tmp_path / "m"))


def test_a_missing_file_is_named(tmp_path):
    _publish(tmp_path / "m")
    (tmp_path / "m" / "model.keras").unlink()
    with pytest.raises(ModelChangedError, match="file 'model.keras' is missing"):
        directory.open_model(str(tmp_path / "m"))


def test_another_format_version_is_refused(tmp_path):
    _publish(tmp_path / "m")
    path = tmp_path / "m" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(
        ModelFormatError, match="has format version 99, this version of airflow-hydrogen reads 1"
    ):
        directory.open_model(str(tmp_path / "m"))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format_version": 1}'])
def test_a_manifest_that_cannot_be_read_is_not_a_model(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(NotAModelError, match="cannot be read"):
        directory.open_model(str(tmp_path))


# --- whatever fails ------------------------------------------------------------------------------------


def _publish_anywhere(uri, content, folder):
    """Publish to any store; the history tells which model it belongs to."""
    (folder / "model.keras").write_text(content)
    staged = directory.staging_uri(uri)
    for name in ("model.keras", "history.jsonl"):
        filesystems.write_bytes(uris.join(staged, name), content.encode())
    signature = Signature((), ())
    files = directory.describe_files(folder, ["model.keras"])
    manifest = Manifest(framework="keras", entry="model.keras", signature=signature, files=files)
    directory.publish(staged, uri, manifest, keep_checkpoints=False)


def _content(uri):
    manifest, folder = directory.open_model(uri)
    return (folder / manifest.entry).read_text()


def test_whatever_operation_fails_there_is_the_old_model_or_the_new_one(failing, tmp_path):  # noqa: F811
    root, faults = failing
    uri = uris.join(root, "counted")
    _publish_anywhere(uri, "old", tmp_path)
    faults.reset(None)
    _publish_anywhere(uri, "new", tmp_path)
    found = set()
    for number in range(faults.count):
        for after, dead in ((False, False), (True, False), (True, True)):
            faults.reset(None)
            uri = uris.join(root, f"m-{number}-{after}-{dead}")
            _publish_anywhere(uri, "old", tmp_path)
            filesystems.write_bytes(uris.join(uri, "events", "tfevents"), b"events")
            faults.reset(number, after=after, dead=dead)
            with contextlib.suppress(OSError):
                _publish_anywhere(uri, "new", tmp_path)
            faults.reset(None)
            found.add(_content(uri))
            assert filesystems.read_bytes(uris.join(uri, "events", "tfevents")) == b"events"
            _publish_anywhere(uri, "last", tmp_path)
            assert _content(uri) == "last"
            names = [name.rpartition("/")[2] for name, _size in filesystems.list_files(uri)]
            assert sorted(names) == ["history.jsonl", "manifest.json", "model.keras", "tfevents"]
    assert found == {"old", "new"}


def test_a_model_that_is_replaced_while_it_is_opened_is_opened_anew(tmp_path, monkeypatch):
    _publish(tmp_path / "m", "old")
    verified = directory._verified

    def replace_first(uri, manifest):
        monkeypatch.setattr(directory, "_verified", verified)
        _publish(tmp_path / "m", "new!")
        return verified(uri, manifest)

    monkeypatch.setattr(directory, "_verified", replace_first)
    assert _content(str(tmp_path / "m")) == "new!"


def test_where_folders_cannot_be_exchanged_the_new_files_lie_beside_the_old_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(swap, "exchange", lambda staged, target: False)
    for content in ("old", "new"):
        _publish(tmp_path / "m", content)
        (tmp_path / "m" / "events").mkdir(exist_ok=True)
        (tmp_path / "m" / "events" / "file").write_text(content)
    manifest, folder = directory.open_model(str(tmp_path / "m"))
    assert manifest.entry.startswith("files-")
    assert (folder / manifest.entry).read_text() == "new"
    assert len(filesystems.list_files(str(tmp_path / "m"))) == 3
    assert os.listdir(tmp_path) == ["m"]


def test_whatever_operation_fails_a_checkpoint_saved_again_is_the_old_one_or_the_new_one(failing):  # noqa: F811
    """On HDFS, where nothing can be overwritten at once, the one before may have to do."""
    root, faults = failing
    outcomes = {"old", "new", None} if root.startswith("fail://renames") else {"old", "new"}

    def save(uri, content):
        store = CheckpointStore(uri, "job")
        return store.save(1, lambda folder: (folder / "state").write_text(content), {"of": content})

    def load(uri):
        checkpoint = CheckpointStore(uri, "job").latest()
        if checkpoint is None:
            return None
        with checkpoint.folder() as folder:
            assert (folder / "state").read_text() == checkpoint.state["of"]
        return checkpoint.state["of"]

    save(uris.join(root, "counted"), "old")
    faults.reset(None)
    save(uris.join(root, "counted"), "new")
    found = set()
    for number in range(faults.count):
        for after, dead in ((False, False), (True, False), (True, True)):
            faults.reset(None)
            uri = uris.join(root, f"c-{number}-{after}-{dead}")
            save(uri, "old")
            faults.reset(number, after=after, dead=dead)
            with contextlib.suppress(CheckpointError, OSError):
                save(uri, "new")
            faults.reset(None)
            found.add(load(uri))
            save(uri, "last")
            assert load(uri) == "last"
    assert found == outcomes
