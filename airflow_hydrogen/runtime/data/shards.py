"""Row groups -> ranks, with equal steps on every rank. Pure."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RowSlice:
    """Rows `start` to `stop` (exclusive) of one row group."""

    row_group: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Rows in the slice, >= 1."""
        return self.stop - self.start


def rows_per_rank(total: int, size: int) -> int:
    """Rows that each rank reads in an epoch: the same on all, so that no rank waits for a missing peer."""
    return -(-total // size)


def assign_shards(
    row_counts: Sequence[int], size: int, order: Sequence[int] | None = None
) -> list[list[RowSlice]]:
    """Split row groups over ranks so that every rank reads the same number of rows.

    Args:
        row_counts: rows in each row group, in file order.
        size: number of ranks, >= 1.
        order: the sequence in which row groups are dealt out, a permutation of their indices; file order
            by default. Another order gives other ranks other rows.

    Returns:
        One list of slices per rank. Slices of different ranks overlap only where the total is not a
        multiple of `size`: then the first rows are read again, as torch's DistributedSampler does.

    Raises:
        ValueError: no rows at all, or `size` below 1.
    """
    sequence = range(len(row_counts)) if order is None else order
    ends = list(itertools.accumulate(row_counts[group] for group in sequence))
    total = ends[-1] if ends else 0
    if size < 1 or total < 1:
        raise ValueError(f"need at least one rank and one row, found {size} ranks and {total} rows")
    share = rows_per_rank(total, size)
    shards = []
    for rank in range(size):
        slices: list[RowSlice] = []
        position, left = rank * share, share
        while left:
            offset = position % total
            place = bisect.bisect_right(ends, offset)
            group = sequence[place]
            start = offset - (ends[place] - row_counts[group])
            stop = min(row_counts[group], start + left)
            slices.append(RowSlice(group, start, stop))
            position += stop - start
            left -= stop - start
        shards.append(slices)
    return shards


def split_batches(slices: Sequence[RowSlice], batch_size: int, workers: int) -> list[list[RowSlice]]:
    """Split a rank's rows over the processes that read for it, from which one batch each is taken in turn.

    Args:
        slices: the rank's rows.
        batch_size: rows of a batch, >= 1.
        workers: number of processes, >= 1.

    Returns:
        One list of slices per process, perhaps empty: together every row once, in as many batches as one
        process would make of them. The one short batch, if there is one, is the last that is taken.
    """
    total = sum(part.rows for part in slices)
    steps = -(-total // batch_size)
    left = iter(slices)
    part: RowSlice | None = next(left, None)
    split: list[list[RowSlice]] = []
    for worker in range(workers):
        batches = len(range(worker, steps, workers))
        is_last = batches and worker == (steps - 1) % workers
        missing = batches * batch_size - (steps * batch_size - total if is_last else 0)
        split.append([])
        while missing:
            assert part is not None  # the batches of all workers are those of the total
            stop = min(part.stop, part.start + missing)
            split[-1].append(RowSlice(part.row_group, part.start, stop))
            missing -= stop - part.start
            part = next(left, None) if stop == part.stop else RowSlice(part.row_group, stop, part.stop)
    return split


def shuffled_order(row_groups: int, seed: int, epoch: int) -> list[int]:
    """A permutation of the row groups: the same on every rank and host, another one each epoch."""
    order = list(range(row_groups))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return order
