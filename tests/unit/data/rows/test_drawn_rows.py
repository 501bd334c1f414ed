"""Drawn rows: what is learnt is what a few lines here say, or the error names what could not be followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_lora_plugin.data.reading import RowFormat, parse_row
from vlm_lora_plugin.data.rows.rules import RowRules
from vlm_lora_plugin.errors import DataError

HARMLESS = ("id", "source", "dataset", "_note", "dropped")
UNKNOWN = (
    "tools",
    "videos",
    "score",
    "rejected_response",
    "tool_calls",
    "reasoning_content",
    "name",
    "images",
    "image",
    "weights",
)
YES = {"loss": True, "train": True, "weight": 1, "loss_weight": 1.0}
NO = {"loss": False, "train": False, "weight": 0, "loss_weight": 0.0}
ODD = {"loss": 1, "train": "yes", "weight": 0.5, "loss_weight": True}
ROLES = ("tool", "function_call", "observation", "robot")
FORMS = {"monkey": ("from", "value"), "omnilmm": ("role", "content"), "xcomposer": ("from", "value")}


class Drawn(NamedTuple):
    """A row, and what must come of it.

    Attributes:
        row: The row.
        fault: What the error must name; None for a good row.
        answers: The answers that are learnt.
        ends: Whether the row's last message is one of them.
        passed: The keys that are passed over.
    """

    row: dict[str, Any]
    fault: str | None
    answers: list[str]
    ends: bool
    passed: set[str]


@st.composite
def rows(draw: st.DrawFn, form: tuple[str, str], name: str, loss_on: str) -> Drawn:
    """Draw one to three rounds with marks and keys of all kinds, and at most one fault."""
    speaker, text = form
    turns, answers = [], []
    for number in range(draw(st.integers(1, 3))):
        turns.append({speaker: "user", text: f"q{number}"})
        marks = {}
        said = draw(st.sampled_from((None, True, False)))
        if said is not None:
            key = draw(st.sampled_from(sorted(YES)))
            marks[key] = (YES if said else NO)[key]
        turns.append({speaker: "assistant", text: f"a{number}", **marks})
        answers.append((f"a{number}", said))
    row: dict[str, Any] = {name: turns}
    passed = set()
    for key in draw(st.sets(st.sampled_from(HARMLESS), max_size=2)):
        holder, level = draw(st.sampled_from(((row, ""), (turns[0], f"{name}."), (turns[-1], f"{name}."))))
        holder[key] = draw(st.sampled_from(("x", 3, {"a": 1}, ["b"])))
        passed.add(level + key)
    if draw(st.booleans()):
        row[draw(st.sampled_from(UNKNOWN))] = draw(st.sampled_from((None, "", [])))  # says nothing
    fault = draw(st.sampled_from((None, None, "row key", "turn key", "odd mark", "user mark", "role", "two marks")))
    named = None
    if fault == "row key":
        named = draw(st.sampled_from([key for key in UNKNOWN if key not in ("images", "image")]))
        row[named] = draw(st.sampled_from(("x", 1, False, ["y"], {"z": 0})))
    elif fault == "turn key":
        named = draw(st.sampled_from(UNKNOWN))
        draw(st.sampled_from(turns))[named] = "x"
    elif fault == "odd mark":
        named = draw(st.sampled_from(sorted(ODD)))
        draw(st.sampled_from(turns))[named] = ODD[named]
    elif fault == "user mark":
        named = draw(st.sampled_from(sorted(YES)))
        turns[0][named] = YES[named]
    elif fault == "role":
        named = draw(st.sampled_from(ROLES))
        draw(st.sampled_from(turns))[speaker] = named
    elif fault == "two marks":
        named = "contradict"
        turns[-1] |= {key: value for key, value in turns[-1].items() if key not in YES} | {"loss": True, "weight": 0}
        for key in ("train", "loss_weight"):
            turns[-1].pop(key, None)
    default = {number: loss_on == "all" or number == len(answers) - 1 for number in range(len(answers))}
    learnt = [said if said is not None else default[number] for number, (_, said) in enumerate(answers)]
    if named is None and not any(learnt):
        named = "no answer"
    kept = [answer for (answer, _), wanted in zip(answers, learnt, strict=True) if wanted]
    return Drawn(row, named, kept, learnt[-1], passed)


@pytest.mark.parametrize("loss_on", ["all", "last"])
@pytest.mark.parametrize("own", [False, True], ids=["messages", "own form"])
@pytest.mark.parametrize("name", FORMS)
def test_what_is_learnt_is_what_the_row_says_or_the_error_names_what_it_could_not_follow(name, own, loss_on, kinds):
    kind = kinds[name]
    keys = FORMS[name] if own else ("role", "content")
    form = RowFormat.of(kind.family, RowRules(loss_on=loss_on, ignore_keys=("dropped",)))

    @settings(max_examples=60)
    @given(rows(keys, "conversations" if own else "messages", loss_on))
    def check(drawn: Drawn) -> None:
        if drawn.fault is not None:
            with pytest.raises(DataError) as caught:
                kind.processor.encode(parse_row(drawn.row, Path(), "data.jsonl:7", form))
            assert "data.jsonl:7" in caught.value.what
            assert drawn.fault in str(caught.value)
            assert caught.value.fix
            return
        example = parse_row(drawn.row, Path(), "data.jsonl:7", form)
        assert kind.read(kind.processor.encode(example)) == kind.learnt(drawn.answers, ends=drawn.ends)
        assert set(example.passed_over) == drawn.passed

    check()


@st.composite
def speakers(draw: st.DrawFn) -> list[str]:
    """Draw who speaks in what order, at least one of them the assistant."""
    spoken = draw(st.lists(st.sampled_from(("user", "assistant")), min_size=1, max_size=5))
    first = draw(st.sampled_from(([], ["system"])))
    return [*first, *spoken, *([] if "assistant" in spoken else ["assistant"])]


@settings(max_examples=100)
@given(speakers())
def test_roles_decide_in_upstreams_form_in_whatever_order_they_speak(kinds, spoken):
    kind = kinds["xcomposer"]
    turns = [{"from": who, "value": f"{who[0]}{number}"} for number, who in enumerate(spoken)]
    example = parse_row({"conversations": turns}, Path(), "row", RowFormat.of(kind.family))
    row = kind.processor.encode(example)
    answers = [turn["value"] for turn in turns if turn["from"] == "assistant"]
    assert kind.read(row) == kind.learnt(answers, ends=spoken[-1] == "assistant")
    whole = "<s>" + "".join(f"[UNUSED_TOKEN_146]{t['from']}\n{t['value']}[UNUSED_TOKEN_145]\n" for t in turns) + "</s>"
    assert kind.processor.tokenizer.decode(row["input_ids"]) == whole


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.text("ab <\n", max_size=6), st.text("cd\n ", min_size=1, max_size=6)), min_size=1, max_size=3)
)
def test_where_questions_and_answers_alternate_roles_learn_what_upstreams_mask_learns(kinds, rounds):
    kind = kinds["xcomposer"]
    turns = [
        {"from": who, "value": text} for pair in rounds for who, text in zip(("user", "assistant"), pair, strict=True)
    ]
    roles, upstream = (
        kind.processor.encode(
            parse_row(
                {"conversations": turns}, Path(), "row", RowFormat.of(kind.family, RowRules(upstream_labels=mask))
            )
        )
        for mask in (False, True)
    )
    assert roles["input_ids"].tolist() == upstream["input_ids"].tolist()
    assert roles["labels"].tolist() == upstream["labels"].tolist()
