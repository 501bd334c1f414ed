"""The rows that cost most, from lengths and headers alone."""

from vlm_lora_plugin.data.survey import RowFacts
from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.memory.rows import costly_batches


def row(tokens, supervised=1, sizes=()):
    return RowFacts("data.jsonl:1", tokens, supervised, False, tuple(sizes))


def test_the_longest_the_one_with_most_pixels_and_the_one_with_most_labels_are_tried():
    rows = [row(10), row(500), row(100, sizes=[(64, 64)]), row(90, sizes=[(640, 640)]), row(200, supervised=150)]
    found = {batch.reason: batch.indices for batch in costly_batches(rows, 1)}
    assert found == {
        "the most tokens": (1,),
        "the largest images": (3,),
        "the most tokens with a label": (4,),
    }


def test_a_row_that_is_first_in_all_is_tried_once():
    assert len(costly_batches([row(10), row(99, 50, [(9, 9)])], 1)) == 1


def test_a_batch_has_the_costliest_rows_and_their_sums():
    rows = [row(10, 3), row(30, 4, [(8, 8)]), row(20, 5)]
    longest = costly_batches(rows, 2)[0]
    assert longest.indices == (1, 2)
    assert (longest.tokens, longest.images, longest.supervised) == (30, 1, 9)


def test_rows_that_cannot_be_used_are_left_out():
    rows = [DataError("broken"), row(10)]
    assert [batch.indices for batch in costly_batches(rows, 4)] == [(1,)]
    assert costly_batches([DataError("broken")], 1) == []
