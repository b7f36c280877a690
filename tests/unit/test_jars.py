"""scripts/jars.py: jars are fetched once, whole, and the right ones, by a program in the place of Maven."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scripts import jars

# Writes what the POM asks for, and a line into a log for each run.
MAVEN = """#!{python}
import pathlib, re, sys
with open({log!r}, "a") as log:
    log.write("run\\n")
if {fails}:
    sys.exit("no such jar")
pom = pathlib.Path(sys.argv[sys.argv.index("--file") + 1]).read_text()
folder = pathlib.Path(sys.argv[-1].removeprefix("-DoutputDirectory="))
for item in re.findall("<artifactItem>.*?</artifactItem>", pom):
    artifact, version = re.search("<artifactId>(.*)</artifactId><version>(.*)</version>", item).groups()
    (folder / f"{{artifact}}-{{version}}.jar").write_text("content")
"""
SHA256 = hashlib.sha256(b"content").hexdigest()
Maven = Callable[..., Path]


@pytest.fixture
def maven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maven:
    """Puts a Maven on the PATH, and pins in place of jars.txt; returns the log of its runs."""

    def make(sha256: str = SHA256, fails: bool = False) -> Path:
        log = tmp_path / "runs"
        program = tmp_path / "bin" / "mvn"
        program.parent.mkdir()
        program.write_text(MAVEN.format(python=sys.executable, log=str(log), fails=fails))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        pins = tmp_path / "pins.txt"
        pins.write_text(f"# a comment\n[one]\ng:a:1 {sha256}\n[two]\ng:a:1 {sha256}\ng:b:2 {sha256}\n")
        monkeypatch.setattr(jars, "PINS", pins)
        return log

    return make


def test_a_jar_of_two_sets_is_there_once(maven: Maven, tmp_path: Path) -> None:
    maven()
    found = jars.jars("two", "one", folder=tmp_path / "jars")
    assert [jar.name for jar in found] == ["a-1.jar", "b-2.jar"]
    assert all(jar.read_text() == "content" for jar in found)


def test_what_is_there_is_not_fetched_again(maven: Maven, tmp_path: Path) -> None:
    log = maven()
    jars.jars("one", "two", folder=tmp_path / "jars")
    jars.jars("one", folder=tmp_path / "jars")
    assert log.read_text().split() == ["run"]


def test_of_several_that_ask_at_once_one_fetches(maven: Maven, tmp_path: Path) -> None:
    log = maven()
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: jars.jars("two", folder=tmp_path / "jars"), range(4)))
    assert log.read_text().split() == ["run"]


def test_what_a_killed_fetch_has_left_is_swept(maven: Maven, tmp_path: Path) -> None:
    maven()
    (tmp_path / "jars" / "fetch-1").mkdir(parents=True)
    (tmp_path / "jars" / "fetch-1" / "a-1.jar").write_text("con")
    jars.jars("one", folder=tmp_path / "jars")
    assert sorted(path.name for path in (tmp_path / "jars").iterdir()) == [".lock", "a-1.jar"]


def test_another_jar_than_the_pinned_one_is_refused(maven: Maven, tmp_path: Path) -> None:
    maven(sha256="0" * 64)
    with pytest.raises(jars.JarsUnavailableError, match=f"{SHA256} instead of 0000"):
        jars.jars("one", folder=tmp_path / "jars")
    assert not list((tmp_path / "jars").glob("*.jar"))


def test_the_error_has_mavens_last_words(maven: Maven, tmp_path: Path) -> None:
    maven(fails=True)
    with pytest.raises(jars.JarsUnavailableError, match="a-1.jar: not in .* does not get them: no such jar"):
        jars.jars("one", folder=tmp_path / "jars")


def test_without_maven_the_error_says_where_jars_can_be_put(
    maven: Maven, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maven()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(jars.JarsUnavailableError, match="install Maven, or put them into that folder"):
        jars.jars("one", folder=tmp_path / "jars")


def test_an_unknown_set_is_named_beside_the_known_ones() -> None:
    with pytest.raises(LookupError, match="oracle: jars.txt has delta, avro, kafka, "):
        jars.pinned(["oracle"])


def test_every_pin_has_a_sum_and_no_two_jars_one_name() -> None:
    sets = [line.strip("[]") for line in jars.PINS.read_text().splitlines() if line.startswith("[")]
    pins = jars.pinned(sets)
    assert all(len(bytes.fromhex(pin.sha256)) == 32 for pin in pins)
    assert len({pin.file_name for pin in pins}) == len(pins)
