"""The schedule against holders that a test invents: each second of them is a loop's round, no clock is waited for."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consensus.names import StoreId
from replication import schedule as schedules
from replication.pieces import Pieces
from replication.schedule import Flow, Schedule, Trouble
from tests.replication.worlds import FAR, LINK, MIB, NEAR, PIECE, STEP, Behind, Bursts, Narrow, Uneven, World, world


def test_all_comes_once_and_the_nearest_is_asked_first() -> None:
    made = world(40, far=4000, near=4000)
    assert made.run()
    assert made.received == 40 * PIECE
    assert [holder for holder, _, _ in made.asked[:4]] == [NEAR] * 4
    assert made.most <= schedules.MOST_FLOWS


def test_what_somebody_waits_for_comes_first_even_if_all_flows_are_busy() -> None:
    made = world(40, near=100)
    made.step()
    busy = schedules.MOST_FLOWS
    assert [piece for _, piece, _ in made.asked] == [*range(busy)]
    made.needs = [31 * PIECE + 7]
    made.step()
    assert made.asked[busy][1] == 31
    made.needs = [31 * PIECE + 500]
    assert made.run()
    assert made.asked[busy + 1][1] == 32


def test_a_holder_that_falls_silent_is_replaced() -> None:
    made = world(8, near=0, far=2000)
    assert made.run(60)
    assert {holder for holder, _, _ in made.asked} == {NEAR, FAR}


@pytest.mark.parametrize("pieces", [1, 3, 40])
def test_a_drip_is_overtaken(pieces: int) -> None:
    made = world(pieces, near=8, far=2000)
    assert made.run(60)
    assert made.received < 1.5 * pieces * PIECE + 4 * PIECE


@pytest.mark.parametrize("holders", [1, 2])
def test_where_everybody_drips_each_is_given_up_in_the_time_of_two_stalls(holders: int) -> None:
    made = world(30, near=8, far=12) if holders == 2 else world(30, near=8)
    assert not made.run(holders * schedules.STRIKES * (schedules.STALL_SECONDS + 2))


@pytest.mark.parametrize("every", [1.0, 8.0])
def test_what_comes_now_and_then_is_no_reason_to_go_on(every: float) -> None:
    pieces = Pieces(30 * MIB, MIB)
    schedule = Schedule(pieces, [NEAR], distance=lambda _: 0.01)
    made = Bursts(schedule, pieces, {}, every=every, burst=int(every * schedules.STALL_RATE / 32))
    assert not made.run(120)


def test_a_byte_before_each_failure_is_no_reason_to_go_on() -> None:
    made = world(30, near=8)
    made.fails = lambda flow: Trouble.UNREACHABLE if flow.position > flow.start else None
    assert not made.run(2 * schedules.PATIENCE_SECONDS)


def test_a_drip_after_much_is_cut_as_soon_as_one_from_the_beginning() -> None:
    made = world(900, near=4000)
    for _ in range(20):
        made.step()
    assert not made.cut
    made.rates[NEAR] = 8
    began = made.now
    while not made.cut:
        made.step()
    assert made.now - began <= schedules.STALL_SECONDS + 2 * STEP
    assert not made.run(30)


@pytest.mark.parametrize("turn", [0, LINK // 2, LINK])
def test_our_own_queue_on_a_narrow_link_is_no_sign_of_anything(turn: int) -> None:
    """A megabit a second for 16 flows: at once for all of them, or each in turn for so many bytes."""
    pieces = Pieces(400 * MIB, 4 * MIB)
    schedule = Schedule(pieces, [NEAR], distance=lambda _: 0.01)
    made = Narrow(schedule, pieces, {}, turn=turn)
    end = made.now + 300
    while made.now < end:
        made.step()
    assert len(made.schedule.flows) >= schedules.MOST_FLOWS
    assert not made.cut
    assert made.received == pytest.approx(300 * LINK, rel=0.05)


def test_what_waits_behind_long_pieces_is_asked_for_once() -> None:
    pieces = Pieces(6 * MIB + 77, MIB)
    made = Behind(Schedule(pieces, [NEAR], distance=lambda _: 0.01), pieces, {NEAR: 100_000})
    assert made.run()
    assert [piece for _, piece, _ in made.asked] == [*range(7)]
    assert made.received == 6 * MIB + 77


def test_while_nothing_comes_at_all_one_piece_is_asked_for_twice_and_no_more() -> None:
    made = world(7, near=0)
    for _ in range(16):
        made.step()
    assert [piece for _, piece, _ in made.asked] == [*range(7), 0]
    made.rates[NEAR] = 500
    assert made.run()
    assert made.received <= 8 * PIECE


def test_one_drip_of_several_holders_does_not_slow_the_rest() -> None:
    made = world(64, {NEAR: 0.01, FAR: 0.1, StoreId("third"): 0.2}, near=1, far=1000, third=1000)
    assert made.run(120)


def test_a_second_flow_begins_where_the_first_has_come() -> None:
    made = world(1, near=400, far=400)
    made.step()
    made.rates[NEAR] = 0
    assert made.run(60)
    assert made.asked == [(NEAR, 0, 0), (FAR, 0, 100)]
    assert made.received == PIECE


def test_a_holder_that_breaks_off_is_asked_again_as_long_as_something_comes() -> None:
    made = world(3, near=2000)
    broken: set[int] = set()

    def once(flow: Flow) -> Trouble | None:
        if flow.position > flow.start and flow.piece not in broken:
            broken.add(flow.piece)
            return Trouble.UNREACHABLE
        return None

    made.fails = once
    assert made.run()
    assert made.received == 3 * PIECE


@pytest.mark.parametrize("trouble", [Trouble.UNREACHABLE, Trouble.WRONG, Trouble.NOT_HELD])
def test_without_anybody_who_gives_it_ends_soon(trouble: Trouble) -> None:
    made = world(30, near=1, far=1)
    made.fails = lambda flow: trouble
    assert not made.run(5)
    assert made.schedule.lost == (trouble is Trouble.NOT_HELD)
    assert len(made.asked) <= 40


def test_a_holder_that_never_answers_ends_in_bounded_time() -> None:
    made = world(30, near=0)
    assert not made.run(20)
    assert made.schedule.hopeless(made.now)


def test_a_short_outage_of_the_only_holder_is_survived_and_a_long_one_is_not() -> None:
    for seconds, expected in ((8.0, True), (30.0, False)):
        made = world(30, near=500)

        def fails(flow: Flow, made: World = made, end: float = 103 + seconds) -> Trouble | None:
            return Trouble.UNREACHABLE if 103 < made.now < end else None

        made.fails = fails
        assert made.run() is expected


def test_who_answers_something_else_is_not_asked_again() -> None:
    made = world(20, near=1000, far=1000)
    made.fails = lambda flow: Trouble.WRONG if flow.holder == NEAR else None
    assert made.run()
    assert sum(holder == NEAR for holder, _, _ in made.asked) <= schedules.MOST_FLOWS


def test_who_has_lied_is_not_asked_again_and_its_flows_are_cut() -> None:
    made = world(20, near=100, far=100)
    made.step()
    made.schedule.expose(NEAR)
    assert {flow.holder for flow in made.schedule.overdue(made.now)} == {NEAR}
    asked = len(made.asked)
    for flow in made.schedule.overdue(made.now):
        made.schedule.ended(flow, Trouble.WRONG, made.now)
    assert not made.schedule.deceived
    assert made.run()
    assert {holder for holder, _, _ in made.asked[asked:]} == {FAR}
    made.schedule.expose(FAR)
    assert made.schedule.deceived


def test_a_piece_in_doubt_has_one_flow_at_a_time() -> None:
    made = world(1, near=0, far=100)
    made.schedule.doubted.add(0)
    assert made.run(20)  # a silent one makes room for another
    assert [holder for holder, _, _ in made.asked] == [NEAR, FAR]
    assert made.most == 1


def test_what_is_dropped_is_of_no_use_to_any_flow() -> None:
    made = world(2, near=100)
    made.step()
    made.schedule.drop(0)
    assert [flow.piece for flow in made.schedule.overdue(made.now)] == [0]


def test_one_holder_alone_where_nothing_is_proven_before_the_end() -> None:
    made = world(60, spread=False, near=500, far=500)
    assert made.run()
    assert {holder for holder, _, _ in made.asked} == {NEAR}


def test_one_holder_alone_gives_all_however_slow_it_is() -> None:
    made = world(8, spread=False, near=100, far=5000)
    made.run()
    assert {holder for holder, _, _ in made.asked} == {NEAR}


def test_a_flow_that_has_brought_its_piece_is_not_overtaken() -> None:
    made = world(1, near=500, far=500)
    flow = made.schedule.next((), made.now)
    assert flow
    made.schedule.brought(flow, PIECE, made.now)
    made.pieces.add(0, PIECE)
    assert made.schedule.overdue(made.now) == []


def test_nobody_to_ask_is_hopeless_and_nothing_to_ask_for_is_not_asked() -> None:
    assert Schedule(Pieces(5, 5), [], distance=lambda _: 1.0).hopeless(0.0)
    assert Schedule(Pieces(0, 5), [NEAR], distance=lambda _: 1.0).next([], 0.0) is None


def test_there_are_as_many_flows_as_may_be_from_the_start() -> None:
    made = world(400, near=1000)
    made.step()
    assert len(made.schedule.flows) == schedules.MOST_FLOWS


@pytest.mark.parametrize(("lame", "helped"), [(400, True), (700, False)])
def test_a_lame_flow_is_helped_once_others_have_nothing_to_do(lame: int, helped: bool) -> None:
    size = 3200
    pieces = Pieces(20 * size, size)
    made = Uneven(Schedule(pieces, [NEAR], distance=lambda _: 0.1), pieces, {NEAR: 1000}, lame=lame)
    assert made.run()
    assert [piece for _, piece, _ in made.asked].count(0) == 1 + helped
    assert made.received < 20.5 * size


def test_the_bound_on_flows_is_kept() -> None:
    made = world(50, near=100)
    made.schedule.most_flows = 1
    made.needs = [0, 30 * PIECE]
    made.step()
    assert len(made.schedule.flows) == 1


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.integers(1, 30),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), st.sampled_from([0, 3, 400, 5000]), min_size=1),
    st.randoms(use_true_random=False),
    st.floats(0, 0.3),
)
def test_whatever_holders_do_it_ends_and_nothing_comes_wrong(
    count: int, rates: dict[str, float], chance: random.Random, share: float
) -> None:
    """With one holder that is good, whatever the others do, all comes, and not much more than once."""
    troubles = [Trouble.UNREACHABLE, Trouble.WRONG, Trouble.NOT_HELD]
    rates = {**rates, "good": 3000}
    distances = {StoreId(name): chance.random() for name in rates}
    made = world(count, distances, spread=True, **rates)

    def fails(flow: Flow) -> Trouble | None:
        if flow.holder != "good" and chance.random() < share:
            return chance.choice(troubles)
        return None

    made.fails = fails
    assert made.run()
    assert made.most <= schedules.MOST_FLOWS + schedules.URGENT_FLOWS
    assert made.received <= 3 * count * PIECE + 20 * PIECE


def test_a_holder_that_becomes_known_is_asked_too_and_changes_nothing_for_the_others() -> None:
    made = world(40, near=0)
    assert not made.run(60)
    made = world(40, near=0)
    made.step()
    made.rates[FAR] = 2000
    made.schedule.admit([FAR, NEAR])
    assert made.run(60)
    made.schedule.admit([FAR])
    assert not made.schedule.lost


def test_a_blob_is_not_lost_while_a_holder_that_was_added_may_have_it() -> None:
    schedule = Schedule(Pieces(5, 5), [NEAR], distance=lambda _: 1.0)
    flow = schedule.next([0], 0.0)
    assert flow
    schedule.ended(flow, schedules.Trouble.NOT_HELD, 0.0)
    assert schedule.lost
    assert schedule.hopeless(0.0)
    schedule.admit([NEAR])  # what it has said of this transfer stands
    assert schedule.lost
    schedule.admit([FAR])
    assert not schedule.lost
    assert not schedule.hopeless(0.0)
