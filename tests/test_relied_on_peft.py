"""What is relied on in PEFT without its promise. A failure here means that PEFT has changed.

Look at what the test names before anything else; ``relied_on.py`` tells which of our files touch it.
"""

import ast
import inspect

import pytest
import torch
from peft import LoraConfig, PeftModel, PeftModelForCausalLM
from relied_on import relies_on
from test_relied_on_trainer import tiny_llama


def adapted(**options):
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, **{"target_modules": r"model\.layers\.0\.self_attn\.q_proj", **options}
    )
    return PeftModelForCausalLM(tiny_llama(), config, "default")


@relies_on("DUMMY_TARGET_MODULES")
def test_the_dummy_target_adapts_nothing_without_an_error():
    from peft.tuners.lora import LoraLayer
    from peft.utils.constants import DUMMY_TARGET_MODULES

    model = adapted(target_modules=DUMMY_TARGET_MODULES)
    assert isinstance(model, PeftModel)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


@relies_on("LoraConfig.target_modules")
def test_a_string_of_targets_is_a_regular_expression_for_whole_names():
    from peft.tuners.lora import LoraLayer

    names = [name for name, module in adapted().named_modules() if isinstance(module, LoraLayer)]
    assert names == ["base_model.model.model.layers.0.self_attn.q_proj"]


@relies_on("PeftModel.base_model")
def test_the_names_of_what_is_trained_and_of_the_base():
    model = adapted(use_dora=True)
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        f"{layer}.lora_A.default.weight",
        f"{layer}.lora_B.default.weight",
        f"{layer}.lora_magnitude_vector.default.weight",
    }
    assert f"{layer}.base_layer.weight" in dict(model.named_parameters())


@relies_on("LoraLayer.get_base_layer", "PeftModel.get_base_model")
def test_the_base_comes_back_as_it_was_given():
    base = tiny_llama()
    layer = base.model.layers[0].self_attn.q_proj
    model = PeftModelForCausalLM(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), "default")
    assert model.get_base_model() is base
    assert base.model.layers[0].self_attn.q_proj.get_base_layer() is layer


@relies_on("PeftModelForCausalLM.forward")
def test_the_forward_of_the_base_is_called_past_its_own_hooks(monkeypatch):
    # So a patch of the forward is put on the instance, where PEFT finds it.
    model, called = adapted(), []
    base = model.get_base_model()
    plain = base.forward
    monkeypatch.setitem(vars(base), "forward", lambda *a, **k: called.append(sorted(k)) or plain(*a, **k))
    model(input_ids=torch.ones(1, 3, dtype=torch.long), num_items_in_batch=None)
    assert len(called) == 1
    assert "num_items_in_batch" in called[0]


@relies_on("PeftModel.save_pretrained", "PeftModel.load_adapter")
@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("save_pretrained", ["save_directory", "safe_serialization", "selected_adapters", "save_embedding_layers"]),
        ("load_adapter", ["model_id", "adapter_name", "is_trainable"]),
    ],
)
def test_the_methods_that_ours_replace_begin_with_the_same_arguments(method, names):
    # From the source: Swift puts a function of its own in place of `load_adapter` when it is imported.
    source = ast.parse(inspect.getsource(inspect.getmodule(PeftModel)))
    defined = next(node for node in source.body if isinstance(node, ast.ClassDef) and node.name == "PeftModel")
    found = next(node for node in defined.body if isinstance(node, ast.FunctionDef) and node.name == method)
    assert [argument.arg for argument in found.args.args][1 : len(names) + 1] == names


@relies_on("LoraConfig.save_pretrained")
def test_a_config_writes_itself_as_one_file(tmp_path):
    adapted().peft_config["default"].save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]


@relies_on("LoraLayer.scaling")
@pytest.mark.parametrize(("rslora", "scale"), [(False, 4.0), (True, 8 / 2**0.5)])
def test_the_scale_is_alpha_by_r_or_by_its_root(rslora, scale):
    layer = adapted(lora_alpha=8, use_rslora=rslora).get_base_model().model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(scale)
