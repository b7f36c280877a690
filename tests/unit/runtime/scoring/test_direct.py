from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.runtime.scoring.direct import RowGroup, deal

groups = st.lists(
    st.builds(RowGroup, path=st.sampled_from("abc"), index=st.integers(0, 9), rows=st.integers(1, 1000)),
    max_size=30,
)


@given(groups, st.integers(1, 8))
def test_every_row_group_is_dealt_once_and_no_hand_is_empty(found, tasks):
    hands = deal(found, tasks)
    key = repr
    assert sorted((group for hand in hands for group in hand), key=key) == sorted(found, key=key)
    assert len(hands) == min(tasks, len(found))
    assert all(hands)


@given(groups, st.integers(1, 8))
def test_no_hand_has_more_than_a_row_group_above_another(found, tasks):
    rows = [sum(group.rows for group in hand) for hand in deal(found, tasks)]
    if rows:
        assert max(rows) - min(rows) <= max(group.rows for group in found)
