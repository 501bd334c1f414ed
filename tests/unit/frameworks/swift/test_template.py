"""The template and the data of Swift give what ConversationDataset gives, token for token."""

import json
import pickle
import warnings

import pytest
import torch

from vlm_lora_plugin import ConversationDataset, get_manager, load
from vlm_lora_plugin.data.files import ExampleFile
from vlm_lora_plugin.errors import DataError, SwiftError
from vlm_lora_plugin.frameworks.swift.dataset import SystemPrompt, read_datasets
from vlm_lora_plugin.recipe import DataSettings

ROWS = 5
"""Rows of the data that have ``messages``, which is all that a template can be asked for."""


@pytest.fixture
def family():
    return get_manager().family("monkey")


@pytest.fixture
def processor(model):
    return load(model, device="meta")[1]


@pytest.fixture
def template(swift, model):
    from swift import get_template
    from swift.model import get_processor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        template = get_template(get_processor(str(model), torch_dtype=torch.float32))
    template.set_mode("train")
    return template


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("row", range(ROWS), ids=["text", "one image", "two images", "two turns", "system"])
def test_the_template_encodes_as_the_dataset(template, processor, family, data, row, monkeypatch):
    monkeypatch.chdir(data.parent)  # a request has no data file, so its paths start at the working directory
    expected = ConversationDataset(data, processor, DataSettings(), family)[row]
    record = json.loads(data.read_text().splitlines()[row])
    assert same(template.encode(record), expected)


def test_the_template_leaves_the_answer_out_for_generation(template, processor, family, data, monkeypatch):
    monkeypatch.chdir(data.parent)
    template.set_mode("transformers")
    record = json.loads(data.read_text().splitlines()[1])
    expected = processor.encode_prompt(ExampleFile(data, family)[1])
    assert same(template.encode(record), expected)


def test_an_image_may_be_an_open_picture(template, data):
    from PIL import Image

    record = json.loads(data.read_text().splitlines()[1])
    by_path = template.encode({**record, "images": [str(data.parent / "a.png")]})
    with Image.open(data.parent / "a.png") as image:
        assert same(template.encode({**record, "images": [image]}), by_path)
    assert same(template.encode({**record, "images": [{"bytes": (data.parent / "a.png").read_bytes()}]}), by_path)


def test_an_image_may_be_a_data_uri_and_never_starts_a_program(template, data, tmp_path):
    import base64

    record = json.loads(data.read_text().splitlines()[1])
    by_path = template.encode({**record, "images": [str(data.parent / "a.png")]})
    content = base64.b64encode((data.parent / "a.png").read_bytes()).decode()
    for image in (content, f"data:image/png;base64,{content}", {"bytes": content}):
        assert same(template.encode({**record, "images": [image]}), by_path)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EOF\n")
    with pytest.raises(DataError, match=r"the request: .* is a PostScript drawing"):
        template.encode({**record, "images": [str(tmp_path / "a.png")]})


def test_images_are_turned_as_the_recipe_says(swift, model, data, monkeypatch):
    from PIL import Image
    from swift import get_template
    from swift.model import get_processor

    from vlm_lora_plugin.frameworks.swift.names import RECIPE_VARIABLE

    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(data.parent / "a.png") as image:
        image.save(data.parent / "turned.png", exif=exif)
        image.transpose(Image.Transpose.ROTATE_270).save(data.parent / "expected.png")
    monkeypatch.setenv(RECIPE_VARIABLE, '{"preset": "lora", "data": {"exif_transpose": true}}')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        template = get_template(get_processor(str(model), torch_dtype=torch.float32))
    template.set_mode("train")
    record = json.loads(data.read_text().splitlines()[1])
    turned, expected = (
        template.encode({**record, "images": [str(data.parent / name)]}) for name in ("turned.png", "expected.png")
    )
    assert same(turned, expected)


def test_of_a_relative_path_that_leads_nowhere_it_says_where_it_was_looked_for(template, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = json.loads(data.read_text().splitlines()[1])
    with pytest.raises(DataError, match=r"there is no image a\.png in") as error:
        template.encode(record)
    assert "beside the data file" in error.value.why


def test_the_template_batches_as_the_processor(template, processor, family, data):
    rows = [ConversationDataset(data, processor, DataSettings(), family)[index] for index in (0, 2)]
    assert same(template.data_collator(rows), processor.collate(rows))


def test_system_option_of_a_request(template, processor, family, data, monkeypatch):
    monkeypatch.chdir(data.parent)
    record = json.loads(data.read_text().splitlines()[4])
    expected = ConversationDataset(data, processor, DataSettings(), family)[4]
    template.template_meta.default_system = record["messages"][0]["content"]
    assert same(template.encode({**record, "messages": record["messages"][1:]}), expected)


def test_videos_are_refused(template):
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A film."}]
    with pytest.raises(DataError, match="videos"):
        template.encode({"messages": turns, "videos": ["a.mp4"]})


def test_data_is_read_as_by_the_dataset(processor, family, data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # relative images start at the data file all the same
    expected = ConversationDataset(data, processor, DataSettings(), family)
    ours = read_datasets([str(data)], processor, DataSettings(), family)
    assert len(ours) == len(expected) == ROWS + 1
    assert all(same(ours[index], expected[index]) for index in range(len(expected)))


def test_several_files_follow_each_other(processor, family, data):
    ours = read_datasets([str(data), str(data)], processor, DataSettings(), family)
    assert len(ours) == 2 * (ROWS + 1)
    assert same(ours[ROWS + 2], ours[1])
    assert read_datasets([], processor, DataSettings(), family) is None


def test_a_system_message_is_put_before_rows_that_have_none(processor, family, data):
    rows = data.read_text().splitlines()[:ROWS]
    data.write_text("\n".join(rows) + "\n")
    examples = ExampleFile(data, family)
    ours = read_datasets([str(data)], SystemPrompt(processor, "Be kind.", processor.tokenizer), DataSettings(), family)
    plain = read_datasets([str(data)], processor, DataSettings(), family)
    assert len(ours[0]["input_ids"]) > len(plain[0]["input_ids"])
    assert same(ours[4], plain[4])
    assert examples[4].messages[0].role == "system"


def test_a_system_message_cannot_go_into_the_familys_own_rows(processor, family, data):
    prompted = SystemPrompt(processor, "Be kind.", processor.tokenizer)
    with pytest.raises(DataError, match="--system"):
        read_datasets([str(data)], prompted, DataSettings(), family)


def test_bad_rows_are_an_error_or_left_out(processor, family, data):
    (data.parent / "b.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"train\.jsonl:3"):
        read_datasets([str(data)], processor, DataSettings(), family)
    rest = read_datasets([str(data)], processor, DataSettings(on_bad_sample="skip"), family)
    assert len(rest) == 3


def test_images_outside_are_refused(processor, family, data):
    (data.parent.parent / "secret.png").write_bytes((data.parent / "a.png").read_bytes())
    row = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Grey."}]}
    data.write_text(json.dumps({**row, "images": ["../secret.png"]}) + "\n")
    with pytest.raises(DataError, match="lies outside"):
        read_datasets([str(data)], processor, DataSettings(), family)


@pytest.mark.parametrize("name", ["AI-ModelScope/alpaca-gpt4-data-en", "hub/train#10", "table.csv"])
def test_only_files_on_disk_are_data(processor, family, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("query,response\n")
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(SwiftError, match=r"\.jsonl"):
        read_datasets([name], processor, DataSettings(), family)


def test_the_first_rows_of_a_file_may_be_asked_for(processor, family, data):
    whole = ConversationDataset(data, processor, DataSettings(), family)
    ours = read_datasets([f"{data}#2"], processor, DataSettings(), family)
    assert len(ours) == 2
    assert all(same(ours[index], whole[index]) for index in range(2))
    assert len(ConversationDataset(f"{data}#2", processor, DataSettings(), family)) == 2


@pytest.mark.parametrize(
    ("count", "said"), [("1000", "asks for 1,000 rows, and the file has"), ("0", "asks for no rows")]
)
def test_more_rows_than_there_are_and_none_are_refused(processor, family, data, count, said):
    with pytest.raises(DataError, match=said):
        read_datasets([f"{data}#{count}"], processor, DataSettings(), family)


def test_a_file_that_is_called_so_is_taken_whole(processor, family, data):
    named = data.with_name("odd.jsonl#2")
    named.write_bytes(data.read_bytes())
    assert len(ConversationDataset(named, processor, DataSettings(), family)) == ROWS + 1


def test_a_root_of_images_elsewhere_is_refused(processor, family, data, monkeypatch):
    monkeypatch.setenv("ROOT_IMAGE_DIR", "/elsewhere")
    with pytest.raises(SwiftError, match="ROOT_IMAGE_DIR"):
        read_datasets([str(data)], processor, DataSettings(), family)


def test_the_data_can_be_sent_to_workers(processor, family, data):
    ours = read_datasets([str(data)], processor, DataSettings(), family)
    assert same(pickle.loads(pickle.dumps(ours))[1], ours[1])
