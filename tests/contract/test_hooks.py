"""Each hook's answer decides what its question is about. ``tests/docs`` demands a test here for every hook."""

import pytest
from toy_family import ToyAdapter, toy_model

from vlm_lora_plugin import get_manager, hookimpl, prepare
from vlm_lora_plugin.contract import Family, Patch, TrainableSelection
from vlm_lora_plugin.plugins.manager import AdapterManager
from vlm_lora_plugin.recipe import Recipe, Rule
from vlm_lora_plugin.vocabulary import Hardware


@pytest.fixture
def registered():
    """Registers adapters for as long as one test runs."""
    added = []

    def register(adapter):
        added.append(adapter)
        return get_manager().register(adapter)

    yield register
    for adapter in added:
        get_manager().unregister(adapter)


def test_describe_family_decides_name_model_types_and_whose_model_it_is():
    class Adapter:
        @hookimpl
        def describe_family(self):
            return Family(
                name="sketch",
                title="Sketch",
                model_types=("toy_vlm",),
                presets={},
                default_preset="",
                recognises=lambda folder: (folder / "sketch").exists(),
                architecture="toy_family:architecture",
                load_model="toy_family:load_model",
                load_processor="toy_family:load_processor",
            )

    manager = AdapterManager(discover=False)
    family = manager.register(Adapter())
    assert manager.family("sketch") is manager.family_of_model(toy_model()) is family


def test_select_trainable_decides_what_learns(registered):
    class Adapter(ToyAdapter):
        @hookimpl
        def select_trainable(self, model, recipe):
            return TrainableSelection((*recipe.rules, Rule(pattern=r"aligner\.(?!query).*", means="frozen")))

    registered(Adapter())
    names = prepare(toy_model(), {"components": {"aligner": "full"}}).vlm_lora.trainable.names
    assert names == {"aligner.query"}


def test_wrap_forward_decides_which_patches_are_applied_and_they_can_be_undone(registered):
    def mark(model):
        model.marked = True
        return lambda: delattr(model, "marked")

    class Adapter(ToyAdapter):
        @hookimpl
        def wrap_forward(self, model, recipe):
            return [Patch("mark", "for the test", mark)]

    registered(Adapter())
    base = toy_model()
    model = prepare(base, "lora")
    assert model.vlm_lora.patches == ("mark",)
    assert base.marked
    model.vlm_lora.undo_patches()
    assert not hasattr(base, "marked")


def test_deepspeed_config_is_asked_with_the_hardware():
    class Adapter(ToyAdapter):
        @hookimpl
        def deepspeed_config(self, recipe, hardware):
            return {"zero_optimization": {"stage": 2 if hardware.gpu_memory >= 40 else 3}}

    manager = AdapterManager(discover=False)
    family = manager.register(Adapter())
    for memory, stage in ((80, 2), (24, 3)):
        answer = manager.deepspeed_config(family, Recipe(), Hardware(gpus=3, gpu_memory=memory))
        assert answer == {"zero_optimization": {"stage": stage}}
