"""Plugins that are broken in any way stop only who needs them, are named, and never end a run as a success."""

from __future__ import annotations

import os
import signal
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from plugin_sources import HARDWARE, RECIPE, adapter, family_of, model_of
from toy_family import ARCHITECTURE, toy_model
from typer.testing import CliRunner

from vlm_lora_plugin import hookimpl
from vlm_lora_plugin.cli.app import app
from vlm_lora_plugin.contract import Component, Example, Family, Message, Patch, TrainableSelection
from vlm_lora_plugin.errors import AdapterError, ModelError
from vlm_lora_plugin.plugins import manager as managing
from vlm_lora_plugin.plugins.isolation import SECONDS_VARIABLE, guarded
from vlm_lora_plugin.plugins.manager import AdapterManager

ENDS = {
    "SystemExit(0)": "raise SystemExit(0)",
    "sys.exit()": "import sys; sys.exit()",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "BaseException": "raise BaseException('the end')",
    "a class of its own": "class End(BaseException): pass\nraise End",
    "CancelledError": "import asyncio; raise asyncio.CancelledError",
    "an error that cannot be printed": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\nraise E",
    "RecursionError": "def f(): f()\nf()",
    "SyntaxError": "def (",
    "NUL": "\x00",
    "a quit": "quit()",
    "a subclass of ours": "from vlm_lora_plugin.errors import VlmLoraError\nraise VlmLoraError('no')",
    "a warning": "raise UserWarning('w')",
}
"""What a module does when it is imported."""


ONLY_AT_IMPORT = ("SyntaxError", "NUL")
"""A file that is not Python ends nothing later: no function of it is ever called."""

PLACES = [
    pytest.param(where, source, id=f"{where}-{name}")
    for where in ("import", "describe_family")
    for name, source in ENDS.items()
    if where == "import" or name not in ONLY_AT_IMPORT
]


@pytest.mark.parametrize(("where", "source"), PLACES)
def test_what_ends_a_process_stops_only_who_needs_the_plugin(site, where, source):
    if where == "describe_family":
        inner = "".join(f"\n        {line}" for line in source.splitlines())
        source = adapter("bad").replace("        return Family(", f"{inner}\n        return Family(")
    site.install("bad-plugin", "bad", source, version="2.3")
    site.install("tiny-adapter", "tiny", adapter("tiny"))
    manager = AdapterManager()
    assert {"monkey", "tiny"} <= set(manager.families())
    assert manager.family_of_model(model_of("tiny")).name == "tiny"
    with pytest.raises(AdapterError, match=r"bad of bad-plugin 2\.3 cannot be used"):
        manager.family("bad")


@pytest.mark.parametrize("source", [ENDS["sys.exit()"], ENDS["KeyboardInterrupt"]], ids=["exit", "interrupt"])
def test_a_policy_that_ends_a_process_is_named(site, source):
    site.install("bad-policy", "bad", source, group="vlm_lora_plugin.policies")
    with pytest.raises(AdapterError, match=r"The policy bad of bad-policy 1\.0 cannot be used"):
        AdapterManager().families()


def with_manager(monkeypatch, manager):
    monkeypatch.setattr(managing, "get_manager", lambda: manager)


@pytest.mark.parametrize("source", ["import sys; sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_command_that_needs_the_plugin_does_not_end_as_a_success(site, source, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    site.install("bad-plugin", "bad", source)
    with_manager(monkeypatch, AdapterManager())
    found = CliRunner().invoke(app, ["inspect", str(folder)])
    assert found.exit_code == 2
    assert "bad" in found.output
    listed = CliRunner().invoke(app, ["adapters"])
    assert listed.exit_code == 0
    assert "bad-plugin" in listed.output


def test_a_library_that_ends_the_process_in_a_command_is_a_fault(monkeypatch):
    class Manager:
        def records(self):
            sys.exit(0)

    with_manager(monkeypatch, Manager())
    found = CliRunner().invoke(app, ["adapters"])
    assert found.exit_code == 1
    assert "test_broken_plugins has ended the process (SystemExit: 0)" in found.output.replace("\n", " ")


@pytest.fixture
def of_python():
    """Python's own handling of Ctrl-C, where a runner of tests has put another in its place."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupts:
    """An adapter in whose hook the user presses Ctrl-C, or which raises the same error itself."""

    def __init__(self, real):
        self.real = real

    @hookimpl
    def describe_family(self):
        return family_of("interrupts")

    @hookimpl
    def deepspeed_config(self):
        if self.real:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # until it arrives
                pass
        raise KeyboardInterrupt


@pytest.mark.parametrize(("real", "raised"), [(True, KeyboardInterrupt), (False, AdapterError)])
def test_the_users_ctrl_c_is_told_from_a_plugins(of_python, real, raised):
    before = signal.getsignal(signal.SIGINT)
    manager = AdapterManager(discover=False)
    family = manager.register(Interrupts(real))
    with pytest.raises(raised):
        manager.deepspeed_config(family, RECIPE, HARDWARE)
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_import_ends_the_command(of_python, site):
    source = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(5)\n"
    site.install("slow-plugin", "slow", source)
    with pytest.raises(KeyboardInterrupt):
        AdapterManager().families()


@pytest.mark.parametrize(
    "source",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "import threading; threading.Lock().acquire(); threading.Event().wait()",
        "import time\nwhile True:\n    try: time.sleep(60)\n    except Exception: pass",
        "import select; select.select([], [], [], 60)",
    ],
    ids=["sleep", "loop", "event", "swallows", "select"],
)
def test_a_plugin_that_hangs_at_import_is_given_up_and_named(site, monkeypatch, source):
    monkeypatch.setenv(SECONDS_VARIABLE, "0.3")
    site.install("hung-plugin", "hung", source)
    manager = AdapterManager()
    assert "monkey" in manager.families()
    with pytest.raises(AdapterError, match=r"hung of hung-plugin 1\.0 cannot be used(.|\n)*did not end within 0\.3 s"):
        manager.family("hung")
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_outside_of_the_main_thread_a_plugin_that_hangs_is_named(site, monkeypatch, capfd):
    monkeypatch.setenv(SECONDS_VARIABLE, "0.2")
    site.install("hung-plugin", "hung", "import time; time.sleep(2.8)\n" + adapter("hung").replace("\n    ", "\n"))
    worker = threading.Thread(target=lambda: AdapterManager().families())
    worker.start()
    worker.join()
    assert "The adapter hung of hung-plugin 1.0 is still being imported after 0.2 s" in capfd.readouterr().err


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=2),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.integers(), st.integers(), min_size=1, max_size=1),
    st.sampled_from([object(), int, len, ..., {"a": {1: 2}}, ("x", 3), {"lora": 3}, {"lora": {"a": object()}}]),
)  # fmt: skip
FIELDS = [field.name for field in fields(Family)]


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(FIELDS), WRONG)
def test_a_description_with_any_field_of_another_type_is_refused_or_right(name, value):
    described = replace(family_of("drawn"), **{name: value})

    class Drawn:
        @hookimpl
        def describe_family(self):
            return described

    manager = AdapterManager(discover=False)
    try:
        family = manager.register(Drawn(), name="adapter drawn of x 1")
    except AdapterError as error:
        assert "adapter drawn of x 1" in error.what  # noqa: PT017
        assert name in error.what  # noqa: PT017
        return
    assert family is described
    assert type(value) in {str, bool, dict, list, type(None), type(len), type} or value == ("x", 3) or callable(value)


ANSWERS = {
    "rules that are no rules": ("select_trainable", TrainableSelection(rules=({"means": "full"},))),
    "rules that are text": ("select_trainable", TrainableSelection(rules="all")),
    "patches that are text": ("wrap_forward", "patches"),
    "a patch that is none": ("wrap_forward", [Patch("a", "b", len), 3]),
    "a patch without a function": ("wrap_forward", [Patch("a", "b", "apply")]),
    "a patch without a name": ("wrap_forward", [Patch(None, "b", len)]),
    "a key that is no text": ("deepspeed_config", {"zero": {1: 2}}),
    "a value that YAML has not": ("deepspeed_config", {"zero": {"a": [object()]}}),
    "a document that contains itself": ("deepspeed_config", (lambda d: d.update(a=d) or d)({})),
}


@pytest.mark.parametrize(("hook", "answer"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_wrong_further_down_names_the_adapter_and_the_place(hook, answer):
    class Wrong:
        @hookimpl
        def describe_family(self):
            return family_of("wrong")

    setattr(Wrong, hook, hookimpl(lambda self: answer))
    manager = AdapterManager(discover=False)
    family = manager.register(Wrong(), name="adapter wrong")
    arguments = (RECIPE, HARDWARE) if hook == "deepspeed_config" else (toy_model(), RECIPE)
    with pytest.raises(AdapterError, match=f"{hook} of the adapter wrong returned"):
        getattr(manager, hook)(family, *arguments)


FUNCTIONS = {
    "recognises": ("yes", "is 'yes', not a bool"),
    "advise": ([1], r"\[0\] is 1, not a str"),
    "parse_record": (Example(messages=(Message("user", 3),)), r"messages\[0\]\.content is 3, not a str"),
    "read_mixture": ([Path("x")], r"\[0\] is PosixPath"),
    "write_tiny_model": ({1: 2}, "the key 1"),
}


@pytest.mark.parametrize(("name", "answer", "told"), [(key, *value) for key, value in FUNCTIONS.items()])
def test_a_function_of_a_description_that_answers_something_else_is_named(name, answer, told):
    family = family_of("wrong")
    given_function = lambda *_: answer  # noqa: E731
    groups = {"parse_record": "data_formats", "read_mixture": "data_formats", "write_tiny_model": "test_support"}
    if name in groups:
        family = replace(family, **{groups[name]: replace(getattr(family, groups[name]), **{name: given_function})})
    else:
        family = replace(family, **{name: given_function})
    with pytest.raises(AdapterError, match=rf"{name} of the family wrong returned what does not fit: .*{told}"):
        AdapterManager(discover=False).function(family, given_function)(None, None, None)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"components": (Component("legs", ("model",)),)}, r"components\[0\]\.name is 'legs'"),
        ({"components": ("language",)}, r"components\[0\] is 'language', not a Component"),
        ({"components": (Component("language", "model"),)}, r"components\[0\]\.prefixes is 'model', not a tuple"),
        ({"trunk": None}, "trunk is None"),
        ({"image_counter": 3}, "image_counter is 3"),
        ({"fixed_tables": ("table(",)}, r"'table\(' is not a regular expression"),
        ({"components": (Component("language", ("model",), blocks="(?R)"),)}, "not a regular expression"),
    ],
)
def test_an_architecture_that_is_wrong_further_down_is_named(toy, changed, told):
    family = replace(toy, architecture=lambda _: replace(ARCHITECTURE, **changed))
    with pytest.raises(AdapterError, match=told):
        AdapterManager(discover=False).architecture(family, toy_model())


def test_a_loader_that_ends_the_process_or_returns_half_a_model_is_named(tmp_path):
    class Half:
        named_parameters = None

        def encode(self):
            """Alone it is no processor."""

    manager = AdapterManager(discover=False)
    for load, told in ((lambda _: sys.exit(0), "raised SystemExit: 0"), (lambda _: Half(), "not a model: it has no")):
        family = replace(family_of("half"), load_model=load)
        with pytest.raises(AdapterError, match=told):
            manager.load_model(family, None)
    with pytest.raises(AdapterError, match=r"not a processor: it has no function encode_prompt"):
        manager.load_processor(replace(family_of("half"), load_processor=lambda _: Half()), None)


def test_a_folder_that_a_broken_look_ends_is_left_to_the_others(site, tmp_path):
    failing = adapter("ending").replace('(folder / "ending").exists()', "exit(0)")
    site.install("ending", "ending", failing)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"ending \(recognises of the adapter ending of ending 1\.0 raised SystemExit"):
        AdapterManager().family_of_folder(tmp_path)


def test_what_is_raised_as_usual_stays_what_it_is():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)
