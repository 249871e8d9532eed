"""How the examples of a step are laid into rows: no token is lost, and no conversation split."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fm_local.trainer.batching import collate_packed, rank_share
from fm_local.trainer.packing import best_fit, pack, pack_side_by_side
from support.models import Example, Rows

SIZES = st.lists(st.integers(2, 300), min_size=1, max_size=200).map(np.array)


@given(lengths=SIZES, max_tokens=st.integers(1, 600))
def test_trap_21_packing_keeps_every_token_and_splits_no_conversation(lengths: np.ndarray, max_tokens: int) -> None:
    chosen = np.arange(len(lengths))[::-1]
    groups = pack(chosen, lengths, max_tokens)
    assert sorted(np.concatenate(groups)) == list(range(len(lengths)))
    assert all(len(group) == 1 or (lengths[group] - 1).sum() <= max_tokens for group in groups)
    rows: list[Example] = [([n] * int(length), [True] * int(length)) for n, length in enumerate(lengths)]
    kept = np.concatenate(
        [collate_packed(Rows(rows), group).ids[0, : (lengths[group] - 1).sum()].numpy() for group in groups]
    )
    assert np.array_equal(np.bincount(kept), lengths - 1)


@given(lengths=SIZES, lanes=st.integers(1, 5), room=st.integers(1, 20))
def test_rows_side_by_side_are_about_as_long_as_each_other_and_fit_together(
    lengths: np.ndarray, lanes: int, room: int
) -> None:
    chosen, max_tokens = np.arange(len(lengths))[::-1], lanes * int(lengths.max()) + 50 * room
    rows = pack_side_by_side(chosen, lengths, lanes, max_tokens)
    assert sorted(np.concatenate(rows)) == list(range(len(lengths)))
    tokens = sorted(lengths[row].sum() for row in rows)
    assert sum(tokens[-lanes:]) <= max_tokens
    assert len(rows) >= min(lanes, len(lengths))
    if len(rows) < len(lengths):
        assert tokens[-1] - tokens[0] <= lengths.max()


@given(lengths=SIZES, world=st.integers(1, 5))
def test_shares_of_a_step_have_about_as_many_tokens(lengths: np.ndarray, world: int) -> None:
    shares = [rank_share(np.arange(len(lengths))[::-1], lengths, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == list(range(len(lengths)))
    tokens = [lengths[share].sum() for share in shares]
    assert max(tokens) - min(tokens) <= lengths.max()


@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=60).map(np.array))
def test_best_fit_puts_each_where_it_leaves_the_least_space(sizes: np.ndarray) -> None:
    space: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [left for left in space if left >= size]
        if fitting:
            space[space.index(min(fitting))] -= size
        else:
            space.append(50 - size)
    bins = best_fit(sizes, 50)
    assert sorted(50 - sizes[chosen].sum() for chosen in bins) == sorted(space)
