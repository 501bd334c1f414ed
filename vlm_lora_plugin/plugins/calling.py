"""Asking one plugin one hook, and naming the plugin that is at fault when that fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import pluggy

from vlm_lora_plugin.contract import Family, Patch, TrainableSelection
from vlm_lora_plugin.errors import AdapterError, VlmLoraError
from vlm_lora_plugin.plugins.answers import JSON, problem_of
from vlm_lora_plugin.plugins.discovery import DISABLE_VARIABLE
from vlm_lora_plugin.plugins.isolation import guarded, told

_ANSWERS: Mapping[str, type] = {
    "describe_family": Family,
    "select_trainable": TrainableSelection,
    "wrap_forward": Sequence,
    "deepspeed_config": Mapping,
}
_INNER: Mapping[str, Any] = {"wrap_forward": Sequence[Patch], "deepspeed_config": JSON}

_FIX = f"Tell its author what --traceback shows; {DISABLE_VARIABLE}=1 leaves all third-party plugins out."

T = TypeVar("T")


def ask(
    manager: pluggy.PluginManager, hook: str, plugin: object, others: Sequence[object], arguments: Mapping[str, Any]
) -> Any:
    """Call a hook of one plugin, and of every policy around it.

    Args:
        manager: Where they are registered.
        hook: The hook's name.
        plugin: The adapter that is asked.
        others: Adapters that are not.
        arguments: The hook's arguments, by name.

    Raises:
        AdapterError: A function of the hook raised something unexpected, or the answer is of the wrong type;
            names whose function it was. A VlmLoraError is an answer to the user and passes as it is.
    """
    try:
        answer = guarded(lambda: manager.subset_hook_caller(hook, remove_plugins=others)(**arguments))
    except VlmLoraError as error:
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(f"Raised in the hook {hook} of {title(manager, _raising(manager, hook, plugin, error))}.")
        raise
    except Exception as error:  # a plugin may raise anything
        culprit = title(manager, _raising(manager, hook, plugin, error))
        raise AdapterError(f"The hook {hook} of {culprit} raised {told(error)}", fix=_FIX) from error
    problem = _problem(hook, answer)
    if problem is not None:
        policies = [
            title(manager, impl.plugin)
            for impl in getattr(manager.hook, hook).get_hookimpls()
            if impl.wrapper or impl.hookwrapper
        ]
        around = f" (wrapped by {', '.join(policies)})" if policies else ""
        raise AdapterError(
            f"The hook {hook} of {title(manager, plugin)}{around} returned {problem}",
            fix="See docs/reference/hooks.md for what each hook returns.",
        )
    return answer


def _problem(hook: str, answer: object) -> str | None:
    """Return what is wrong with a hook's answer, all the way down, or None."""
    wanted = _ANSWERS[hook]
    if not isinstance(answer, wanted) or isinstance(answer, (str, bytes)):
        return f"a {type(answer).__name__}, not a {wanted.__name__}"
    found = problem_of(answer, _INNER.get(hook, wanted))
    if found is None and isinstance(answer, TrainableSelection):
        from vlm_lora_plugin.recipe import Rule  # pydantic, which listing families does without

        found = problem_of(answer.rules, tuple[Rule, ...], "rules")
    return found and f"what does not fit: {found}"


def _raising(manager: pluggy.PluginManager, hook: str, asked: object, error: BaseException) -> object:
    """Return the plugin whose function of this hook is the innermost that the error came through."""
    owners = {
        impl.function.__code__: impl.plugin
        for impl in getattr(manager.hook, hook).get_hookimpls()
        if hasattr(impl.function, "__code__")
    }
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((owners[code] for code in reversed(frames) if code in owners), asked)


def attributed(call: Callable[[], T], what: str) -> T:
    """Call a function of a plugin's own.

    Args:
        call: What to call.
        what: Whose it is, the beginning of a sentence.

    Raises:
        AdapterError: It raised something unexpected. A VlmLoraError, and memory that ran out, pass as they are.
    """
    try:
        return guarded(call)
    except (VlmLoraError, MemoryError):
        raise
    except Exception as error:  # a plugin may raise anything
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        raise AdapterError(f"{what} raised {told(error)}", fix=_FIX) from error


def title(manager: pluggy.PluginManager, plugin: object) -> str:
    """Return a plugin's name: what it is, and the distribution that ships it."""
    name = manager.get_name(plugin) or ""
    return f"the {name}" if name and not name.isdigit() else f"the plugin {plugin!r}"
