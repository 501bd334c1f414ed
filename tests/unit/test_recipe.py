"""Recipes: one document, the same from YAML, Python and the command line."""

from dataclasses import replace

import pytest
import yaml

from vlm_lora_plugin.contract import Architecture, DataFormats, Family, ProcessorOption
from vlm_lora_plugin.errors import HardwareError, RecipeError
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.recipe import Recipe, lay_over, parse_assignments, read_recipe
from vlm_lora_plugin.vocabulary import Component

PARTS = Architecture(
    (
        Component("vision", ("visual",), blocks=r"visual\.h\.\d+"),
        Component("language", ("model",), target_modules=("q_proj",)),
    )
)
FAMILY = Family(
    name="tiny",
    title="Tiny",
    model_types=("tiny",),
    presets={
        "lora": {
            "components": {"language": "lora"},
            "rules": [{"pattern": r"visual\.gate", "means": "full"}],
            "lora": {"r": 4, "lora_alpha": 8},
            "optimizer": {"learning_rate": {"default": 1e-5, "vision": 2e-6}},
        },
        "full": {"components": {"language": "full"}},
    },
    default_preset="lora",
    recognises=lambda folder: False,
    architecture="toy_family:architecture",
    load_model="toy_family:load_model",
    load_processor="toy_family:load_processor",
)


def rules(recipe):
    return [(rule.component or rule.pattern[0], rule.means) for rule in recipe.rules]


def test_without_a_recipe_the_default_preset_is_used():
    recipe = resolve_recipe(None, FAMILY)
    assert recipe.origin == "tiny/lora"
    assert recipe.lora.r == 4


def test_a_resolved_recipe_stands_on_its_own():
    recipe = resolve_recipe("lora", FAMILY)
    assert recipe.preset is None
    assert recipe.components == {}
    assert recipe.family == "tiny"


def test_resolving_a_resolved_recipe_changes_nothing():
    once = resolve_recipe("lora", FAMILY, {"seed": 3})
    assert resolve_recipe(once, FAMILY) == once


def test_a_resolved_recipe_survives_yaml(tmp_path):
    once = resolve_recipe("lora", FAMILY, {"optimizer": {"weight_decay": 0.02}})
    file = tmp_path / "recipe.yaml"
    file.write_text(once.to_yaml())
    assert resolve_recipe(file, FAMILY) == once


@pytest.mark.parametrize("source", ["lora", {"components": {"vision": "full"}, "lora": {"r": 4}, "preset": "lora"}])
@pytest.mark.parametrize(
    "over",
    [
        {"optimizer": {"learning_rate": {"language": 3e-5}}},
        {"lora": {"r": 8}, "rules": [{"component": "language", "means": "full"}]},
        {"preset": "full", "components": {"vision": "frozen"}},
    ],
)
def test_a_recipe_and_what_is_laid_over_it_are_also_one_document(source, over):
    assert resolve_recipe(lay_over(source, over), FAMILY) == resolve_recipe(source, FAMILY, over)


def test_rules_come_in_the_order_preset_recipe_overrides():
    recipe = resolve_recipe(
        {"preset": "lora", "components": {"vision": "full"}, "rules": [{"pattern": "a", "means": "frozen"}]},
        FAMILY,
        {"components": {"language": "frozen"}},
    )
    assert rules(recipe) == [
        ("language", "lora"),
        (r"visual\.gate", "full"),
        ("vision", "full"),
        ("a", "frozen"),
        ("language", "frozen"),
    ]


def test_a_preset_given_as_an_override_replaces_the_recipes():
    recipe = resolve_recipe({"preset": "lora", "seed": 5}, FAMILY, {"preset": "full"})
    assert recipe.origin == "tiny/full"
    assert recipe.seed == 5


def test_a_later_value_wins_and_leaves_its_neighbours():
    recipe = resolve_recipe("lora", FAMILY, {"lora": {"r": 64}})
    assert (recipe.lora.r, recipe.lora.lora_alpha) == (64, 8)


def test_yaml_python_and_assignments_give_the_same_recipe(tmp_path):
    document = {"preset": "full", "optimizer": {"learning_rate": 1e-4}, "training": {"max_steps": 7}}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(document))
    from_assignments = parse_assignments(["preset=full", "optimizer.learning_rate=1e-4", "training.max_steps=7"])
    expected = resolve_recipe(document, FAMILY)
    assert resolve_recipe(file, FAMILY) == expected
    assert resolve_recipe(Recipe.parse(document), FAMILY) == expected
    assert resolve_recipe(from_assignments, FAMILY) == expected


def test_one_number_is_the_rate_of_everything():
    optimizer = resolve_recipe("lora", FAMILY, {"optimizer": {"learning_rate": 3e-4}}).optimizer
    assert optimizer.rate("vision", "full") == optimizer.rate("language", "lora") == 3e-4


def test_a_table_without_default_changes_only_its_own_keys():
    optimizer = resolve_recipe("lora", FAMILY, {"optimizer": {"learning_rate": {"language.lora": 5e-4}}}).optimizer
    assert optimizer.rate("language", "lora") == 5e-4
    assert optimizer.rate("vision", "full") == 2e-6
    assert optimizer.rate("language", "full") == 1e-5


def test_the_most_specific_rate_applies():
    table = {"default": 1.0, "lora": 2.0, "vision": 3.0, "vision.lora": 4.0}
    optimizer = Recipe.parse({"optimizer": {"learning_rate": table}}).optimizer
    assert optimizer.rate("vision", "lora") == 4.0
    assert optimizer.rate("vision", "full") == 3.0
    assert optimizer.rate("language", "lora") == 2.0
    assert optimizer.rate("language", "full") == 1.0


def test_lora_learns_faster_than_full_weights_by_default():
    optimizer = Recipe().optimizer
    assert optimizer.rate("language", "lora") > optimizer.rate("language", "full")
    assert (optimizer.adam_beta2, optimizer.weight_decay_of("head", "full"), optimizer.warmup_ratio) == (
        0.95,
        0.1,
        0.02,
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"components": {"visoin": "lora"}}, "visoin"),
        ({"componets": {}}, "Did you mean components"),
        ({"lora": {"rank": 8}}, "lora.rank"),
        ({"optimizer": {"learning_rates": 1}}, "Did you mean learning_rate"),
        ({"optimizer": {"learning_rate": {"vision": -1}}}, "negative"),
        ({"rules": [{"means": "full"}]}, "needs a component, a pattern or module_types"),
        ({"rules": [{"pattern": "a", "means": "half"}]}, "rules.0.means"),
        ({"rules": [{"pattern": "a", "layers": "0", "means": "full"}]}, "needs a `component`"),
        ({"rules": [{"component": "vision", "layers": "0..3", "means": "full"}]}, "'0..3' is not a range of layers"),
        ({"rules": [{"component": "vision", "layers": "5-3", "means": "full"}]}, "'5-3' ends before it begins"),
        ({"components": {"visoin": "lora"}}, "`components.visoin`: unknown key. Did you mean vision"),
        ({"components": {"vision": "lorra"}}, "'lorra' is not an accepted value. Did you mean lora"),
        ({"rules": {"component": "vision", "means": "full"}}, "`rules`: needs a list"),
        ({"lora": {"target_modules": ["q_proj"]}}, "`lora.target_modules`: needs a mapping"),
        ({"lora": "r16"}, "`lora`: needs a mapping"),
        ({"lora": {"r": 0}}, "`lora.r`"),
        ({"lora": {"r": True}}, "`lora.r`: true is not an accepted value"),
        ({"lora": {"use_rslora": 0}}, "`lora.use_rslora`: 0 is not an accepted value; write true or false"),
        ({"lora": {"use_rslora": -0.0}}, "`lora.use_rslora`: -0.0 is not an accepted value"),
        ({"lora": {"use_dora": "yes"}}, "`lora.use_dora`: 'yes' is not an accepted value"),
        ({"gradient_checkpointing": {"language": 1}}, "`gradient_checkpointing.language`"),
        ({"lora": {"lora_alpha": float("inf")}}, "finite"),
        ({"optimizer": {"learning_rate": float("nan")}}, "`optimizer.learning_rate.default`: .*finite"),
        ({"optimizer": {"learning_rate": {"lora": float("inf")}}}, "`optimizer.learning_rate.lora`: .*finite"),
        ({"optimizer": {"weight_decay": float("nan")}}, "finite"),
        ({"training": {"max_steps": 0}}, "train nothing"),
        ({"training": {"max_steps": -5}}, "`training.max_steps`"),
        ({"training": {"gradient_accumulation_steps": 0}}, "gradient_accumulation_steps"),
    ],
)
def test_a_wrong_document_is_refused_by_the_name_of_its_key(document, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(document)


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match=r"no preset 'lorra'\n.*Did you mean lora"):
        resolve_recipe("lorra", FAMILY)


WITH_CROPS = replace(
    FAMILY, data_formats=DataFormats(processor_options=(ProcessorOption("hd_num", "Most crops.", least=1),))
)


def test_a_setting_of_the_families_processor_is_kept():
    recipe = resolve_recipe("lora", WITH_CROPS, parse_assignments(["data.processor.hd_num=16", "data.max_length=4096"]))
    assert recipe.data.processor == {"hd_num": 16}
    assert resolve_recipe(recipe.document(), WITH_CROPS).data == recipe.data


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hdnum": 4}, "Tiny's processor has no setting 'hdnum'\nDid you mean hd_num"),
        ({"hd_num": 0}, "data.processor.hd_num is 0, less than 1"),
        ({"hd_num": "many"}, "data.processor.hd_num is many, which is not a whole number"),
        ({"hd_num": 2.0}, "data.processor.hd_num is 2.0, which is not a whole number"),
        ({"hd_num": True}, "data.processor.hd_num is true, which is not a whole number"),
    ],
)
def test_a_wrong_setting_of_the_processor_is_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        resolve_recipe({"data": {"processor": settings}}, WITH_CROPS)


OPTIONS = (
    ProcessorOption("scale", "Of the image.", type=float, least=0.5),
    ProcessorOption("crop", "Whether to crop.", type=bool),
    ProcessorOption("resize", "How to resize.", type=str, choices=("fit", "fill")),
)


def test_settings_of_the_processor_may_be_numbers_booleans_and_words(tmp_path):
    family = replace(FAMILY, data_formats=DataFormats(processor_options=OPTIONS))
    settings = {"scale": 1.5, "crop": True, "resize": "fit"}
    words = [f"data.processor.{name}={str(value).lower()}" for name, value in settings.items()]
    recipe = resolve_recipe("lora", family, parse_assignments(words))
    assert recipe.data.processor == settings
    assert type(recipe.data.processor["crop"]) is bool
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert resolve_recipe(tmp_path / "recipe.yaml", family).data.processor == settings
    assert resolve_recipe("lora", family, {"data": {"processor": {"scale": 2}}}).data.processor == {"scale": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 0.4}, "scale is 0.4, less than 0.5"),
        ({"scale": "large"}, "scale is large, which is not a number"),
        ({"crop": 1}, "crop is 1, which is not true or false"),
        ({"resize": "stretch"}, "resize is stretch, which is none of fit, fill"),
        ({"resize": 3}, "resize is 3, which is not a word"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(settings, message):
    family = replace(FAMILY, data_formats=DataFormats(processor_options=OPTIONS))
    with pytest.raises(RecipeError, match=f"data.processor.{message}"):
        resolve_recipe({"data": {"processor": settings}}, family)


def test_a_family_without_processor_settings_takes_none():
    with pytest.raises(RecipeError, match="Tiny's processor has no setting 'hd_num'"):
        resolve_recipe({"data": {"processor": {"hd_num": 4}}}, FAMILY)


def test_a_component_the_model_lacks_is_refused():
    with pytest.raises(RecipeError, match="no component 'aligner'"):
        resolve_recipe({"components": {"aligner": "full"}}, FAMILY, architecture=PARTS)


def test_what_a_model_is_made_of_is_found_out_once_and_only_when_the_recipe_can_be_used():
    asked = []

    def find():
        asked.append(None)
        return PARTS

    with pytest.raises(RecipeError, match="no preset 'lorra'"):
        resolve_recipe("lorra", FAMILY, architecture=find)
    assert not asked
    assert resolve_recipe("lora", FAMILY, architecture=find).architecture is PARTS
    assert len(asked) == 1


def test_hardware_without_a_model_is_for_the_published_one():
    with pytest.raises(HardwareError, match="unknown for Tiny without a model"):
        resolve_recipe({"hardware": "3x24"}, FAMILY)
    monkey = get_manager().family("monkey")
    assert resolve_recipe({"hardware": "3x24"}, monkey).architecture is monkey.size.architecture


@pytest.mark.parametrize("key", ["gradient_checkpointing", "lora"])
def test_a_component_the_model_lacks_is_refused_wherever_it_is_named(key):
    document = {"gradient_checkpointing": {"head": True}, "lora": {"target_modules": {"head": ["x"]}}}
    with pytest.raises(RecipeError, match="no component 'head'"):
        resolve_recipe({key: document[key]}, FAMILY, architecture=PARTS)


def test_a_recipe_for_another_family_is_refused():
    with pytest.raises(RecipeError, match="for the family other"):
        resolve_recipe({"family": "other"}, FAMILY)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.yaml", None, "no recipe file"),
        ("list.yaml", "- a\n", "holds a list"),
        ("empty.yaml", "", "holds nothing"),
        ("folder/recipe", None, "no recipe file"),
        ("broken.yaml", "a: [", "not valid YAML"),
        ("recipe.json", "{}", "does not end in .yaml"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=message):
        read_recipe(tmp_path / name)


def test_something_else_than_a_recipe_is_refused():
    with pytest.raises(RecipeError, match="A list is not a recipe"):
        read_recipe(["lora"])


def test_a_path_given_as_text_is_no_preset():
    with pytest.raises(RecipeError, match="no recipe file recipes/mine"):
        read_recipe("recipes/mine")


def test_assignments_are_read_as_yaml_and_nested():
    document = parse_assignments(["a.b=1e-4", "a.c=[x, y]", "d=true", "e="])
    assert document == {"a": {"b": 1e-4, "c": ["x", "y"]}, "d": True, "e": None}


def test_a_number_without_a_point_is_a_number():
    document = parse_assignments(["optimizer.learning_rate=1e-4", "optimizer.max_grad_norm=5e-1"])
    optimizer = Recipe.parse(document).optimizer
    assert (optimizer.learning_rate, optimizer.max_grad_norm) == ({"default": 1e-4}, 0.5)


def test_a_rate_of_one_component_and_means_can_be_assigned():
    document = parse_assignments(["optimizer.learning_rate.vision.lora=5e-4", "optimizer.weight_decay.full=0"])
    optimizer = Recipe.parse(document).optimizer
    assert optimizer.rate("vision", "lora") == 5e-4
    assert optimizer.weight_decay_of("vision", "full") == 0


def test_an_assignment_without_equals_is_refused():
    with pytest.raises(RecipeError, match="not an assignment"):
        parse_assignments(["training.max_steps"])


def test_an_assignment_below_a_value_is_refused():
    with pytest.raises(RecipeError, match=r"training\.max_steps"):
        parse_assignments(["training=3", "training.max_steps=4"])


def test_an_assignment_of_broken_yaml_is_refused():
    with pytest.raises(RecipeError, match="seed"):
        parse_assignments(["seed=[1"])


def test_recipes_cannot_be_changed_after_the_check():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 1


def test_ranges_of_layers_are_read_from_text_numbers_and_lists():
    ranges = [
        Recipe(rules=[{"component": "vision", "layers": value, "means": "full"}]).rules[0].layers
        for value in ("0-3, 10-", 7, ["1", 2])
    ]
    assert ranges == [("0-3", "10-"), ("7",), ("1", "2")]
