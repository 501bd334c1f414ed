"""Who is waited for, judged from what ranks say of themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vlm_lora_plugin.parallel.waiting import Beat, who_is_missing

PATIENCE = 40.0


def beat(place, *, seconds=60.0, communicates=False, ended=False, doing="step 2, forward pass"):
    return Beat(1, "node", 7, place, doing, seconds, "f (a/b.py:1)", communicates, ended)


def judged(beats, silent=None):
    return who_is_missing(beats, {rank: (silent or {}).get(rank, 0.0) for rank in beats}, PATIENCE)


def test_a_silent_rank_is_missing_wherever_it_was():
    found = judged({0: beat(5, communicates=True), 1: beat(4)}, {1: 43.0})
    assert found.ranks == (1,)
    assert "Rank 1 (process 7 on node) has not been heard of for 43 s" in found.text
    assert "Rank 0 waits in step 2, forward pass, at f (a/b.py:1)." in found.text


def test_a_rank_that_is_behind_is_waited_for():
    found = judged({0: beat(5), 1: beat(4), 2: beat(5)})
    assert found.ranks == (1,)
    assert "Ranks 0, 2 (2 in all) wait" in found.text


def test_among_ranks_equally_far_those_that_do_not_communicate_are_waited_for():
    assert judged({0: beat(5, communicates=True), 1: beat(5)}).ranks == (1,)


def test_ranks_that_all_communicate_wait_for_each_other():
    found = judged({0: beat(5, communicates=True), 1: beat(5, communicates=True)})
    assert found.ranks == ()
    assert found.text.startswith("All ranks wait for each other")


def test_ranks_that_all_work_are_left_alone():
    assert judged({0: beat(5), 1: beat(5)}) is None


def test_a_rank_that_is_done_is_not_missed():
    assert judged({0: beat(5), 1: beat(4, ended=True)}, {1: 400.0}) is None


ranks = st.dictionaries(
    st.integers(0, 7),
    st.builds(
        beat, st.integers(0, 3), seconds=st.floats(0, 100), communicates=st.booleans(), ended=st.booleans()
    ),
    min_size=1,
)  # fmt: skip


@given(ranks, st.dictionaries(st.integers(0, 7), st.floats(0, 100)))
def test_nobody_is_named_without_reason(beats, silent):
    silent = {rank: silent.get(rank, 0.0) for rank in beats}
    found = who_is_missing(beats, silent, PATIENCE)
    lost = {rank for rank in beats if silent[rank] >= PATIENCE and not beats[rank].ended}
    named = set() if found is None else set(found.ranks)
    working = [beat for beat in beats.values() if not beat.ended]
    waits = all(beat.seconds >= PATIENCE for beat in working) and any(
        beat.communicates or beat.place > min(b.place for b in working) for beat in working
    )
    assert named == lost or (not lost and waits and not any(beats[rank].communicates for rank in named))
