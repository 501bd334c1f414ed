"""A setting that would have no effect in the model is refused, with what would have one."""

import pytest
from toy_family import ToyAdapter, toy_model

from vlm_lora_plugin import get_manager, hookimpl
from vlm_lora_plugin.contract import TrainableSelection
from vlm_lora_plugin.errors import RecipeError, SelectionError
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.recipe import Rule
from vlm_lora_plugin.selection.resolve import resolve_selection


def select(toy, document):
    return resolve_selection(toy_model(), toy, resolve_recipe({"preset": "lora", **document}, toy))


@pytest.mark.parametrize("table", ["learning_rate", "weight_decay"])
def test_a_rate_of_a_group_that_no_rule_has_is_answered_with_the_nearest(toy, table):
    rules = [{"component": "language", "means": "lora", "group": "upper"}]
    with pytest.raises(RecipeError, match=rf"optimizer.{table} has the key 'uper'.*\n.*Did you mean upper"):
        select(toy, {"rules": rules, "optimizer": {table: {"uper": 1e-3}}})
    assert select(toy, {"rules": rules, "optimizer": {table: {"upper": 1e-3}}})


@pytest.mark.parametrize(("key", "means"), [("language", ""), ("vision.full", " by full")])
def test_a_rate_of_a_component_that_is_not_trained_so_is_refused(toy, key, means):
    with pytest.raises(RecipeError, match=rf"has the key '{key}', but no rule trains \w+{means}\n"):
        select(toy, {"optimizer": {"learning_rate": {key: 1e-3}}})


def test_a_rate_may_stay_when_a_later_rule_freezes_its_component(toy):
    rates = {"learning_rate": {"vision.lora": 1e-3}}
    assert {p.component for p in select(toy, {"rules": [{"component": "vision", "means": "frozen"}]}).parameters}
    assert select(toy, {"components": {"vision": "frozen"}, "optimizer": rates}).parameters


def test_a_rate_by_means_alone_is_a_default_and_may_be_unused(toy):
    assert select(toy, {"components": {"aligner": "frozen"}, "optimizer": {"learning_rate": {"full": 1e-6}}}).parameters


class Grouping(ToyAdapter):
    """Puts the queries of the aligner into a group of their own, which no recipe can know of."""

    @hookimpl
    def select_trainable(self, model, recipe):
        return TrainableSelection((*recipe.rules, Rule(pattern=r"aligner\.query", means="full", group="queries")))


def test_a_group_that_only_the_hook_adds_can_be_given_a_rate_in_the_recipe():
    adapter = Grouping()
    family = get_manager().register(adapter)
    try:
        rates = {"learning_rate": {"queries": 0.25}, "weight_decay": {"queries": 0.5}}
        selection = select(family, {"optimizer": rates})
    finally:
        get_manager().unregister(adapter)
    (queries,) = (entry for entry in selection.parameters if entry.group == "queries")
    assert (queries.name, queries.learning_rate, queries.weight_decay) == ("aligner.query", 0.25, 0.5)


def test_targets_of_a_component_without_lora_are_refused(toy):
    with pytest.raises(SelectionError, match="no rule gives the component language lora"):
        select(toy, {"lora": {"target_modules": {"language": "q_proj"}}})


def test_targets_may_stay_when_a_later_rule_freezes_their_component(toy):
    rules = [{"component": "language", "means": "lora"}, {"component": "language", "means": "frozen"}]
    assert select(toy, {"rules": rules, "lora": {"target_modules": {"language": "q_proj"}}}).parameters
