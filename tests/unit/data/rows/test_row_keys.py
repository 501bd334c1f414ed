"""What single keys of a row do, in each form and family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm_lora_plugin.answering.evaluation import exact_match
from vlm_lora_plugin.contract.example import Example, Message
from vlm_lora_plugin.data.files import read_examples
from vlm_lora_plugin.data.reading import RowFormat, parse_row
from vlm_lora_plugin.data.rows.own_form import parse_own
from vlm_lora_plugin.data.rows.rules import EVERYTHING, RowRules
from vlm_lora_plugin.data.survey import survey
from vlm_lora_plugin.errors import AdapterError, DataError, RecipeError
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.recipe import DataSettings, Recipe

OWN = {"conversations": [{"from": "user", "value": "What?"}, {"from": "assistant", "value": "A cat."}]}


def turns(*texts, system=None):
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, *({"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts))]


@pytest.fixture
def read(kinds):
    def read(row, family="monkey", folder=Path("d"), **rules):
        return parse_row(row, folder, "data.jsonl:3", RowFormat.of(kinds[family].family, RowRules(**rules)))

    return read


@pytest.mark.parametrize("family", ["monkey", "omnilmm", "xcomposer"])
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_rows_system_is_its_system_message(family, key, read, kinds):
    encode = kinds[family].processor.encode
    by_key = encode(read({"messages": turns("q", "a"), key: "In rhyme."}, family))
    by_message = encode(read({"messages": turns("q", "a", system="In rhyme.")}, family))
    without = encode(read({"messages": turns("q", "a")}, family))
    assert by_key["input_ids"].tolist() == by_message["input_ids"].tolist() != without["input_ids"].tolist()


@pytest.mark.parametrize("empty", [None, ""])
def test_an_empty_system_is_none(empty, read):
    assert read({"messages": turns("q", "a"), "system": empty}) == read({"messages": turns("q", "a")})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": turns("q", "a", system="One."), "system": "Two."}, "they differ"),
        (
            {"messages": turns("q", "a"), "system": "One.", "system_prompt": "Two."},
            "`system`, `system_prompt`.* differ",
        ),
        ({"messages": turns("q", "a"), "system": ["One."]}, "`system` must be text, not list"),
    ],
)
def test_systems_that_contradict_each_other_are_an_error(row, words, read):
    with pytest.raises(DataError, match=words):
        read(row)


def test_the_same_system_twice_is_one(read):
    (first, *rest) = read({"messages": turns("q", "a", system="One."), "system": "One."}).messages
    assert (first, len(rest)) == (Message("system", "One."), 2)


def test_system_beside_conversations_stands_where_the_familys_prompt_has_a_place(read, kinds):
    for family, text in (("omnilmm", "<|system|>\nSYS</s>"), ("xcomposer", "[UNUSED_TOKEN_146]system\nSYS[UNUSED")):
        row = kinds[family].processor.encode(read({"system": "SYS", **OWN}, family))
        assert text in kinds[family].processor.tokenizer.decode(row["input_ids"])
    with pytest.raises(DataError, match="cannot be put into a row of Monkey's own form"):
        kinds["monkey"].processor.encode(read({"system": "SYS", **OWN}))


def test_images_beside_conversations_are_read_where_their_place_is_plain(read):
    assert read({"image": "0.png", **OWN}, "omnilmm").images == (Path("d/0.png"),)
    assert read({"images": ["0.png"], **OWN}, "omnilmm").messages[0].content == "<image>\nWhat?"
    assert read({"images": ["0.png"], **OWN}, "xcomposer").images == (Path("d/0.png"),)
    with pytest.raises(DataError, match="must be one path"):
        read({"images": ["0.png", "1.png"], **OWN}, "omnilmm")
    for key in ("image", "images"):
        with pytest.raises(DataError, match=f"`{key}` is not supported") as caught:
            read({key: "0.png", **OWN})
        assert "`messages` and `images`" in caught.value.fix


def test_an_own_parser_that_does_not_look_at_a_key_cannot_drop_it(read):
    def careless(record, folder, origin):
        return Example(tuple(Message(turn["role"], turn["text"]) for turn in record["talk"]))

    def thorough(record, folder, origin):
        copy = dict(record)
        return Example(tuple(Message(**turn) for turn in copy["talk"]))

    talk = [{"role": "user", "text": "q", "mood": "calm", "id": 1}]
    with pytest.raises(DataError, match="row 1: `score` is not supported"):
        parse_own({"talk": [{"role": "user", "text": "q"}], "score": 3}, Path(), "row 1", careless, EVERYTHING)
    with pytest.raises(DataError, match="row 1: `talk` 1: `mood` is not supported"):
        parse_own({"talk": talk, "id": 1}, Path(), "row 1", careless, EVERYTHING)
    ignoring = parse_own({"talk": talk, "id": 1}, Path(), "row 1", careless, RowRules(ignore_keys=("mood",)))
    assert ignoring is not None
    row = {"talk": [{"role": "user", "content": "q"}], "score": 3}
    assert parse_own(row, Path(), "row 1", thorough, EVERYTHING) is not None


def test_a_nested_value_is_refused_or_passed_over_whole(read):
    deep: list[object] = []
    for _ in range(50):
        deep = [deep]
    with pytest.raises(DataError, match="`x` is not supported"):
        read({**OWN, "x": [{"y": deep}]})
    assert read({**OWN, "_x": deep}).passed_over == ("_x",)


@pytest.mark.parametrize("role", ["tool", "function_call", "observation"])
def test_tools_have_no_place(role, read):
    with pytest.raises(DataError, match=f"unknown role '{role}'") as caught:
        read({"messages": [*turns("q", "a"), {"role": role, "content": "{}"}]})
    assert "no prompt of these families has a place for tools" in caught.value.fix.lower()
    for family in ("monkey", "omnilmm", "xcomposer"):
        keys = ("role", "content") if family == "omnilmm" else ("from", "value")
        with pytest.raises(DataError, match=role):
            read({"conversations": [dict(zip(keys, (role, "{}"), strict=True))]}, family)


def test_rows_of_ms_swift_with_query_and_response_are_messages(read):
    row = {
        "query": "<image>And this?",
        "response": "B.",
        "history": [["Hello", "Hi."]],
        "system": "Brief.",
        "images": ["0.png"],
    }
    messages = turns("Hello", "Hi.", "<image>And this?", "B.")
    assert read(row) == read({"messages": messages, "system": "Brief.", "images": ["0.png"]})
    assert [message.learnt for message in read(row, loss_on="last").messages] == [None, None, False, None, None]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"response": ["a", "b"]}, "the response of the row must be text, not list"),
        ({"response": None}, "the response of the row must be text, not NoneType"),
        ({"query": 3}, "the query of the row must be text, not int"),
        ({"history": "[['q', 'a']]"}, "`history` must be a list of pairs"),
        ({"history": [["q"]]}, "`history` must be a list of pairs"),
        ({"history": [["q", None]]}, "the response of pair 1 of `history` must be text"),
        ({"label": 1}, "`label` is not supported"),
        ({"rejected_response": "b"}, "`rejected_response` is not supported"),
    ],
)
def test_a_query_row_that_is_not_plain_is_refused(change, words, read):
    with pytest.raises(DataError, match=words):
        read({"query": "q", "response": "a", **change})


@pytest.mark.parametrize("other", ["conversations", "query"])
def test_a_row_of_two_forms_is_refused(other, read):
    with pytest.raises(DataError, match=f"`{other}` is not supported") as caught:
        read({"messages": turns("q", "a"), other: [1]})
    assert caught.value.fix.startswith("A row has one form")


def test_a_mark_beats_loss_on(read):
    row = {"messages": turns("q", "a", "r", "b")}
    row["messages"][1]["loss"] = True
    assert [m.supervised for m in read(row, loss_on="last").messages] == [False, True, False, True]
    row["messages"][3]["weight"] = 0
    assert [m.supervised for m in read(row, loss_on="last").messages] == [False, True, False, False]


def test_the_error_says_how_to_pass_a_key_over(read):
    with pytest.raises(DataError) as caught:
        read({"messages": turns("q", "a"), "score": 3})
    assert "data.ignore_keys: [score]" in caught.value.fix
    assert read({"messages": turns("q", "a"), "score": 3}, ignore_keys=("score",)).passed_over == ("score",)


def test_upstreams_labels_are_asked_for_by_name(read, kinds):
    question = "Which is the colour of the bus?"
    said = [{"from": "gpt", "value": "Hello"}, {"from": "human", "value": question}, {"from": "gpt", "value": "White"}]
    row, kind = {"conversations": said}, kinds["xcomposer"]
    assert kind.read(kind.processor.encode(read(row, "xcomposer"))) == kind.learnt(["Hello", "White"], ends=True)
    upstream = kind.processor.encode(read(row, "xcomposer", upstream_labels=True))
    assert "colour of the bus?" in kind.read(upstream)
    for extra in ({"system": "s"}, {"conversations": [*said[:2], {**said[2], "weight": 1}]}):
        with pytest.raises(DataError, match=r"data\.upstream_labels is true"):
            read({**row, **extra}, "xcomposer", upstream_labels=True)


def test_a_system_turn_in_upstreams_form_keeps_the_question_unlearnt(read, kinds):
    kind = kinds["xcomposer"]
    said = [{"from": "system", "value": "S"}, {"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}]
    assert kind.read(kind.processor.encode(read({"conversations": said}, "xcomposer"))) == kind.learnt(["A"], ends=True)
    with pytest.raises(DataError, match="turn 3 is the system's, not the first"):
        kind.processor.encode(read({"conversations": [*said[1:], said[0]]}, "xcomposer"))


def test_in_recipes_what_cannot_be_is_refused(kinds):
    with pytest.raises(RecipeError, match="upstream_labels"):
        Recipe.parse({"data": {"upstream_labels": True, "loss_on": "last"}})
    with pytest.raises(RecipeError, match="`messages` holds the conversation itself"):
        Recipe.parse({"data": {"ignore_keys": ["id", "messages"]}})
    with pytest.raises(RecipeError, match="no effect on Monkey"):
        resolve_recipe({"data": {"upstream_labels": True}}, kinds["monkey"].family)
    assert resolve_recipe({"data": {"upstream_labels": True}}, kinds["omnilmm"].family).data.upstream_labels


def test_a_row_that_ends_with_the_user_is_not_scored_against_the_user(read):
    row = read({"messages": turns("Which digit?", "7", "Thanks")}, "omnilmm")
    with pytest.raises(DataError, match=r"data\.jsonl:3: the last message is the user's, .* no answer to score"):
        exact_match(["Thanks"], [row])
    marked = turns("q", "a", "r", "b")
    marked[3]["weight"] = 0
    with pytest.raises(DataError, match="marked as not to be learnt"):
        exact_match(["b"], [read({"messages": marked})])


def test_a_processor_that_does_not_know_marks_is_found_out(kinds, read):
    class Forgetful:
        tokenizer = None

        def count_tokens(self, example):
            return 9, sum(message.role == "assistant" for message in example.messages)

    row = {"messages": turns("q", "a", "r", "b")}
    with pytest.raises(AdapterError, match="Forgetful learns from it"):
        list(survey([read(row, loss_on="last")], Forgetful(), DataSettings()))
    assert [fact.supervised for fact in survey([read(row)], Forgetful(), DataSettings())] == [2]


def test_an_image_that_is_an_object_has_no_other_keys(read):
    row = {"messages": turns("<image>q", "a"), "images": [{"path": "0.png", "crop": [0, 0, 5, 5], "id": 4}]}
    with pytest.raises(DataError, match=r"data\.jsonl:3: image 1: `crop` is not supported"):
        read(row)
    assert read(row, ignore_keys=("crop",)).passed_over == ("images.crop", "images.id")


def test_the_whole_file_is_read_by_the_recipes_rules(kinds, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": turns("q", "a", "r", "b"), "id": 1, "score": 2}))
    (row,) = read_examples(path, kinds["monkey"].family, rules=RowRules("last", ignore_keys=("score",)))
    assert [message.supervised for message in row.messages] == [False, False, False, True]
    assert sorted(row.passed_over) == ["id", "score"]
