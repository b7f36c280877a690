from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow.fs import LocalFileSystem

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    CheckpointError,
    InvalidUriError,
    ModelChangedError,
    ModelFormatError,
    ModelModuleError,
    ModelReplacedError,
    NotAModelError,
)
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.runtime.models import directory, engines, predictors
from airflow_hydrogen.runtime.models.manifest import FileEntry, Manifest
from airflow_hydrogen.runtime.models.predictors import load_predictor
from airflow_hydrogen.runtime.storage import filesystems, swap
from airflow_hydrogen.runtime.storage.checkpoints import CheckpointStore
from airflow_hydrogen.runtime.storage.hashing import sha256_of
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


def _rewrite(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "entry", ["../../x", "/etc/passwd", "model", "model.keras/x", "events", "", ".", "./x"]
)
def test_an_entry_that_is_none_of_the_files_is_refused(tmp_path, entry):
    _publish(tmp_path / "m")
    _rewrite(tmp_path / "m", entry=entry)
    with pytest.raises(NotAModelError, match="cannot be read .*entry|not the name of a file in the model's"):
        directory.open_model(str(tmp_path / "m"))


PARTS = st.lists(st.sampled_from(["..", ".", "", "a", "b", "a.keras", "\0"]), max_size=4)


@given(PARTS, st.lists(PARTS, min_size=1, max_size=3))
def test_what_a_manifest_names_lies_in_the_models_folder(entry, paths):
    signature = Signature((), ())
    files = tuple(FileEntry("/".join(path), "", 0) for path in paths)
    text = Manifest(framework="x", entry="/".join(entry), signature=signature, files=files).dumps()
    try:
        manifest = Manifest.loads("m", text)
    except NotAModelError:
        return
    for name in (manifest.entry, *(file.path for file in manifest.files)):
        assert os.path.normpath(f"/m/{name}") == f"/m/{name}"
    assert any(os.path.commonpath([manifest.entry, file.path]) == manifest.entry for file in manifest.files)


def test_a_folder_of_files_is_an_entry(tmp_path):
    (tmp_path / "saved_model" / "variables").mkdir(parents=True)
    (tmp_path / "saved_model" / "variables" / "index").write_text("x")
    manifest = Manifest(
        framework="tensorflow",
        entry="saved_model",
        signature=Signature((), ()),
        files=directory.describe_files(tmp_path, ["saved_model"]),
    )
    assert Manifest.loads("m", manifest.dumps()) == manifest


def test_a_manifest_of_before_there_were_modules_is_read(tmp_path):
    written = _publish(tmp_path / "m")
    path = tmp_path / "m" / "manifest.json"
    document = json.loads(path.read_text())
    del document["modules"]
    path.write_text(json.dumps(document))
    assert directory.read_manifest(str(tmp_path / "m")) == written


# --- one version, whatever is published meanwhile -------------------------------------------------------


def test_the_version_is_the_hash_of_the_manifest_file(tmp_path):
    written = _publish(tmp_path / "m")
    assert written.version == sha256_of(tmp_path / "m" / "manifest.json")
    assert _publish(tmp_path / "m", "other").version != written.version


def test_a_manifest_of_an_older_package_has_the_hash_of_its_file_too(tmp_path):
    _publish(tmp_path / "m", "one")
    path = tmp_path / "m" / "manifest.json"
    document = json.loads(path.read_text())
    del document["modules"]
    path.write_text(json.dumps(document))
    found = directory.read_manifest(str(tmp_path / "m"))
    assert pickle.loads(pickle.dumps(found)).version == sha256_of(path)


def test_another_model_than_the_one_that_was_checked_is_refused(tmp_path):
    checked = _publish(tmp_path / "m", "old")
    now = _publish(tmp_path / "m", "new")
    with (
        pytest.raises(
            ModelReplacedError,
            match=f"version {checked.version[:12]} was checked, version {now.version[:12]}",
        ) as caught,
        directory.hold_model(str(tmp_path / "m"), checked),
    ):
        pass
    assert caught.value.retryable


def test_a_model_that_was_removed_after_it_was_checked(tmp_path):
    checked = _publish(tmp_path / "m")
    (tmp_path / "m" / "manifest.json").unlink()
    (tmp_path / "m" / "model.keras").unlink()
    with (
        pytest.raises(ModelReplacedError, match="there is no model now; run again"),
        directory.hold_model(str(tmp_path / "m"), checked),
    ):
        pass


def test_a_damaged_file_of_the_checked_model_is_no_other_model(tmp_path):
    checked = _publish(tmp_path / "m")
    (tmp_path / "m" / "model.keras").write_text("weightz")
    with (
        pytest.raises(ModelChangedError, match="file 'model.keras' has another sha256") as caught,
        directory.hold_model(str(tmp_path / "m"), checked),
    ):
        pass
    assert not caught.value.retryable


@pytest.fixture
def text_predictor(tmp_path, monkeypatch):
    """A predictor that is the text of the model's file, and what happens just before that is read."""
    code = (
        "import pathlib\n"
        "before = []\n"
        "def load(path):\n"
        "    for act in before: act()\n"
        "    return pathlib.Path(path).read_text()\n"
    )
    (tmp_path / "text_predictor.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("text_predictor")
    yield module
    del sys.modules["text_predictor"]


def _load(folder, manifest):
    with load_predictor(str(folder), manifest, "text_predictor:load", 1, engines.PREDICTOR) as predict:
        return predict


def test_a_model_that_is_published_between_the_check_of_the_files_and_their_loading(tmp_path, text_predictor):
    checked = _publish(tmp_path / "m", "old")
    assert _load(tmp_path / "m", checked) == "old"
    text_predictor.before.append(lambda: _publish(tmp_path / "m", "new"))
    with pytest.raises(ModelReplacedError, match=f"version {checked.version[:12]} was checked"):
        _load(tmp_path / "m", checked)


def test_an_error_of_the_loader_itself_stays_what_it_is(tmp_path, text_predictor):
    def fail():
        raise RuntimeError("out of memory")

    checked = _publish(tmp_path / "m")
    text_predictor.before.append(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        _load(tmp_path / "m", checked)


def test_a_module_that_the_model_needs_and_that_is_not_there_is_named(tmp_path):
    manifest = _publish(tmp_path / "m", modules=("json", "no_such.layers"))
    for use in (
        lambda: predictors.require_modules("m", manifest),
        lambda: predictors.load("m", manifest, tmp_path / "m", None, 1, engines.PREDICTOR),
    ):
        with pytest.raises(
            ModelModuleError, match="needs the module 'no_such.layers'.* ship it with py_files"
        ):
            use()


# --- elsewhere than on this machine ---------------------------------------------------------------------


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store that is not local: fake://name lies in a folder."""
    resolve = filesystems.resolve
    folder = tmp_path / "store"

    def resolve_fake(uri):
        if uri.startswith("fake://"):
            return LocalFileSystem(), f"{folder}/{uri.removeprefix('fake://')}"
        return resolve(uri)

    monkeypatch.setattr(filesystems, "resolve", resolve_fake)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return folder


def test_of_a_model_elsewhere_its_own_files_are_copied_and_no_more(store):
    written = _publish(store / "m")
    (store / "m" / "checkpoints").mkdir()
    (store / "m" / "checkpoints" / "large").write_text("x" * 1000)
    manifest, folder = directory.open_model("fake://m")
    assert manifest == written
    assert [path.name for path in folder.rglob("*")] == ["model.keras"]


def test_a_host_that_has_the_checked_model_scores_with_it_though_another_was_published(store):
    checked = _publish(store / "m", "old")
    directory.open_model("fake://m")
    _publish(store / "m", "new")
    with directory.hold_model("fake://m", checked) as held:
        assert (held.folder / "model.keras").read_text() == "old"


@pytest.mark.parametrize("content", ["new", "other"])
def test_a_host_that_has_not_gets_no_other_one(store, content):
    checked = _publish(store / "m", "old")
    _publish(store / "m", content)
    with pytest.raises(ModelReplacedError), directory.hold_model("fake://m", checked):
        pass


def test_a_model_elsewhere_that_is_removed_while_it_is_opened_is_none(store, monkeypatch):
    _publish(store / "m")

    def remove_before(uri, path):
        (store / "m" / "manifest.json").unlink(missing_ok=True)
        (store / "m" / "model.keras").unlink()
        raise FileNotFoundError(uri)

    monkeypatch.setattr(filesystems, "download_file", remove_before)
    with pytest.raises(NotAModelError, match="holds no manifest.json"):
        directory.open_model("fake://m")


def test_a_missing_file_elsewhere_is_named(store):
    _publish(store / "m")
    (store / "m" / "model.keras").unlink()
    with pytest.raises(ModelChangedError, match="file 'model.keras' is missing"):
        directory.open_model("fake://m")


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


@pytest.mark.medium  # 180 models, each published three times
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
    verify = directory._verify

    def replace_first(uri, manifest, folder):
        monkeypatch.setattr(directory, "_verify", verify)
        _publish(tmp_path / "m", "new!")
        verify(uri, manifest, folder)

    monkeypatch.setattr(directory, "_verify", replace_first)
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


@pytest.mark.parametrize(
    "there",
    [
        [],
        [".gitkeep"],
        ["checkpoints/0123456789ab/x", "data/ba9876543210/train/x", "events/x", "files-0123456789ab/x"],
        ["manifest.json", "notes.txt"],
    ],
)
def test_the_folder_of_a_model_or_of_one_that_begins_may_be_replaced(there, tmp_path):
    for name in there:
        filesystems.write_bytes(f"{tmp_path}/model/{name}", b"")
    directory.require_replaceable(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("there", "shown"),
    [
        (["part-0.parquet"], "part-0.parquet"),
        (["a/x", "b", "c", "d"], "a, b, c, ..."),
        (["data/flights/x", "checkpoints/0123456789ab/x"], "data/flights"),
        (["checkpoints/epoch-1"], "checkpoints/epoch-1"),
        (["files-of-mine/x"], "files-of-mine"),
    ],
)
def test_a_folder_that_holds_other_things_is_not_replaced(there, shown, tmp_path):
    for name in there:
        filesystems.write_bytes(f"{tmp_path}/model/{name}", b"")
    with pytest.raises(InvalidUriError, match=f"holds {shown}: a model takes the place of all"):
        directory.require_replaceable(str(tmp_path / "model"))


def test_a_folder_with_the_manifest_of_something_else_is_not_replaced(tmp_path):
    """Browsers' extensions, dbt and others have files of that name too."""
    (tmp_path / "manifest.json").write_text('{"metadata": {"dbt_version": "1.9.0"}}')
    (tmp_path / "run_results.json").write_text("{}")
    with pytest.raises(InvalidUriError, match="holds manifest.json, run_results.json: a model takes"):
        directory.require_replaceable(str(tmp_path))
    _publish(tmp_path / "model")
    directory.require_replaceable(str(tmp_path / "model"))


def test_what_a_killed_application_has_not_published_is_swept_and_nothing_else(tmp_path):
    _publish(tmp_path / "m")
    staged = Path(directory.staging_uri(str(tmp_path / "m")))
    (staged / "deep").mkdir(parents=True)
    others = [".m.owner.json", ".m.publish-1.owner.json", ".n.publish-0123456789ab", "m.publish-0123456789ab"]
    for name in others:
        (tmp_path / name).touch()
    directory.sweep_staging(str(tmp_path / "m"))
    assert not staged.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "m"])
