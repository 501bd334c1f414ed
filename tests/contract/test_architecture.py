"""What a family says a model is made of: asked of the model at hand, or of one built on the meta device."""

from dataclasses import replace

import pytest
import torch
import toy_family
from toy_family import ARCHITECTURE, ToyAdapter, ToyForCausalLM, toy_batch, toy_config, toy_model

from vlm_lora_plugin import hookimpl, load
from vlm_lora_plugin.contract import Architecture
from vlm_lora_plugin.errors import AdapterError, TrainingError
from vlm_lora_plugin.plugins.manager import AdapterManager
from vlm_lora_plugin.vocabulary import Component


def manager_of(**changes):
    """A manager that knows one toy family, described with changes, and that family."""

    class Adapter(ToyAdapter):
        @hookimpl
        def describe_family(self):
            return replace(super().describe_family(), **changes)

    manager = AdapterManager(discover=False)
    return manager, manager.register(Adapter(), name="adapter toy")


@pytest.fixture
def folder(tmp_path):
    toy_config().save_pretrained(tmp_path)
    return tmp_path


def test_a_loaded_model_is_asked_about():
    manager, family = manager_of()
    assert manager.architecture(family, toy_model()) is ARCHITECTURE


def test_the_function_may_be_given_by_name():
    manager, family = manager_of(architecture="toy_family:architecture")
    assert manager.architecture(family, toy_model()) is ARCHITECTURE


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ("not_there:architecture", "ModuleNotFoundError: No module named 'not_there'"),
        ("toy_family:architektur", "has no attribute 'architektur'"),
        ("toy_family:PATCHES", "is a int, not a function"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error_naming_the_plugin(reference, words):
    manager, family = manager_of(architecture=reference)
    with pytest.raises(AdapterError, match=f"architecture of the adapter toy is given as '{reference}'.*{words}"):
        manager.architecture(family, toy_model())


def test_what_the_function_raises_is_an_error_naming_the_plugin():
    manager, family = manager_of(architecture=lambda model: {}["no such key"])
    with pytest.raises(AdapterError, match="architecture of the adapter toy raised KeyError"):
        manager.architecture(family, toy_model())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ARCHITECTURE.components, "is a tuple, not an Architecture"),
        (Architecture(()), "has no component"),
        (Architecture(("vision",)), r"does not fit: components\[0\] is 'vision', not a Component"),
        (Architecture((Component("sight", ("tower",)),)), r"does not fit: components\[0\]\.name is 'sight'"),
        (Architecture(ARCHITECTURE.components[:1] * 2), "names vision twice"),
    ],
    ids=["type", "empty", "no Component", "no known part", "twice"],
)
def test_an_answer_of_the_wrong_form_is_refused(answer, words):
    manager, family = manager_of(architecture=lambda model: answer)
    with pytest.raises(AdapterError, match=f"the adapter toy answers {words}"):
        manager.architecture(family, toy_model())


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"components": (*ARCHITECTURE.components[:-1], Component("head", ("output",)))}, r"output \(head\)"),
        ({"trunk": "transformer"}, r"transformer \(trunk\)"),
        ({"head": "output"}, r"output \(head\)"),
    ],
    ids=["prefix", "trunk", "head"],
)
def test_an_answer_that_names_what_the_model_lacks_is_refused(change, missing):
    manager, family = manager_of(architecture=lambda model: replace(ARCHITECTURE, **change))
    with pytest.raises(AdapterError, match=f"does not have: {missing}"):
        manager.architecture(family, toy_model())


def test_where_no_model_is_loaded_the_one_of_the_config_is_built_once(folder):
    asked = []

    def load_model(request):
        asked.append(request.device)
        return toy_family.load_model(request)

    manager, family = manager_of(load_model=load_model)
    assert [manager.architecture_of_folder(family, folder) for _ in range(3)] == [ARCHITECTURE] * 3
    assert asked == ["meta"]
    toy_config(num_hidden_layers=3).save_pretrained(folder)
    manager.architecture_of_folder(family, folder)
    assert asked == ["meta", "meta"]


def dtypes(model):
    return {parameter.dtype for parameter in model.parameters()} | {model.config.dtype}


def test_the_outline_is_built_once_and_has_the_dtype_asked_for(folder):
    manager, family = manager_of()
    built = manager.outline(family, folder)
    own = dtypes(built)
    for dtype in (torch.bfloat16, torch.float16):
        assert manager.outline(family, folder, dtype=dtype) is built
        assert dtypes(built) == {dtype}
    assert dtypes(manager.outline(family, folder)) == own


@pytest.fixture
def ranks():
    """A process group of this process alone."""
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_nothing_is_outlined_once_ranks_have_met(folder, ranks):
    manager, family = manager_of()
    for ask in (manager.outline, manager.architecture_of_folder):
        with pytest.raises(TrainingError, match="would be built after a process group was made"):
            ask(family, folder)


def test_what_was_outlined_before_ranks_met_is_still_known(folder, request):
    manager, family = manager_of()
    built = manager.outline(family, folder)
    request.getfixturevalue("ranks")
    for dtype in (torch.bfloat16, torch.float16):
        assert manager.outline(family, folder, dtype=dtype) is built
    assert manager.architecture_of_folder(family, folder) == ARCHITECTURE


@pytest.mark.parametrize("recipe", [{"preset": "lora"}, {"preset": "lora", "hardware": "1x24"}])
def test_a_model_may_be_loaded_once_ranks_have_met_unless_hardware_asks_what_it_is(tiny_monkey, ranks, recipe):
    if "hardware" in recipe:
        with pytest.raises(TrainingError, match="Resolve the recipe first"):
            load(tiny_monkey, recipe, device="meta")
    else:
        assert load(tiny_monkey, recipe, device="meta")[0].device.type == "meta"


@pytest.fixture
def tiny_monkey(tmp_path):
    from vlm_lora_monkey.tiny import write_tiny_folder

    return write_tiny_folder(tmp_path / "monkey")


def test_one_family_may_serve_two_architectures(folder):
    def architecture(model):
        deep = model.config.num_hidden_layers > 2
        return replace(ARCHITECTURE, image_keys=("pixels", "grid") if deep else ("pixel_values",))

    manager, family = manager_of(architecture=architecture)
    assert manager.architecture_of_folder(family, folder).image_keys == ("pixel_values",)
    assert manager.architecture(family, ToyForCausalLM(toy_config(num_hidden_layers=3))).image_keys == (
        "pixels",
        "grid",
    )


def test_images_of_a_batch_are_counted_by_the_pixels_or_as_the_family_says():
    batch = toy_batch(rows=3)
    assert ARCHITECTURE.count_images(batch) == 3
    assert ARCHITECTURE.count_images({**batch, "pixel_values": None}) == 0
    assert ARCHITECTURE.count_images({"input_ids": batch["input_ids"]}) == 0
    counted = replace(ARCHITECTURE, image_counter=lambda batch: len(batch["image_grid_thw"]))
    assert counted.count_images({**batch, "image_grid_thw": [(1, 2, 2)] * 5}) == 5
