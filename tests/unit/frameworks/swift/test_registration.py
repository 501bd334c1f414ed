"""What Swift is told, from ``describe_family`` alone."""

import pytest

from vlm_lora_plugin.errors import SwiftError
from vlm_lora_plugin.frameworks.swift import versions
from vlm_lora_plugin.frameworks.swift.location import plugin_file
from vlm_lora_plugin.frameworks.swift.versions import check_version
from vlm_lora_plugin.plugins.manager import get_manager


def test_every_family_has_a_model_type_parts_and_a_template(swift):
    from swift.model import MODEL_MAPPING
    from swift.template import TEMPLATE_MAPPING

    for name, family in get_manager().families().items():
        meta = MODEL_MAPPING[name]
        assert meta.is_multimodal
        assert meta.template in TEMPLATE_MAPPING
        parts = {part.name: list(part.prefixes) for part in family.components}
        arch = meta.model_arch
        assert (arch.language_model, arch.vision_tower, arch.aligner) == (
            parts["language"],
            parts["vision"],
            parts["aligner"],
        )


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
    """Its get_model returns nothing. When this fails, Swift has mended it: look again at what we replace."""
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
