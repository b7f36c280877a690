from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.gang.output import lines_of, read_at_intervals


def test_lines_come_whole_however_the_bytes_are_cut():
    assert list(
        lines_of([b"one\ntw", b"o\n", b"\n", "drei \N{SNOWMAN}\n".encode()[:6], b"\x98\x83\nlast"])
    ) == [
        "one",
        "two",
        "drei \N{SNOWMAN}",
        "last",
    ]


def test_the_states_of_a_progress_bar_are_lines_before_the_bar_is_done():
    lines = lines_of(iter([b"1/2\r", b"2/2\b\b\r", b"\n"]))
    assert next(lines) == "1/2"
    assert list(lines) == ["2/2"]


def test_a_line_without_end_is_cut_and_bytes_that_are_no_text_are_replaced():
    lines = list(lines_of([b"x" * 40_000, b"x" * 40_000, b"\xff\n"]))
    assert [len(line) for line in lines] == [80_000, 1]
    assert lines[1] == "\N{REPLACEMENT CHARACTER}"


@given(st.lists(st.text("ab \u00e4", min_size=1).filter(str.strip), max_size=5), st.integers(1, 7))
def test_no_cut_changes_the_lines(lines, size):
    raw = "".join(f"{line}\n" for line in lines).encode()
    assert list(lines_of(raw[at : at + size] for at in range(0, len(raw), size))) == lines


def test_a_little_is_waited_for_and_much_is_read_at_once():
    sizes = [10, 20_000, 10, 10, 10, 0]

    def read(_limit):
        now[0] += 0.6
        return b"x" * sizes.pop(0)

    now, pauses = [0.0], []
    output = SimpleNamespace(read1=read)
    found = list(read_at_intervals(output, lambda: now[0], lambda seconds: pauses.append((now[0], seconds))))
    assert [len(chunk) for chunk in found] == [10, 20_000, 10, 10, 10]
    # After the first, and from a second after the large one on.
    assert [round(at, 1) for at, _seconds in pauses] == [0.6, 2.4, 3.0]
    assert {seconds for _at, seconds in pauses} == {0.1}
