"""Adapters and policies are found as installed distributions; a broken one stops only who needs it."""

import subprocess
import sys

import pytest
from plugin_sources import HARDWARE, RECIPE, adapter, family_of, model_of
from torch import nn

from vlm_lora_plugin import hookimpl
from vlm_lora_plugin.contract import LoadRequest
from vlm_lora_plugin.errors import AdapterError, ModelError, SelectionError
from vlm_lora_plugin.plugins.manager import AdapterManager


def test_the_own_family_is_found_as_an_installed_entry_point():
    names = [record.name for record in AdapterManager().records() if record.builtin]
    assert "monkey" in names
    assert AdapterManager().records()[0].distribution.startswith("vlm-lora-plugin ")


def test_an_installed_adapter_is_found_and_asked(site):
    site.install("tiny-adapter", "tiny", adapter("tiny"))
    manager = AdapterManager()
    assert "tiny" in manager.names()
    assert manager.family_of_model(model_of("tiny")).title == "tiny"


def test_nothing_is_imported_before_it_is_needed(site):
    site.install("tiny-adapter", "tiny", adapter("tiny"))
    manager = AdapterManager()
    assert manager.names()
    assert "tiny" not in sys.modules
    manager.family("tiny")
    assert "tiny" in sys.modules


def test_listing_adapters_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from vlm_lora_plugin import get_manager; assert get_manager().records();"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_a_broken_adapter_does_not_stop_the_others(site):
    site.install("a-broken", "a_broken", "raise RuntimeError('no such library')", version="2.3")
    site.install("tiny-adapter", "tiny", adapter("tiny"))
    assert AdapterManager().family_of_model(model_of("tiny")).name == "tiny"


def test_a_broken_adapter_is_listed_with_its_traceback(site):
    site.install("a-broken", "a_broken", "raise RuntimeError('no such library')", version="2.3")
    record = next(record for record in AdapterManager().records() if record.name == "a_broken")
    assert record.distribution == "a-broken 2.3"
    assert "RuntimeError: no such library" in record.error


def test_who_needs_a_broken_adapter_gets_its_traceback(site):
    site.install("a-broken", "a_broken", "import not_there_at_all")
    with pytest.raises(AdapterError, match=r"a_broken of a-broken 1\.0 cannot be used(.|\n)*not_there_at_all"):
        AdapterManager().family("a_broken")


def test_a_folder_that_only_a_broken_adapter_may_know_is_answered_with_that_adapter(site, tmp_path):
    site.install("a-broken", "a_broken", "import not_there_at_all")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="broken and could not be asked: a_broken"):
        AdapterManager().family_of_folder(tmp_path)


def test_an_adapter_that_fails_to_look_at_a_folder_does_not_stop_the_one_that_knows_it(site, tmp_path):
    failing = adapter("afailing").replace('(folder / "afailing").exists()', "1 / 0")
    site.install("afailing", "afailing", failing)
    site.install("tiny-adapter", "tiny", adapter("tiny"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ModelError, match=r"afailing \(recognises of the adapter afailing of afailing 1\.0 raised ZeroDivisionError"
    ):
        AdapterManager().family_of_folder(tmp_path)
    (tmp_path / "tiny").touch()
    assert AdapterManager().family_of_folder(tmp_path).name == "tiny"


def test_a_folder_that_two_families_recognise_is_refused_naming_both(site, tmp_path):
    site.install("one", "one", adapter("one"))
    site.install("two", "two", adapter("two"))
    for name in ("config.json", "one", "two"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(
        ModelError, match=r"recognised by the adapter one of one 1\.0, the adapter two of two 1\.0 \(2 in all\)"
    ):
        AdapterManager().family_of_folder(tmp_path)


def test_two_distributions_claiming_one_name_is_an_error_that_names_both(site):
    site.install("first-tiny", "tiny_a", adapter("tiny"), name="tiny", version="1.0")
    site.install("second-tiny", "tiny_b", adapter("tiny"), name="tiny", version="2.0")
    with pytest.raises(AdapterError, match=r"2 distributions claim this name: first-tiny 1\.0, second-tiny 2\.0"):
        AdapterManager().family("tiny")


def test_a_distribution_claiming_monkey_does_not_replace_the_own_adapter(site):
    site.install("other-monkey", "other", adapter("monkey"), name="monkey")
    with pytest.raises(AdapterError, match="other-monkey"):
        AdapterManager().family("monkey")


def test_the_same_distribution_seen_twice_on_the_path_is_one(site, tmp_path, monkeypatch):
    site.install("tiny-adapter", "tiny", adapter("tiny"))
    copy = tmp_path / "copy"
    copy.mkdir()
    (tmp_path / "tiny_adapter-1.0.dist-info").rename(tmp_path / "keep")
    for folder in (tmp_path, copy):
        target = folder / "tiny_adapter-1.0.dist-info"
        target.mkdir()
        for file in (tmp_path / "keep").iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(copy)
    assert AdapterManager().family("tiny").name == "tiny"


def test_third_party_plugins_can_be_left_out(site, monkeypatch):
    site.install("tiny-adapter", "tiny", adapter("tiny"))
    monkeypatch.setenv("VLM_LORA_DISABLE_PLUGINS", "1")
    assert AdapterManager().names() == [record.name for record in AdapterManager().records() if record.builtin]


def test_an_unknown_family_is_answered_with_the_nearest():
    with pytest.raises(AdapterError, match="Did you mean monkey"):
        AdapterManager().family("monky")


def test_an_entry_point_describing_another_name_is_refused(site):
    site.install("tiny-adapter", "tiny", adapter("other"))
    manager = AdapterManager()
    with pytest.raises(AdapterError, match="entry point tiny describes a family named other"):
        manager.family("tiny")
    assert "other" not in manager.families()


def test_an_adapter_with_a_misspelt_hook_is_refused(site):
    site.install("tiny-adapter", "tiny", adapter("tiny") + "\n    @hookimpl\n    def wrap_foward(model): ...\n")
    with pytest.raises(AdapterError, match="wrap_foward"):
        AdapterManager().family("tiny")


def test_an_adapter_asking_for_an_argument_that_the_hook_lacks_is_refused(site):
    site.install("tiny-adapter", "tiny", adapter("tiny") + "\n    @hookimpl\n    def wrap_forward(modell): ...\n")
    with pytest.raises(AdapterError, match="modell"):
        AdapterManager().family("tiny")


def test_an_adapter_registered_as_a_class_is_refused():
    with pytest.raises(AdapterError, match="is a class"):
        AdapterManager(discover=False).register(AdapterManager)


def test_an_adapter_that_describes_no_family_object_is_refused():
    class Wrong:
        @hookimpl
        def describe_family(self):
            return "tiny"

    with pytest.raises(AdapterError, match="returned a str"):
        AdapterManager(discover=False).register(Wrong())


class Adapter:
    """Answers with its own name, and counts how often it is asked."""

    def __init__(self, name):
        self.name, self.asked = name, 0

    @hookimpl
    def describe_family(self):
        return family_of(self.name)

    @hookimpl
    def deepspeed_config(self, recipe, hardware):
        self.asked += 1
        return {"name": self.name, "gpus": hardware.gpus}


def test_only_the_adapter_that_owns_the_model_is_asked():
    manager = AdapterManager(discover=False)
    one, two = Adapter("one"), Adapter("two")
    families = [manager.register(each) for each in (one, two)]
    assert manager.deepspeed_config(families[0], RECIPE, HARDWARE) == {"name": "one", "gpus": 1}
    assert (one.asked, two.asked) == (1, 0)


def test_registering_a_second_adapter_of_a_family_leaves_the_first_in_place():
    manager = AdapterManager(discover=False)
    first = Adapter("one")
    family = manager.register(first)
    with pytest.raises(AdapterError, match="Two adapters claim the family one"):
        manager.register(Adapter("one"))
    with pytest.raises(AdapterError, match="registered already"):
        manager.register(first)
    assert manager.deepspeed_config(family, RECIPE, HARDWARE)["name"] == "one"


def test_an_unregistered_adapter_is_gone():
    manager = AdapterManager(discover=False)
    one = Adapter("one")
    manager.register(one)
    manager.unregister(one)
    assert manager.families() == {}


def test_hooks_that_an_adapter_leaves_out_have_neutral_answers():
    class Bare:
        @hookimpl
        def describe_family(self):
            return family_of("bare")

    manager = AdapterManager(discover=False)
    family = manager.register(Bare())
    assert manager.select_trainable(family, nn.Identity(), RECIPE).rules == RECIPE.rules
    assert list(manager.wrap_forward(family, nn.Identity(), RECIPE)) == []
    assert manager.deepspeed_config(family, RECIPE, HARDWARE) == {}


def test_an_unexpected_error_in_a_hook_names_the_adapter_and_keeps_its_cause():
    class Failing(Adapter):
        @hookimpl
        def deepspeed_config(self, recipe, hardware):
            raise ZeroDivisionError("by nothing")

    manager = AdapterManager(discover=False)
    family = manager.register(Failing("failing"), name="adapter failing")
    message = "hook deepspeed_config of the adapter failing raised ZeroDivisionError: by nothing"
    with pytest.raises(AdapterError, match=message) as caught:
        manager.deepspeed_config(family, RECIPE, HARDWARE)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


FAILING_HOOK = """
    @hookimpl
    def select_trainable(model, recipe):
        return {}["no such key"]
"""


def test_an_installed_adapter_that_fails_in_a_hook_is_named_with_its_distribution_and_the_others_work(site):
    site.install("bad-hook", "bad_hook", adapter("bad_hook") + FAILING_HOOK, version="0.3")
    site.install("tiny-adapter", "tiny", adapter("tiny"))
    manager = AdapterManager()
    message = r"select_trainable of the adapter bad_hook of bad-hook 0\.3 raised KeyError"
    with pytest.raises(AdapterError, match=message):
        manager.select_trainable(manager.family("bad_hook"), nn.Identity(), RECIPE)
    assert manager.select_trainable(manager.family("tiny"), nn.Identity(), RECIPE).rules == RECIPE.rules


def test_a_refusal_that_an_adapter_raises_reaches_the_user_as_it_is():
    class Refusing(Adapter):
        @hookimpl
        def select_trainable(self):
            raise SelectionError("this model has no vision")

    manager = AdapterManager(discover=False)
    family = manager.register(Refusing("refusing"))
    with pytest.raises(SelectionError, match=r"^this model has no vision"):
        manager.select_trainable(family, nn.Identity(), RECIPE)


@pytest.mark.parametrize(
    ("hook", "call", "wanted"),
    [
        ("select_trainable", lambda m, f: m.select_trainable(f, nn.Identity(), RECIPE), "TrainableSelection"),
        ("wrap_forward", lambda m, f: m.wrap_forward(f, nn.Identity(), RECIPE), "Sequence"),
        ("deepspeed_config", lambda m, f: m.deepspeed_config(f, RECIPE, HARDWARE), "Mapping"),
    ],
)
def test_an_answer_of_the_wrong_type_names_the_adapter(hook, call, wanted):
    wrong = type("Wrong", (Adapter,), {hook: hookimpl(lambda self: 3)})
    manager = AdapterManager(discover=False)
    family = manager.register(wrong("wrong"), name="adapter wrong")
    with pytest.raises(AdapterError, match=f"{hook} of the adapter wrong returned a int, not a {wanted}"):
        call(manager, family)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise RuntimeError('no such library')", "no such library"),
        (adapter("bad") + "\n    @hookimpl\n    def wrap_foward(model): ...\n", "wrap_foward"),
        (adapter("bad") + "\n    @hookimpl\n    def wrap_forward(modell): ...\n", "modell"),
        (adapter("bad").replace("return Family(", "raise OSError('disk'); Family("), "OSError: disk"),
        (adapter("bad").replace('title="bad"', 'titel="bad"'), "titel"),
        (adapter("monkey"), "describes a family named monkey"),
    ],
    ids=["import", "misspelt hook", "wrong signature", "raises in describe_family", "wrong key", "other family's name"],
)
def test_a_broken_plugin_is_named_with_its_distribution_and_the_others_work(source, words, site, monkeypatch):
    site.install("bad-plugin", "bad", source, version="2.3")
    site.install("tiny-adapter", "tiny", adapter("tiny"))
    manager = AdapterManager()
    assert {"monkey", "tiny"} <= set(manager.families())
    record = next(record for record in manager.records() if record.name == "bad")
    assert record.distribution == "bad-plugin 2.3"
    assert words in record.error
    with pytest.raises(AdapterError, match=r"bad of bad-plugin 2\.3 cannot be used") as caught:
        manager.family("bad")
    assert words in caught.value.what
    assert "VLM_LORA_DISABLE_PLUGINS" in caught.value.fix
    monkeypatch.setenv("VLM_LORA_DISABLE_PLUGINS", "1")
    assert "bad" not in AdapterManager().names()


@pytest.mark.parametrize("raised", ["KeyError('vision_config')", "OSError('no such file')"])
def test_an_unexpected_error_of_a_familys_loader_names_the_adapter_and_its_distribution(site, tmp_path, raised):
    failing = adapter("tiny").replace('load_model="toy_family:load_model"', "load_model=broken")
    site.install(
        "tiny-adapter", "tiny", f"{failing}\n    def broken(request):\n        raise {raised}\n", version="3.1"
    )
    manager = AdapterManager()
    request = LoadRequest(folder=tmp_path)
    kind = raised.partition("(")[0]
    with pytest.raises(AdapterError, match=rf"load_model of the adapter tiny of tiny-adapter 3\.1 raised {kind}"):
        manager.load_model(manager.family("tiny"), request)


@pytest.mark.parametrize("raised", ["MemoryError()", "WeightsError('mlp is missing')", "OutOfMemoryError('of 80 GiB')"])
def test_an_answer_to_the_user_and_memory_that_ran_out_are_not_the_loaders_fault(site, tmp_path, raised):
    failing = adapter("tiny").replace('load_model="toy_family:load_model"', "load_model=broken")
    body = "def broken(request):\n        from vlm_lora_plugin.errors import WeightsError\n"
    body += f"        from torch import OutOfMemoryError\n        raise {raised}\n"
    site.install("tiny-adapter", "tiny", f"{failing}\n    {body}")
    manager = AdapterManager()
    with pytest.raises(Exception, match=r"^(mlp is missing|of 80 GiB)?$") as caught:
        manager.load_model(manager.family("tiny"), LoadRequest(folder=tmp_path))
    assert type(caught.value).__name__ == raised.partition("(")[0]
