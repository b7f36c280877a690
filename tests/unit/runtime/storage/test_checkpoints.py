"""CheckpointStore: complete or not there, the newest that is intact, one job's and not another's."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import CheckpointError
from airflow_hydrogen.runtime.storage.checkpoints import MANIFEST, CheckpointStore, verify


def write(text: str):
    def to(folder: Path) -> None:
        (folder / "weights.bin").write_text(text)
        (folder / "more").mkdir()
        (folder / "more" / "vocabulary.txt").write_text("a\nb\n")

    return to


def contents(checkpoint) -> str:
    with checkpoint.folder() as folder:
        return (folder / "weights.bin").read_text()


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "checkpoints"), fingerprint="job-1")


def test_nothing_there_is_no_checkpoint(store: CheckpointStore) -> None:
    assert store.latest() is None
    assert store.steps() == []
    store.prune(1)


def test_latest_gives_back_what_was_saved(store: CheckpointStore) -> None:
    store.save(1, write("one"), {"history": []})
    saved = store.save(2, write("two"), {"history": [{"loss": 0.5}]})
    latest = store.latest()
    assert latest == saved
    assert latest is not None
    assert (latest.step, latest.fingerprint, latest.state) == (2, "job-1", {"history": [{"loss": 0.5}]})
    assert sorted(latest.files) == ["more/vocabulary.txt", "weights.bin"]
    assert contents(latest) == "two"


def test_steps_are_ordered_as_numbers(store: CheckpointStore) -> None:
    for step in (9, 100_000_000, 10):
        store.save(step, write(str(step)), {})
    assert store.steps() == [100_000_000, 10, 9]


def test_file_uri_and_path_are_the_same_store(tmp_path: Path) -> None:
    CheckpointStore((tmp_path / "store").as_uri()).save(1, write("one"), {})
    latest = CheckpointStore(str(tmp_path / "store")).latest()
    assert latest is not None
    assert contents(latest) == "one"


def test_a_store_without_local_paths_uploads_the_manifest_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow_hydrogen.contract import uris
    from airflow_hydrogen.runtime.storage import filesystems

    # pyarrow's filesystem of the local disk, reached as an object store is: no paths, no renames.
    monkeypatch.setattr(uris, "local_path", lambda uri: None)
    monkeypatch.setattr(uris, "canonical", lambda uri: uri)
    written: list[str] = []
    upload, write_bytes = filesystems.upload, filesystems.write_bytes
    monkeypatch.setattr(filesystems, "upload", lambda *a: (written.append("files"), upload(*a)))
    monkeypatch.setattr(filesystems, "write_bytes", lambda *a: (written.append("manifest"), write_bytes(*a)))
    remote = CheckpointStore((tmp_path / "bucket").as_uri(), "job-1")
    for step in (1, 2, 3):
        remote.save(step, write(str(step)), {})
    assert written == ["files", "manifest"] * 3
    (tmp_path / "bucket" / "step-00000003" / MANIFEST).unlink()  # an upload that was cut off
    latest = remote.latest()
    assert latest is not None
    assert (latest.step, contents(latest)) == (2, "2")
    remote.prune(1)
    assert remote.steps() == [2]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "weights.bin").write_text("twO"), "'weights.bin' has another sha256"),
        (lambda folder: (folder / "weights.bin").write_text("tw"), "'weights.bin' has 2 bytes, expected 3"),
        (lambda folder: (folder / "weights.bin").unlink(), "'weights.bin' is missing"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "has no readable checkpoint.json"),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "has no readable checkpoint.json"),
        (
            lambda folder: (folder / MANIFEST).write_text(
                json.dumps({**json.loads((folder / MANIFEST).read_text()), "format_version": 7})
            ),
            "format version 7, expected 1",
        ),
    ],
)
def test_damaged_newest_checkpoint_is_passed_over_with_a_warning(
    store: CheckpointStore, damage, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(1, write("one"), {})
    newest = store.save(2, write("two"), {})
    damage(Path(newest.uri))
    with pytest.raises(CheckpointError, match=message):
        verify(newest.uri)
    with caplog.at_level(logging.WARNING):
        latest = store.latest()
    assert latest is not None
    assert latest.step == 1
    assert newest.uri in caplog.text
    assert message in caplog.text


def test_checkpoint_of_another_job_is_not_taken(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.save(1, write("mine"), {})
    CheckpointStore(store.uri, "job-2").save(2, write("theirs"), {})
    latest = store.latest()
    assert latest is not None
    assert contents(latest) == "mine"
    assert "another job's (fingerprint 'job-2', this job has 'job-1')" in caplog.text
    assert store.latest("job-3") is None


def test_what_changed_since_a_checkpoint_is_said(
    store: CheckpointStore, caplog: pytest.LogCaptureFixture
) -> None:
    before = CheckpointStore(store.uri, "job-0", {"code of entrypoint": "ab", "np": "2"})
    saved = before.save(3, write("before"), {})
    assert before.latest() == saved
    after = CheckpointStore(store.uri, "job-1", {"code of entrypoint": "cd", "np": "2"})
    assert after.latest() is None
    assert "step-00000003' is another job's (code of entrypoint has changed): not resumed" in caplog.text
    assert (
        f"no checkpoint at '{store.uri}' is this job's: the training starts from the beginning" in caplog.text
    )


def test_a_save_that_fails_leaves_the_earlier_ones(store: CheckpointStore) -> None:
    store.save(1, write("one"), {})

    def fail(folder: Path) -> None:
        (folder / "weights.bin").write_text("half")
        raise OSError("disk full")

    with pytest.raises(CheckpointError, match=r"step-00000002' could not be written: disk full"):
        store.save(2, fail, {})
    assert [path.name for path in Path(store.uri).iterdir()] == ["step-00000001"]


def test_state_must_be_json(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000001.*not JSON serializable"):
        store.save(1, write("one"), {"history": {1, 2}})
    assert store.latest() is None


def test_the_same_step_is_replaced(store: CheckpointStore) -> None:
    store.save(1, write("first"), {})
    store.save(1, write("second"), {})
    latest = store.latest()
    assert latest is not None
    assert contents(latest) == "second"
    assert store.steps() == [1]


def test_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=rf"checkpoint '{tmp_path}/file/c/step-00000001' could not be"):
        CheckpointStore(str(tmp_path / "file" / "c")).save(1, write("one"), {})


def test_prune_keeps_the_newest_and_removes_what_a_killed_save_left(store: CheckpointStore) -> None:
    for step in range(4):
        store.save(step, write(str(step)), {})
    shutil.copytree(Path(store.uri) / "step-00000003", Path(store.uri) / ".staging-dead")
    store.prune(keep=2)
    assert sorted(path.name for path in Path(store.uri).iterdir()) == ["step-00000002", "step-00000003"]
    with pytest.raises(CheckpointError, match="keep=0"):
        store.prune(keep=0)


def test_steps_are_not_negative(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match="must be >= 0, found -1"):
        store.save(-1, write("one"), {})
