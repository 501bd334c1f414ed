"""What others wrote is shown, and never acts."""

from __future__ import annotations

import io
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_lora_plugin.errors import DataError
from vlm_lora_plugin.outside.display import never_crash, safe, shortened, shown

ACTING = [
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\x9b2J",
    "\r",
    "\x08",
    "\u202e",
    "\u2066",
    "\u200f",
    "\ud83d",
    "\u2028",
    "\x7f",
]


@pytest.mark.parametrize("text", ACTING)
def test_what_acts_on_a_terminal_is_spelled_out(text):
    for said in (safe(f"a{text}b"), shown(f"a{text}b"), str(DataError(f"a{text}b", why=text, fix=text))):
        assert text[0] not in said
        assert text[0].encode("unicode_escape").decode() in said


def test_text_stays_as_it_is():
    for text in ("café 猫 😀\n\tb", "नमस्ते", "שלום", "👨\u200d👩\u200d👧"):
        assert safe(text) == text


def test_a_value_is_on_one_line_and_not_too_long():
    assert shown("a\n\tb") == "a\\n\\tb"
    assert shown("x" * 5000).endswith(" (5,000 characters)")
    assert len(shown("x" * 5000)) < 350
    assert shortened("short", 5) == "short"


def test_a_message_with_a_word_without_end_is_short():
    assert len(str(DataError("there is no image " + "A" * 12_000))) < 500


def test_an_error_is_the_same_in_another_process():
    error = pickle.loads(pickle.dumps(DataError("a\x1b[31m", fix="b")))
    assert str(error) == "a\\x1b[31m\nb"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # a POSIX locale has the latter
def test_a_stream_without_the_character_shows_it_escaped(errors):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors=errors)
    never_crash(stream)
    stream.write("图.png")
    stream.flush()
    assert stream.buffer.getvalue() == b"\\u56fe.png"


@given(st.text(st.characters(), max_size=40))
def test_nothing_that_acts_is_left(text):
    assert re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", safe(text)) is None
    assert safe(safe(text)) == safe(text)
    assert shown(text).isprintable() or not text.isprintable()
    assert "\n" not in shown(text)
