"""What Swift is told, from ``describe_family`` alone."""

import pytest

from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.frameworks.swift import versions
from vlm_lora_plugin.frameworks.swift.location import plugin_file
from vlm_lora_plugin.frameworks.swift.versions import check_version
from vlm_lora_plugin.plugins.manager import get_manager


def test_every_family_has_a_model_type_and_a_template(swift):
    from swift.model import MODEL_MAPPING
    from swift.template import TEMPLATE_MAPPING

    for name in get_manager().families():
        meta = MODEL_MAPPING[name]
        assert meta.is_multimodal
        assert meta.template in TEMPLATE_MAPPING


@pytest.fixture
def unchanged_mappings(swift, monkeypatch):
    """Swift's tables, put back after the test."""
    from swift.model import MODEL_MAPPING
    from swift.model.model_arch import MODEL_ARCH_MAPPING
    from swift.template import TEMPLATE_MAPPING

    before = [(table, dict(table)) for table in (MODEL_MAPPING, MODEL_ARCH_MAPPING, TEMPLATE_MAPPING)]
    yield
    for table, content in before:
        table.clear()
        table.update(content)


def test_the_parts_are_those_of_the_runs_folder(unchanged_mappings, model):
    from swift.model import MODEL_MAPPING, get_model_info_meta

    get_model_info_meta(str(model))
    family = get_manager().family("monkey")
    parts = get_manager().architecture_of_folder(family, model)
    arch = MODEL_MAPPING["monkey"].model_arch
    assert (arch.language_model, arch.vision_tower, arch.aligner) == tuple(
        list(parts.component(name).prefixes) for name in ("language", "vision", "aligner")
    )


def test_a_fallback_is_registered_when_the_runs_folder_is_known_and_not_before(unchanged_mappings, tmp_path):
    from dataclasses import replace

    from swift.model import MODEL_MAPPING, get_model_info_meta
    from toy_family import ToyAdapter, toy_config

    from vlm_lora_plugin import hookimpl
    from vlm_lora_plugin.frameworks.swift.loader import VlmLoraLoader
    from vlm_lora_plugin.frameworks.swift.registration import register

    class Fallback(ToyAdapter):
        @hookimpl
        def describe_family(self):
            return replace(super().describe_family(), fallback=True, swift_model_types=("qwen2_5_vl",))

    adapter, builtin = Fallback(), MODEL_MAPPING["qwen2_5_vl"]
    get_manager().register(adapter)
    try:
        register()
        assert "toy" not in MODEL_MAPPING
        toy_config().save_pretrained(tmp_path)
        get_model_info_meta(str(tmp_path))
        assert MODEL_MAPPING["toy"].loader is VlmLoraLoader
        assert MODEL_MAPPING["toy"].model_arch.vision_tower == ["tower"]
        assert MODEL_MAPPING["qwen2_5_vl"] is builtin
    finally:
        get_manager().unregister(adapter)


def test_registering_twice_changes_nothing(swift):
    from swift.arguments.base_args.model_args import ModelArguments
    from swift.model import MODEL_MAPPING, model_meta
    from swift.trainers import TrainerFactory
    from swift.tuner_plugin import tuners_map

    from vlm_lora_plugin.frameworks.swift.registration import register

    def state():
        wrapped = (model_meta._get_model_info, ModelArguments.__post_init__, TrainerFactory.get_trainer_cls.__func__)
        return (set(MODEL_MAPPING), set(tuners_map), *wrapped)

    before = state()
    register()
    assert state() == before


def test_a_family_may_take_over_a_type_of_swifts(swift, toy, monkeypatch):
    from dataclasses import replace

    from swift.model import MODEL_MAPPING

    from vlm_lora_plugin.frameworks.swift.loader import VlmLoraLoader
    from vlm_lora_plugin.frameworks.swift.model_types import register_family

    builtin = MODEL_MAPPING["xcomposer2"]
    monkeypatch.setitem(MODEL_MAPPING, "xcomposer2", builtin)
    monkeypatch.setitem(MODEL_MAPPING, toy.name, None)
    register_family(replace(toy, swift_model_types=("xcomposer2",)))
    meta = MODEL_MAPPING["xcomposer2"]
    assert meta.loader is VlmLoraLoader
    assert meta.architectures == builtin.architectures
    assert [model.hf_model_id for group in meta.model_groups for model in group.models] == [
        model.hf_model_id for group in builtin.model_groups for model in group.models
    ]


def test_swifts_own_xcomposer_loader_is_still_broken(swift):
    """Its get_model returns nothing. When this fails, Swift has fixed it: look again at what we replace."""
    import ast
    import inspect
    import textwrap

    from swift.model.models.internlm import Xcomposer2Loader

    (function,) = ast.parse(textwrap.dedent(inspect.getsource(Xcomposer2Loader.get_model))).body
    own = [node for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    nested = [
        node
        for inner in ast.walk(function)
        if isinstance(inner, (ast.FunctionDef, ast.Lambda)) and inner is not function
        for node in ast.walk(inner)
        if isinstance(node, ast.Return)
    ]
    assert not set(own) - set(nested), "Swift's Xcomposer2Loader.get_model now returns a model"


@pytest.mark.parametrize("version", ["4.5.0", "4.6.0", "4.5.2.post1", "4.99"])
def test_supported_versions(monkeypatch, version):
    monkeypatch.setattr(versions, "version", lambda name: version)
    assert check_version() == version


@pytest.mark.parametrize("version", ["3.12.6", "4.4.1", "5.0.0", "5.0.0.dev0"])
def test_another_version_is_refused_with_both_versions_and_what_to_install(monkeypatch, version):
    monkeypatch.setattr(versions, "version", lambda name: version)
    with pytest.raises(SwiftError) as error:
        check_version()
    assert all(text in str(error.value) for text in (version, ">=4.5,<5", "pip install 'ms-swift>=4.5,<5'"))


def test_the_plugin_file_stands_alone():
    assert [file.name for file in plugin_file().parent.iterdir() if file.name != "__pycache__"] == [plugin_file().name]
