"""What is folded in the driver's log, and what is in sight."""

from __future__ import annotations

import pytest

from airflow_hydrogen.runtime.log_groups import LogGroup, log_group


def test_details_are_folded_and_what_is_said_stands_between_the_groups(
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = LogGroup("Ranks", folded=True)
    group.say("begins")
    group.detail("a")
    group.detail("b")
    group.say("half")
    group.say("more")
    group.detail("c")
    group.end()
    group.end()
    assert capsys.readouterr().out.splitlines() == [
        *("begins", "::group::Ranks", "a", "b", "::endgroup::"),
        *("half", "more", "::group::Ranks", "c", "::endgroup::"),
    ]


def test_outside_airflow_nothing_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    with log_group("Spark", folded=False) as group:
        group.detail("a")
        group.say("b")
    assert capsys.readouterr().out.splitlines() == ["a", "b"]


def test_a_group_ends_with_its_block_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), log_group("Spark", folded=True):
        raise ValueError("no")
    assert capsys.readouterr().out.splitlines() == ["::group::Spark", "::endgroup::"]
