"""Processors of transformers, made here in small, behind the processor that any family may use."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
)
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from vlm_lora_plugin.contract import Example, LoadRequest, MeasuringProcessor, Message
from vlm_lora_plugin.data.encoding import ChatTemplateProcessor
from vlm_lora_plugin.errors import DataError, ModelError, RecipeError

PARTS = "{%- for part in message['content'] %}{{- IMAGE if part['type'] == 'image' else part['text'] }}{%- endfor %}"
CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['role'] == 'assistant' %}{%- generation %}" + PARTS + "{{- '<|im_end|>' }}{%- endgeneration %}"
    "{%- else %}" + PARTS + "{{- '<|im_end|>' }}{%- endif %}{{- '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
VICUNA = (
    "{%- for message in messages %}{{- message['role'].upper() + ': ' }}" + PARTS + "{{- ' ' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"
)


def template(text, image):
    return text.replace("IMAGE", repr(image))


def tokenizer(*special, **arguments):
    """Bytes are tokens, after the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=list(special), **arguments)


def qwen():
    special = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 16),
        tokenizer(*special, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        Qwen2VLVideoProcessor(),
        chat_template=template(CHATML, "<|vision_start|><|image_pad|><|vision_end|>"),
    )


def idefics():
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ("<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<global-img>", *rows)
    return Idefics3Processor(
        Idefics3ImageProcessor(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}),
        tokenizer(*special, eos_token="<|im_end|>", pad_token="<|endoftext|>"),
        image_seq_len=4,
        chat_template=template(CHATML, "<image>"),
    )


def llava():
    return LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer("<image>", bos_token="<s>", eos_token="</s>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(VICUNA, "<image>\n"),
    )


@pytest.fixture
def picture(tmp_path):
    def write(width, height):
        path = tmp_path / f"{width}x{height}.png"
        Image.linear_gradient("L").resize((width, height)).convert("RGB").save(path)
        return path

    return write


def row(*turns, images=(), origin="data.jsonl:4"):
    roles = ("user", "assistant") if len(turns) % 2 == 0 else ("system", "user", "assistant")
    messages = [Message(role, text) for role, text in zip(roles * len(turns), turns, strict=False)]
    return Example(tuple(messages), tuple(images), origin)


@pytest.fixture
def rows(picture):
    return [
        row("<image>What is this?", "A cat.", images=[picture(56, 28)]),
        row(
            *("Compare <image> and <image>", "The first.\nIt is bigger, 大.", "Sure?<image>", "Yes"),
            images=[picture(28, 84), picture(56, 56), picture(30, 30)],
        ),
        row("Hello", "Hi", "And?", ""),
    ]


PROCESSORS = {"qwen": (qwen, {}), "idefics": (idefics, {}), "llava": (llava, {"end_mark": "</s>"})}


@pytest.fixture(params=PROCESSORS)
def processor(request):
    make, arguments = PROCESSORS[request.param]
    return ChatTemplateProcessor(make(), **arguments)


def learnt(processor, encoded):
    """The texts of the runs of labels."""
    runs, run = [], []
    for label in [*encoded["labels"].tolist(), -100]:
        if label != -100:
            run.append(label)
        elif run:
            runs.append(processor.tokenizer.decode(run))
            run = []
    return runs


def test_exactly_the_answers_and_their_ends_are_learnt(processor, rows):
    assert isinstance(processor, MeasuringProcessor)
    end = "</s>" if processor.end_mark else "<|im_end|>"
    for example in rows:
        answers = [turn.content + end for turn in example.messages if turn.role == "assistant"]
        assert learnt(processor, processor.encode(example)) == answers


@pytest.mark.parametrize("make", [qwen, idefics])
def test_labels_equal_the_assistant_mask_of_transformers(make, rows):
    processor = ChatTemplateProcessor(make())
    for example in rows:
        images = iter(example.images)
        messages = []
        for turn in example.messages:
            texts = turn.content.split("<image>")
            parts = [{"type": "text", "text": texts[0]}]
            for text in texts[1:]:
                parts += [{"type": "image", "image": Image.open(next(images))}, {"type": "text", "text": text}]
            messages.append({"role": turn.role, "content": parts})
        expected = make().apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True
        )
        encoded = processor.encode(example)
        assert torch.equal(encoded["input_ids"], expected["input_ids"][0])
        assert torch.equal(encoded["labels"] != -100, torch.as_tensor(expected["assistant_masks"])[0].bool())
        for key in expected.keys() - {"input_ids", "attention_mask", "assistant_masks"}:
            assert torch.equal(encoded[key], expected[key].reshape(encoded[key].shape)), key


def test_a_prompt_is_what_stands_before_the_last_answer(processor, rows):
    for example in rows:
        whole, prompt = processor.encode(example), processor.encode_prompt(example)
        length = len(prompt["input_ids"])
        assert torch.equal(prompt["input_ids"], whole["input_ids"][:length])
        assert (whole["labels"][length + 1] != -100) or whole["labels"][length] != -100
        assert prompt.keys() == whole.keys() - {"labels"}


def test_rows_are_measured_without_their_images(processor, rows, monkeypatch):
    expected = []
    for example in rows:
        encoded = processor.encode(example)
        expected.append((len(encoded["input_ids"]), int((encoded["labels"] != -100).sum())))
    monkeypatch.setattr(ChatTemplateProcessor, "_images", None)
    assert [processor.count_tokens(example) for example in rows] == expected


def test_a_row_is_cut_behind_an_image_but_never_inside(processor, picture):
    example = row("<image>?", "a" * 30, images=[picture(56, 28)])
    whole = processor.encode(example)
    cut = processor.encode(example, max_length=len(whole["input_ids"]) - 9, truncation_strategy="right")
    for key, value in cut.items():
        of_tokens = whole[key].shape == whole["input_ids"].shape
        assert torch.equal(value, whole[key][:-9] if of_tokens else whole[key]), key
    inside = int((whole["input_ids"] == processor.processor.image_token_id).nonzero()[0]) + 1
    with pytest.raises(DataError, match=r"data\.jsonl:4: .* would cut an image"):
        processor.encode(example, max_length=inside, truncation_strategy="right")
    with pytest.raises(DataError, match=f"tokens are needed, max_length is {inside}"):
        processor.encode(example, max_length=inside)


def test_what_ends_an_answer_ends_a_generated_one(processor):
    assert processor.tokenizer.convert_ids_to_tokens(processor.stop_token_ids) == [processor.tokenizer.eos_token]


SIZES = {"hidden_size": 16, "intermediate_size": 16}
LANGUAGE = {**SIZES, "vocab_size": 320, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}


def qwen_model():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    vision = {**SIZES, "depth": 1, "num_heads": 2, "out_hidden_size": 16, "fullatt_block_indexes": [0]}
    ids = {"image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start"}
    config = Qwen2_5_VLConfig(
        text_config={**LANGUAGE, "rope_parameters": rope},
        vision_config=vision,
        **{key: qwen().tokenizer.convert_tokens_to_ids(f"<|{token}|>") for key, token in ids.items()},
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def idefics_model():
    vision = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
    config = Idefics3Config(
        text_config={**LANGUAGE, "model_type": "llama", "pad_token_id": 0},
        vision_config={**SIZES, **vision},
        scale_factor=2,
        image_token_id=idefics().tokenizer.convert_tokens_to_ids("<image>"),
    )
    return Idefics3ForConditionalGeneration(config)


@pytest.mark.parametrize(("make", "build"), [(qwen, qwen_model), (idefics, idefics_model)])
def test_a_batch_gives_the_model_what_its_rows_give_it_one_by_one(make, build, rows):
    torch.manual_seed(0)
    processor, model = ChatTemplateProcessor(make()), build().eval()
    encoded = [processor.encode(example) for example in rows]
    with torch.no_grad():
        together = model(**processor.collate(encoded)).logits
        for number, features in enumerate(encoded):
            alone = model(**processor.collate([features])).logits[0]
            torch.testing.assert_close(together[number, : len(alone)], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("make", "build"), [(qwen, qwen_model), (idefics, idefics_model)])
def test_prompts_of_different_lengths_are_answered_together_as_alone(make, build, rows):
    torch.manual_seed(0)
    processor, model = ChatTemplateProcessor(make()), build().eval()
    prompts = [processor.encode_prompt(example) for example in rows]
    batch = processor.collate(prompts)
    assert batch["attention_mask"][:, -1].all()
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together = model.generate(**batch, **options)[:, -4:]
    for number, features in enumerate(prompts):
        assert torch.equal(model.generate(**processor.collate([features]), **options)[0, -4:], together[number])


def test_options_reach_the_image_processor_and_are_attributes(tmp_path, picture):
    qwen().save_pretrained(tmp_path)
    small, large = (ChatTemplateProcessor.from_pretrained(tmp_path, {"max_pixels": 28 * 28 * n}) for n in (4, 64))
    example = row("<image>?", "a", images=[picture(300, 300)])
    assert small.max_pixels == 28 * 28 * 4
    assert len(small.encode(example)["pixel_values"]) < len(large.encode(example)["pixel_values"])


def test_it_is_saved_and_read_again(tmp_path, rows):
    ChatTemplateProcessor(qwen()).save_pretrained(tmp_path)
    again = ChatTemplateProcessor.from_pretrained(tmp_path)
    for example in rows:
        expected, found = ChatTemplateProcessor(qwen()).encode(example), again.encode(example)
        assert all(torch.equal(found[key], expected[key]) for key in found | expected)


def test_an_option_that_the_image_processor_does_not_have_is_named(tmp_path):
    qwen().save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match=r"data\.processor\.max_pixel: .* has no such setting\n.*max_pixels"):
        ChatTemplateProcessor.from_pretrained(tmp_path, {"max_pixel": 3})


def test_a_folder_without_a_processor_is_named(tmp_path):
    with pytest.raises(ModelError, match=f"The processor in {tmp_path} cannot be read"):
        ChatTemplateProcessor.from_pretrained(tmp_path)


def test_a_tokenizer_alone_is_refused():
    with pytest.raises(ModelError, match="is not a processor of images and text"):
        ChatTemplateProcessor(tokenizer())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: None, "has no chat template"),
        (lambda text: text.replace("{{- '<|im_end|>' }}", ""), "writes nothing behind an answer"),
        (lambda text: "{{ messages | length }}" + text, "writes a conversation differently"),
        (lambda text: text.replace("assistant\n", "assistant\nThinking"), "writes a conversation differently"),
    ],
    ids=["none", "no end", "changes", "other prompt"],
)
def test_a_template_that_does_not_tell_answers_from_the_rest_is_refused(change, words):
    made = qwen()
    made.chat_template = change(made.chat_template)
    with pytest.raises(ModelError, match=words):
        ChatTemplateProcessor(made)


def test_labels_that_do_not_read_as_the_answer_are_refused():
    made = qwen()
    changed = made.chat_template.replace("['role'] + '\n'", "['role'] + 'x'")
    made.chat_template = changed.replace("assistant\n", "assistantx")
    made.tokenizer.backend_tokenizer.add_tokens(["xa"])  # the last letter of the prompt and the first of the answer
    with pytest.raises(DataError, match=r"data\.jsonl:4: an answer .* is 'abc<\|im_end\|>', its labels read 'xabc"):
        ChatTemplateProcessor(made).encode(row("q", "abc"))


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (Example((Message("user", "q"),)), "nothing to learn"),
        (Example((Message("user", "a"), Message("user", "b"))), "not the assistant's"),
        (row("<image>q", "a"), "1 <image> marks in the messages, 0 images"),
        (row("q<|im_end|>", "a"), r"<\|im_end\|> stands in 'q<\|im_end\|>'"),
    ],
)
def test_rows_that_cannot_be_used_are_named(example, words):
    with pytest.raises(DataError, match=words):
        ChatTemplateProcessor(qwen()).encode(example)


def test_a_conversation_that_the_template_refuses_is_named():
    made = qwen()
    refusal = "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system message') }}{%- endif %}"
    made.chat_template = refusal + made.chat_template
    with pytest.raises(DataError, match=r"data\.jsonl:4: the chat template refuses .*: no system message"):
        ChatTemplateProcessor(made).encode(row("be brief", "q", "a"))


def test_a_system_message_that_the_template_leaves_out_is_named():
    made = qwen()
    made.chat_template = made.chat_template.replace(
        "in messages %}", "in messages if message['role'] != 'system' %}", 1
    )
    with pytest.raises(DataError, match=r"data\.jsonl:4: the chat template leaves the system message out"):
        ChatTemplateProcessor(made).encode(row("be brief", "q", "a"))


def test_answers_that_are_marked_are_not_learnt(processor):
    turns = (Message("user", "q"), Message("assistant", "one", learnt=False), Message("user", "r"))
    example = Example((*turns, Message("assistant", "two")))
    end = "</s>" if processor.end_mark else "<|im_end|>"
    assert learnt(processor, processor.encode(example)) == ["two" + end]


def test_the_tutorials_few_lines_are_a_family_of_a_published_processor(tmp_path, rows):
    page = (Path(__file__).parents[3] / "docs/tutorial/first-family.md").read_text("utf-8")
    code = next(code for code in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if "ChatTemplate" in code)
    names = {}
    exec(code, names)
    qwen().save_pretrained(tmp_path)
    made = names["load_processor"](LoadRequest(tmp_path, processor={"max_pixels": 28 * 28}))
    assert made.max_pixels == 28 * 28
    assert learnt(made, made.encode(rows[0])) == ["A cat.<|im_end|>"]
