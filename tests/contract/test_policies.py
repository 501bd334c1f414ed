"""A policy wraps what every adapter answers, and its absence is never silent."""

import pytest
from torch import nn

from vlm_lora_plugin import hookimpl
from vlm_lora_plugin.contract import Family
from vlm_lora_plugin.errors import AdapterError
from vlm_lora_plugin.plugins.manager import AdapterManager
from vlm_lora_plugin.recipe import Recipe
from vlm_lora_plugin.vocabulary import Hardware

GROUP = "vlm_lora_plugin.policies"
NO_EMBEDDINGS = """
    from vlm_lora_plugin import hookimpl
    from vlm_lora_plugin.recipe import Rule
    from vlm_lora_plugin.contract import TrainableSelection

    seen = []

    @hookimpl(wrapper=True)
    def describe_family():
        family = yield
        seen.append(("describe_family", family.name))
        return family

    @hookimpl(wrapper=True)
    def select_trainable(model, recipe):
        selection = yield
        seen.append(("select_trainable", len(selection.rules)))
        return TrainableSelection((*selection.rules, Rule(component="embeddings", means="frozen")))

    @hookimpl(wrapper=True)
    def wrap_forward(model, recipe):
        patches = yield
        seen.append(("wrap_forward", len(patches)))
        return patches

    @hookimpl(wrapper=True)
    def deepspeed_config(recipe, hardware):
        config = yield
        seen.append(("deepspeed_config", hardware.gpus))
        return {**config, "zero_optimization": {"stage": 2}}
"""
RECIPE = Recipe(rules=[{"component": "embeddings", "means": "full"}])


class Bare:
    """An adapter that answers nothing but who it is."""

    def __init__(self, name):
        self.name = name

    @hookimpl
    def describe_family(self):
        return Family(
            name=self.name,
            title=self.name,
            model_types=(self.name,),
            presets={"lora": {}},
            default_preset="lora",
            recognises=lambda folder: False,
            architecture="toy_family:architecture",
            load_model="toy_family:load_model",
            load_processor="toy_family:load_processor",
        )


def test_an_installed_policy_sees_every_call_of_every_adapter(site):
    site.install("house-rules", "no_embeddings", NO_EMBEDDINGS, group=GROUP)
    manager = AdapterManager()
    for name in ("one", "two"):
        family = manager.register(Bare(name))
        manager.select_trainable(family, nn.Identity(), RECIPE)
        manager.wrap_forward(family, nn.Identity(), RECIPE)
        manager.deepspeed_config(family, RECIPE, Hardware(gpus=3, gpu_memory=24))
    import no_embeddings

    each = [("select_trainable", 1), ("wrap_forward", 0), ("deepspeed_config", 3)]
    assert no_embeddings.seen == [("describe_family", "one"), *each, ("describe_family", "two"), *each]


def test_an_installed_policy_changes_the_answer(site):
    site.install("house-rules", "no_embeddings", NO_EMBEDDINGS, group=GROUP)
    manager = AdapterManager()
    rules = manager.select_trainable(manager.register(Bare("one")), nn.Identity(), RECIPE).rules
    assert [(rule.component, rule.means) for rule in rules] == [("embeddings", "full"), ("embeddings", "frozen")]


def test_a_policy_is_listed_as_one(site):
    site.install("house-rules", "no_embeddings", NO_EMBEDDINGS, group=GROUP)
    record = AdapterManager().records()[-1]
    assert (record.name, record.distribution, record.policy, record.error) == (
        "no_embeddings",
        "house-rules 1.0",
        True,
        None,
    )


def test_a_policy_is_no_family(site):
    site.install("house-rules", "no_embeddings", NO_EMBEDDINGS, group=GROUP)
    assert "no_embeddings" not in AdapterManager().names()


def test_a_broken_policy_stops_every_run(site):
    site.install("house-rules", "broken_policy", "import not_there_at_all", group=GROUP)
    with pytest.raises(AdapterError, match=r"policy broken_policy of house-rules 1\.0 cannot be used") as caught:
        AdapterManager().family("monkey")
    assert "not_there_at_all" in caught.value.what
    assert "forbids" in caught.value.why


def test_a_broken_policy_does_not_stop_the_listing(site):
    site.install("house-rules", "broken_policy", "import not_there_at_all", group=GROUP)
    records = {record.name: record.error for record in AdapterManager().records()}
    assert records["monkey"] is None
    assert "not_there_at_all" in records["broken_policy"]


def test_policies_can_be_left_out(site, monkeypatch):
    site.install("house-rules", "broken_policy", "import not_there_at_all", group=GROUP)
    monkeypatch.setenv("VLM_LORA_DISABLE_PLUGINS", "1")
    assert AdapterManager().family("monkey").name == "monkey"


def test_a_policy_that_answers_instead_of_wrapping_is_refused(site):
    source = NO_EMBEDDINGS.replace(
        "@hookimpl(wrapper=True)\n    def wrap_forward(model, recipe):\n        patches = yield\n"
        '        seen.append(("wrap_forward", len(patches)))\n        return patches',
        "@hookimpl\n    def wrap_forward(model, recipe):\n        return []",
    )
    site.install("house-rules", "hijack", source, group=GROUP)
    with pytest.raises(AdapterError, match="answers wrap_forward but has no describe_family"):
        AdapterManager().family("monkey")


def test_a_policy_registered_as_an_adapter_is_told_its_group(site):
    site.install("house-rules", "misplaced", NO_EMBEDDINGS)
    with pytest.raises(AdapterError, match=r"entry-point group vlm_lora_plugin\.policies"):
        AdapterManager().family("misplaced")


def test_an_adapter_registered_as_a_policy_is_told_its_group(site):
    source = """
        from vlm_lora_plugin import hookimpl
        from vlm_lora_plugin.contract import Family

        @hookimpl
        def describe_family():
            return Family("x", "X", ("x",), {"a": {}}, "a", "x:recognises", "x:architecture", "x:model", "x:processor")
    """
    site.install("house-rules", "misplaced", source, group=GROUP)
    with pytest.raises(AdapterError, match=r"entry-point group vlm_lora_plugin\.adapters"):
        AdapterManager().family("monkey")


def test_a_policy_is_registered_by_hand_too():
    class Policy:
        @hookimpl(wrapper=True)
        def deepspeed_config(self):
            config = yield
            return {**config, "house": True}

    manager = AdapterManager(discover=False)
    assert manager.register(Policy()) is None
    family = manager.register(Bare("one"))
    assert manager.deepspeed_config(family, RECIPE, Hardware(gpus=1, gpu_memory=24)) == {"house": True}


def test_a_policy_that_fails_in_a_hook_is_named_with_its_distribution(site):
    site.install("house-rules", "no_embeddings", NO_EMBEDDINGS.replace("patches = yield", "1 / 0; yield"), group=GROUP)
    manager = AdapterManager()
    family = manager.register(Bare("one"))
    message = r"wrap_forward of the policy no_embeddings of house-rules 1\.0 raised ZeroDivisionError"
    with pytest.raises(AdapterError, match=message):
        manager.wrap_forward(family, nn.Identity(), RECIPE)
    assert len(manager.select_trainable(family, nn.Identity(), RECIPE).rules) == 2


def test_an_adapters_failure_inside_a_policy_is_the_adapters(site):
    class Failing(Bare):
        @hookimpl
        def wrap_forward(self):
            raise ZeroDivisionError

    site.install("house-rules", "no_embeddings", NO_EMBEDDINGS, group=GROUP)
    manager = AdapterManager()
    family = manager.register(Failing("one"), name="adapter one")
    with pytest.raises(AdapterError, match="wrap_forward of the adapter one raised"):
        manager.wrap_forward(family, nn.Identity(), RECIPE)


def test_a_policy_that_forgets_to_return_the_answer_is_named(site):
    source = NO_EMBEDDINGS.replace("        return patches\n", "")
    site.install("house-rules", "no_embeddings", source, group=GROUP)
    manager = AdapterManager()
    message = r"wrapped by the policy no_embeddings of house-rules 1\.0\) returned a NoneType, not a Sequence"
    with pytest.raises(AdapterError, match=message):
        manager.wrap_forward(manager.register(Bare("one")), nn.Identity(), RECIPE)
