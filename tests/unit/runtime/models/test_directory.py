from __future__ import annotations

import json
import os

import pytest

from airflow_hydrogen.contract.errors import ModelChangedError, ModelFormatError, NotAModelError
from airflow_hydrogen.runtime.data.columns import ColumnSpec
from airflow_hydrogen.runtime.models import directory
from airflow_hydrogen.runtime.models.manifest import InputSpec, Manifest, OutputSpec, Signature


def _publish(folder, content="weights", **changes):
    staged = directory.staging_uri(str(folder))
    os.makedirs(staged)
    with open(f"{staged}/model.keras", "w") as stream:
        stream.write(content)
    signature = Signature(
        (InputSpec("x", (ColumnSpec("a", "float32"), ColumnSpec("p", "float32", 3)), "float32", (4,)),),
        (OutputSpec("prediction", "float32", (1,)),),
    )
    from pathlib import Path

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
