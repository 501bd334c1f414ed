"""Rules become exact names."""

from __future__ import annotations

import pytest
import torch
from toy_family import toy_model

from vlm_lora_plugin.errors import ModelError, SelectionError
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.selection.resolve import resolve_selection, trace_selection

OWN_LORA = {
    f"tower.blocks.{block}.fc_lora.{part}"
    for block in (0, 1)
    for part in ("lora_a.weight", "lora_b.weight", "lora_scale")
}
ALIGNER = {
    "aligner.kv_proj.weight",
    "aligner.query",
    "aligner.attn.in_proj_weight",
    "aligner.attn.in_proj_bias",
    "aligner.attn.out_proj.weight",
    "aligner.attn.out_proj.bias",
}


def resolve(family, document, model=None):
    return resolve_selection(model or toy_model(), family, resolve_recipe(document, family))


def lora_of(*layers):
    return {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"}


def test_lora_on_a_component_with_its_own_lora_trains_exactly_that(toy):
    chosen = resolve(toy, {"components": {"vision": "lora"}})
    assert chosen.names == OWN_LORA
    assert chosen.lora_targets == ()
    assert {parameter.kind for parameter in chosen.parameters} == {"builtin_lora"}


def test_full_trains_everything_but_the_computed_table(toy):
    assert resolve(toy, {"components": {"aligner": "full"}}).names == ALIGNER


def test_train_fixed_tables_adds_the_table(toy):
    chosen = resolve(toy, {"components": {"aligner": "full"}, "train_fixed_tables": True})
    assert chosen.names == ALIGNER | {"aligner.table"}


def test_lora_without_own_lora_takes_the_familys_layers(toy):
    chosen = resolve(toy, {"components": {"language": "lora"}})
    layers = [f"model.layers.{block}.self_attn.{layer}" for block in (0, 1) for layer in ("q_proj", "v_proj")]
    assert chosen.lora_targets == tuple(layers)
    assert chosen.names == lora_of(*layers)


def test_lora_shapes_follow_rank_and_layer(toy):
    chosen = resolve(toy, {"components": {"head": "lora"}, "lora": {"r": 3, "use_dora": True}})
    shapes = {parameter.name: parameter.shape for parameter in chosen.parameters}
    assert shapes == {
        "lm_head.lora_A.weight": (3, 16),
        "lm_head.lora_B.weight": (24, 3),
        "lm_head.lora_magnitude_vector": (24,),
    }


def test_recipe_targets_replace_the_familys(toy):
    document = {"components": {"language": "lora"}, "lora": {"target_modules": {"language": ["mlp.down_proj"]}}}
    assert resolve(toy, document).lora_targets == ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")


def test_recipe_targets_come_on_top_of_own_lora(toy):
    document = {"components": {"vision": "lora"}, "lora": {"target_modules": {"vision": ["stem"]}}}
    assert resolve(toy, document).names == OWN_LORA | lora_of("tower.stem")


def test_all_linear_takes_every_layer_that_can_have_lora(toy):
    document = {
        "components": {"vision": "lora", "aligner": "lora"},
        "lora": {"target_modules": {"vision": "all-linear", "aligner": "all-linear"}},
    }
    assert set(resolve(toy, document).lora_targets) == {
        "tower.stem",
        "tower.blocks.0.fc",
        "tower.blocks.1.fc",
        "aligner.kv_proj",
    }


def test_a_pattern_that_names_a_layer_puts_lora_on_it(toy):
    chosen = resolve(toy, {"rules": [{"pattern": r"model\.layers\.1\.mlp\.(up|down)_proj", "means": "lora"}]})
    assert chosen.lora_targets == ("model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj")


def test_a_pattern_that_names_a_block_takes_the_familys_layers_in_it(toy):
    chosen = resolve(toy, {"rules": [{"pattern": r"model\.layers\.1", "means": "lora"}]})
    assert chosen.lora_targets == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")


def test_the_last_matching_rule_decides(toy):
    document = {
        "components": {"vision": "full"},
        "rules": [
            {"pattern": r"tower\.blocks", "means": "frozen"},
            {"pattern": r"tower\.blocks\.0\.norm", "means": "full"},
        ],
    }
    assert resolve(toy, document).names == {
        "tower.stem.weight",
        "tower.stem.bias",
        "tower.blocks.0.norm.weight",
        "tower.blocks.0.norm.bias",
    }


def test_exclude_leaves_a_module_to_earlier_rules(toy):
    chosen = resolve(toy, {"rules": [{"component": "aligner", "exclude": r"aligner\.attn", "means": "full"}]})
    assert chosen.names == {"aligner.kv_proj.weight", "aligner.query"}


def test_component_and_pattern_must_both_hold(toy):
    chosen = resolve(toy, {"rules": [{"component": "vision", "pattern": r".*norm.*", "means": "full"}]})
    assert chosen.names == {f"tower.blocks.{b}.norm.{p}" for b in (0, 1) for p in ("weight", "bias")}


def test_layers_narrow_a_component_to_a_range_of_its_blocks(toy):
    rule = {"component": "language", "layers": "1-3,5-", "pattern": r".*\.mlp\..*", "means": "full"}
    model = toy_model(num_hidden_layers=7)
    blocks = {name.split(".")[2] for name in resolve(toy, {"rules": [rule]}, model).names}
    assert blocks == {"1", "2", "3", "5", "6"}


def test_a_single_layer_may_be_a_number(toy):
    chosen = resolve(toy, {"rules": [{"component": "language", "layers": 1, "means": "lora"}]})
    assert chosen.lora_targets == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")


def test_layers_are_counted_in_the_models_order(toy):
    model = toy_model(num_hidden_layers=12)
    chosen = resolve(toy, {"rules": [{"component": "language", "layers": "9-10", "means": "lora"}]}, model)
    assert {target.split(".")[2] for target in chosen.lora_targets} == {"9", "10"}


def test_module_types_train_modules_of_a_class_or_of_one_derived_from_it(toy):
    norms = resolve(toy, {"rules": [{"component": "language", "module_types": "LlamaRMSNorm", "means": "full"}]})
    assert norms.names == {
        "model.norm.weight",
        *(f"model.layers.{b}.{n}_layernorm.weight" for b in (0, 1) for n in ("input", "post_attention")),
    }
    # nn.MultiheadAttention's projection is a class derived from nn.Linear.
    linear = resolve(toy, {"rules": [{"component": "aligner", "module_types": "Linear", "means": "full"}]})
    assert linear.names == {"aligner.kv_proj.weight", "aligner.attn.out_proj.weight", "aligner.attn.out_proj.bias"}


def test_module_types_name_the_layers_that_get_lora(toy):
    rule = {"component": "language", "layers": "0", "module_types": ["Linear"], "exclude": r".*\.mlp", "means": "lora"}
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkvo"]
    assert resolve(toy, {"rules": [rule]}).lora_targets == tuple(names)


def test_linear_layers_inside_own_lora_are_not_meant_by_their_type(toy):
    chosen = resolve(toy, {"rules": [{"component": "vision", "module_types": "Linear", "means": "full"}]})
    layers = ("stem", "blocks.0.fc", "blocks.1.fc")
    assert chosen.names == {f"tower.{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    blocks = resolve(toy, {"rules": [{"component": "vision", "module_types": "OwnLora", "means": "lora"}]})
    assert blocks.names == OWN_LORA


def test_all_conditions_of_a_rule_must_hold(toy):
    rule = {
        "component": "language",
        "pattern": [r".*self_attn.*", r".*layernorm.*"],
        "layers": "1",
        "module_types": ["Linear", "LlamaRMSNorm"],
        "exclude": r".*\.(k|o)_proj",
        "means": "full",
        "group": "top",
    }
    chosen = resolve(toy, {"rules": [rule]})
    block = "model.layers.1"
    assert chosen.names == {
        f"{block}.self_attn.q_proj.weight",
        f"{block}.self_attn.v_proj.weight",
        f"{block}.input_layernorm.weight",
        f"{block}.post_attention_layernorm.weight",
    }
    assert {parameter.group for parameter in chosen.parameters} == {"top"}


def test_a_group_has_rates_of_its_own(toy):
    document = {
        "rules": [
            {"component": "aligner", "means": "full", "group": "bridge"},
            {"component": "head", "means": "full"},
        ],
        "optimizer": {
            "learning_rate": {"default": 1e-5, "aligner.full": 3e-5, "bridge": 7e-4},
            "weight_decay": {"default": 0.1, "bridge": 0.5},
        },
    }
    by_name = {p.name: p for p in resolve(toy, document).parameters}
    assert (by_name["aligner.query"].learning_rate, by_name["aligner.query"].weight_decay) == (7e-4, 0.5)
    assert (by_name["lm_head.weight"].learning_rate, by_name["lm_head.weight"].weight_decay) == (1e-5, 0.1)


def test_the_trace_tells_what_each_rule_matched_lost_and_trains(toy):
    document = {
        "rules": [
            {"component": "aligner", "means": "full"},
            {"pattern": r"aligner\.attn", "means": "frozen"},
            {"pattern": r"aligner\.attn\.in_proj_bias", "means": "full", "group": "bias"},
        ]
    }
    trace = trace_selection(toy_model(), toy, resolve_recipe(document, toy))
    first, second, third = trace.rules
    assert set(first.matched) == ALIGNER | {"aligner.table"}
    assert dict(first.lost) == {
        **{f"aligner.attn.{name}": 1 for name in ("in_proj_weight", "out_proj.weight", "out_proj.bias")},
        "aligner.attn.in_proj_bias": 2,
    }
    assert set(first.trains) == {"aligner.kv_proj.weight", "aligner.query"}
    assert (second.trains, dict(second.lost)) == ((), {"aligner.attn.in_proj_bias": 2})
    assert third.trains == ("aligner.attn.in_proj_bias",)
    assert all(rule.of_recipe for rule in trace.rules)
    assert trace.trainables == resolve(toy, document)


def test_full_trains_own_lora_too(toy):
    chosen = resolve(toy, {"components": {"vision": "full"}})
    assert chosen.names >= OWN_LORA
    assert {p.kind for p in chosen.parameters if p.name in OWN_LORA} == {"builtin_lora"}


def test_rates_go_by_component_and_means_and_vectors_do_not_decay(toy):
    document = {
        "components": {"vision": "lora", "aligner": "full"},
        "optimizer": {
            "learning_rate": {"default": 1e-5, "vision.lora": 2e-4},
            "weight_decay": {"default": 0.1, "vision": 0.3},
        },
    }
    by_name = {p.name: p for p in resolve(toy, document).parameters}
    down, scale = by_name["tower.blocks.0.fc_lora.lora_a.weight"], by_name["tower.blocks.0.fc_lora.lora_scale"]
    assert (down.group, down.learning_rate, down.weight_decay) == ("vision.lora", 2e-4, 0.3)
    assert (scale.learning_rate, scale.weight_decay) == (2e-4, 0.0)
    assert by_name["aligner.query"].learning_rate == 1e-5
    assert by_name["aligner.attn.out_proj.bias"].weight_decay == 0.0


def test_a_rule_may_name_its_group(toy):
    chosen = resolve(toy, {"rules": [{"component": "aligner", "means": "full", "group": "bridge"}]})
    assert {parameter.group for parameter in chosen.parameters} == {"bridge"}


def test_meta_model_gives_the_same_selection(toy):
    with torch.device("meta"):
        empty = type(toy_model())(toy_model().config)
    document = {"preset": "lora+llm-lora"}
    assert resolve(toy, document, empty) == resolve(toy, document)


def test_counts_tell_each_component(toy):
    lines = {line.component: line for line in resolve(toy, {"preset": "lora"}).counts()}
    model = toy_model()
    assert lines["vision"].trainable == sum(p.numel() for n, p in model.named_parameters() if n in OWN_LORA)
    assert lines["vision"].total == sum(p.numel() for p in model.tower.parameters())
    assert (lines["aligner"].means, lines["aligner"].tensors) == (("full",), len(ALIGNER))
    assert (lines["language"].trainable, lines["language"].means) == (0, ())
    assert sum(line.total for line in lines.values()) == sum(p.numel() for p in model.parameters())


def test_longest_prefix_owns_a_parameter(toy):
    assert resolve(toy, {"components": {"embeddings": "full"}}).names == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            {"rules": [{"pattern": r"tower\.bloks\..*", "means": "full"}]},
            ["tower\\.bloks", "Did you mean tower.blocks"],
        ),
        (
            {"rules": [{"pattern": [r"tower\..*", "nothing"], "means": "full"}]},
            ["'nothing'", "aligner, lm_head, model"],
        ),
        ({"rules": [{"component": "vision", "exclude": "nothing", "means": "full"}]}, ["'nothing'"]),
        (
            {"rules": [{"component": "vision", "module_types": "LayrNorm", "means": "full"}]},
            ["No module", "LayrNorm", "Did you mean LayerNorm"],
        ),
        (
            {"rules": [{"component": "head", "module_types": ["Linear", "LayerNorm"], "means": "full"}]},
            ["The module type LayerNorm matches nothing of the rule", "tower.blocks.0.norm.weight"],
        ),
        (
            {"rules": [{"component": "vision", "pattern": [r".*norm", r"aligner.*"], "means": "full"}]},
            ["The pattern 'aligner.*' matches nothing of the rule", "It matches only aligner."],
        ),
        (
            {"rules": [{"component": "vision", "exclude": r"aligner\.query", "means": "full"}]},
            ["The exclusion 'aligner\\.query' matches nothing", "aligner.query"],
        ),
        ({"rules": [{"component": "head", "exclude": ".*", "means": "full"}]}, ["exclusions leave nothing"]),
        (
            {"rules": [{"component": "language", "layers": "0-5", "means": "lora"}]},
            ["0-5", "beyond the 2 blocks", "0 to 1", "To the last: 0-."],
        ),
        ({"rules": [{"component": "aligner", "layers": "0", "means": "full"}]}, ["aligner has no repeating"]),
        (
            {"rules": [{"component": "language", "layers": "0", "pattern": r".*layers\.1.*", "means": "lora"}]},
            ["matches no parameter", "The range of layers 0 alone matches", "none that fulfils all"],
        ),
        ({"rules": [{"component": "vision", "pattern": r"aligner.*", "means": "frozen"}]}, ["matches no parameter"]),
        ({"rules": [{"pattern": r"tower\..*\.norm", "means": "lora"}]}, ["finds no LoRA"]),
        ({"components": {"embeddings": "lora"}}, ["embeddings", "finds no LoRA"]),
        ({"components": {"vision": "frozen"}}, ["trains nothing"]),
        (
            {"rules": [{"pattern": r"aligner\.attn\.out_proj", "means": "lora"}]},
            ["aligner.attn.out_proj", "never"],
        ),
        ({"rules": [{"pattern": r"aligner\.table", "means": "full"}]}, ["aligner.table", "train_fixed_tables"]),
        (
            {"components": {"language": "lora"}, "lora": {"target_modules": {"language": ["q_prj"]}}},
            ["q_prj", "Did you mean q_proj"],
        ),
        (
            {"components": {"language": "lora"}, "lora": {"target_modules": {"language": ["kv_proj"]}}},
            ["kv_proj", "not a linear layer"],
        ),
    ],
)
def test_a_rule_that_does_not_fit_the_model_is_an_error(toy, document, words):
    with pytest.raises(SelectionError) as caught:
        resolve(toy, document)
    for word in words:
        assert word in str(caught.value)


def test_an_overridden_rule_may_name_a_layer_that_cannot_have_lora(toy):
    document = {"rules": [{"pattern": ".*", "means": "lora"}, {"component": "aligner", "means": "frozen"}]}
    assert not any(layer.startswith("aligner") for layer in resolve(toy, document).lora_targets)


def test_a_parameter_outside_all_components_is_an_error(toy):
    model = toy_model()
    model.stray = torch.nn.Linear(2, 2)
    with pytest.raises(SelectionError, match=r"stray\.weight, stray\.bias"):
        resolve(toy, {"preset": "lora"}, model)


def test_a_quantised_weight_cannot_be_trained_in_full(toy):
    model = toy_model()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(24, 16, dtype=torch.int8), requires_grad=False)
    with pytest.raises(SelectionError, match=r"lm_head\.weight cannot be trained in full"):
        resolve(toy, {"components": {"head": "full"}}, model)


def test_a_model_with_peft_layers_is_refused(toy):
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(toy_model(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="already has PEFT layers"):
        resolve(toy, {"preset": "lora"}, wrapped.get_base_model())
