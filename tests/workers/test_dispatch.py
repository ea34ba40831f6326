"""Each prompt of each member counts exactly once, whatever happens to the workers.

The tests also check the sizes and the order in which pieces are assigned.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estune.workers.dispatch import Dispatch, Pace, Piece


class Crowd:
    """Workers that come and go and end their pieces in any order, and who answered what."""

    def __init__(self, dispatch: Dispatch, workers: int, seed: int) -> None:
        self.dispatch = dispatch
        self.random = random.Random(seed)
        self.alive = set(range(workers))
        self.gone: set[int] = set()
        self.at: dict[int, Piece] = {}
        self.answered: list[Piece] = []
        self.handed: list[Piece] = []
        self.now = 0.0

    def run(self, changes: int) -> None:
        """Until all is answered; workers are lost, come back or join `changes` times."""
        while not self.dispatch.finished:
            self.now += self.random.expovariate(1)
            if changes and self.random.random() < 0.5:
                changes -= 1
                self.change()
            self.ask()
            if self.at:
                self.end(self.random.choice(sorted(self.at)))
            elif not self.alive:
                self.alive.add(self.gone.pop() if self.gone else 0)

    def change(self) -> None:
        what = self.random.choice(["lose", "lose", "lose all", "come back", "join"])
        leaving = {"lose": sorted(self.alive)[:1], "lose all": sorted(self.alive)}.get(what, [])
        for worker in leaving:
            self.alive.remove(worker)
            self.gone.add(worker)
            self.at.pop(worker, None)
            self.dispatch.lost(worker)
        if what == "come back" and self.gone:
            self.alive.add(self.gone.pop())
        if what == "join":
            self.alive.add(max(self.alive | self.gone) + 1)

    def ask(self) -> None:
        for worker in sorted(self.alive - self.at.keys()):
            piece = self.dispatch.take(worker, len(self.alive), self.now)
            if piece is not None:
                self.at[worker] = piece
                self.handed.append(piece)
            assert self.dispatch.in_flight == len(
                {piece.member for piece in self.at.values() if piece not in self.answered}
            )

    def end(self, worker: int) -> None:
        piece = self.at.pop(worker)
        first = piece not in self.answered
        assert self.dispatch.done(piece, self.now) is first
        if first:
            self.answered.append(piece)


@settings(deadline=None, max_examples=200)
@given(
    members=st.integers(1, 30),
    prompts=st.integers(1, 40),
    workers=st.integers(1, 50),
    changes=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_each_prompt_of_each_member_is_answered_once_whoever_is_lost_or_joins(
    members, prompts, workers, changes, seed
):
    crowd = Crowd(Dispatch(members, prompts), workers, seed)
    crowd.run(changes)
    answered = sorted(
        (piece.member, i) for piece in crowd.answered for i in range(piece.start, piece.stop)
    )
    assert answered == [(member, i) for member in range(members) for i in range(prompts)]
    assert all(piece.size >= min(prompts, -(-prompts // 8)) for piece in crowd.handed)
    assert crowd.dispatch.in_flight == 0
    assert crowd.dispatch.take(0, 1, crowd.now + 1e9) is None


@given(members=st.integers(1, 20), prompts=st.integers(1, 20))
def test_one_worker_gets_whole_members_in_order(members, prompts):
    dispatch = Dispatch(members, prompts)
    for member in range(members):
        piece = dispatch.take(0, 1, member)
        assert piece == Piece(member, 0, prompts)
        assert not dispatch.finished and dispatch.in_flight == 1
        assert dispatch.done(piece, member + 1)
    assert dispatch.finished and dispatch.take(0, 1, members) is None


def test_while_much_is_left_members_are_whole_and_in_order_then_pieces_shrink_to_an_eighth():
    dispatch = Dispatch(30, 200)
    sizes = []
    while (piece := dispatch.take(len(sizes), 8, 0.0)) is not None:
        sizes.append(piece.size)
    assert sizes[:18] == [200] * 18
    assert sum(sizes) == 6000
    assert min(sizes) == 25
    assert sum(sizes[-8:]) < 300


def test_one_prompt_is_for_one_worker_though_many_ask():
    dispatch = Dispatch(1, 1)
    pieces = [dispatch.take(worker, 5, 0.0) for worker in range(5)]
    assert pieces == [Piece(0, 0, 1), None, None, None, None]
    assert dispatch.done(Piece(0, 0, 1), 1.0) and dispatch.finished


def test_a_single_member_is_cut_into_eighths_for_many_workers():
    dispatch = Dispatch(1, 80)
    pieces = [dispatch.take(worker, 100, 0.0) for worker in range(100)]
    assert pieces[:8] == [Piece(0, start, start + 10) for start in range(0, 80, 10)]
    assert pieces[8:] == [None] * 92


@pytest.mark.parametrize("prompts", [1, 2, 7, 8, 9, 15, 17, 63, 65, 200])
def test_no_piece_is_smaller_than_an_eighth_of_a_member_rounded_up(prompts):
    dispatch = Dispatch(5, prompts)
    sizes = []
    while (piece := dispatch.take(len(sizes), 1000, 0.0)) is not None:
        sizes.append(piece.size)
    assert sum(sizes) == 5 * prompts
    assert min(sizes) >= -(-prompts // 8)


def late_pair() -> tuple[Dispatch, Piece]:
    """Return a dispatch whose worker 0 finished in 1 s, and the piece that worker 1 still has."""
    dispatch = Dispatch(2, 1)
    first, second = dispatch.take(0, 2, 0.0), dispatch.take(1, 2, 0.0)
    assert first and second and dispatch.done(first, 1.0)
    return dispatch, second


def test_a_late_piece_is_given_to_one_more_and_the_first_answer_counts():
    dispatch, slow = late_pair()
    assert dispatch.take(0, 3, 2.9) is None
    assert dispatch.take(0, 3, 3.0) == slow
    assert dispatch.take(2, 3, 99.0) is None, "two are at it"
    assert dispatch.in_flight == 1
    assert dispatch.done(slow, 4.0) and dispatch.finished
    assert not dispatch.done(slow, 5.0)
    assert dispatch.finished and dispatch.in_flight == 0


def test_a_late_piece_outlives_the_loss_of_one_worker_and_of_both():
    dispatch, slow = late_pair()
    assert dispatch.take(0, 2, 3.0) == slow
    dispatch.lost(1)
    assert dispatch.take(2, 2, 3.0) == slow, "worker 0 is alone at it, and it is late"
    dispatch.lost(0)
    assert dispatch.take(3, 2, 3.0) == slow, "worker 2 is alone at it"
    dispatch.lost(2)
    dispatch.lost(3)
    assert dispatch.in_flight == 0
    assert dispatch.take(4, 1, 3.0) == slow


def test_the_piece_that_is_longest_overdue_for_its_size_goes_first():
    dispatch = Dispatch(6, 8)
    whole = [dispatch.take(worker, 1, 0.0) for worker in range(5)]
    assert dispatch.done(whole[0], 8.0)  # 1 s a prompt
    small = dispatch.take(5, 100, 10.0)
    rest = [dispatch.take(worker, 100, 10.0) for worker in range(6, 13)]
    assert small == Piece(5, 0, 1) and all(rest)
    for piece in rest:
        assert dispatch.done(piece, 11.0)
    assert dispatch.take(0, 13, 12.9) is None
    assert dispatch.take(0, 13, 13.1) == small, "though the whole members began before it"


def test_nothing_is_late_before_anything_was_done():
    dispatch = Dispatch(1, 1)
    assert dispatch.take(0, 2, 0.0)
    assert dispatch.take(1, 2, 1e9) is None


def test_what_a_lost_worker_was_at_goes_to_the_next_that_asks():
    dispatch = Dispatch(3, 4)
    first = dispatch.take(0, 1, 0.0)
    dispatch.lost(0)
    assert dispatch.in_flight == 0
    assert dispatch.take(1, 1, 1.0) == first
    dispatch.lost(7)  # was at nothing
    assert dispatch.in_flight == 1
    assert dispatch.take(2, 2, 1.0) != first


def test_after_all_were_lost_new_workers_do_everything():
    dispatch = Dispatch(4, 8)
    taken = [dispatch.take(worker, 4, 0.0) for worker in range(4)]
    for worker in range(4):
        dispatch.lost(worker)
    assert not dispatch.finished and dispatch.in_flight == 0
    again, now = [], 1.0
    while (piece := dispatch.take(9, 1, now)) is not None:
        again.append(piece)
        now += 1
        assert dispatch.done(piece, now)
    assert again[: len(taken)] == taken
    assert dispatch.finished


def test_pace_learns_what_each_piece_costs_whatever_its_size():
    pace = Pace()
    assert pace.fit() == (0.0, 0.0) and pace.fixed(200) == 0.0
    for _ in range(9):
        pace.add(200, 30.0)
    assert pace.fit() == (0.0, pytest.approx(0.15)), (
        "pieces of one size tell nothing about the fixed part"
    )
    for size in (25, 50, 100):
        pace.add(size, 10 + 0.1 * size)
    assert pace.fit() == (pytest.approx(10.0), pytest.approx(0.1))
    assert pace.fixed(200) == pytest.approx(1 / 3)


@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1e4)), min_size=1))
def test_what_pace_learns_is_never_negative(pieces):
    pace = Pace()
    for size, seconds in pieces:
        pace.add(size, seconds)
    start, each = pace.fit()
    assert start >= 0 and each >= 0
    assert 0 <= pace.fixed(200) <= 1


def test_the_more_a_piece_costs_whatever_its_size_the_less_is_cut():
    pieces = []
    for fixed in (0.0, 0.25, 0.5, 1.0):
        pace = Pace()
        for size in (200, 100, 25):
            pace.add(size, 200 * fixed + size * (1 - fixed))
        dispatch = Dispatch(30, 200, pace)
        pieces.append(sum(dispatch.take(worker, 8, 0.0) is not None for worker in range(300)))
    assert pieces[0] > pieces[1] > pieces[2] == pieces[3] > 30, (
        "some is always cut, so that it shows when it pays again"
    )


def test_a_clock_that_stands_still_harms_nothing():
    dispatch = Dispatch(3, 5)
    while (piece := dispatch.take(0, 2, 0.0)) is not None:
        assert dispatch.done(piece, 0.0)
    assert dispatch.finished
