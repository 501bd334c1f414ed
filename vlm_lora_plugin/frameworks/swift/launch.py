"""Swift's own command line with the plugin loaded. Imports neither torch nor Swift, so that it costs no time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import IO, Any

from vlm_lora_plugin.errors import RecipeError
from vlm_lora_plugin.frameworks.swift.location import plugin_file
from vlm_lora_plugin.frameworks.swift.main import MAIN, run_main
from vlm_lora_plugin.frameworks.swift.versions import check_version
from vlm_lora_plugin.parallel.children import become_safe, module_line
from vlm_lora_plugin.parallel.children import environment as child_environment
from vlm_lora_plugin.parallel.parent_death import as_launcher

PLUGINS = "--external_plugins"
"""Given on the command line, it is not taken from an ``args.json`` in a model or adapter folder: whatever that names,
Swift would import before anything else."""

_SHORTEST = len("--ext")  # argparse takes an unambiguous beginning of an option's name
_WITHOUT_MODEL = {"web-ui"}  # its arguments know of no plugins


_PAUSE = 0.2  # seconds
_FORWARDED = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""With SIGINT, where no terminal sends that to every process itself."""


def with_plugin(arguments: Sequence[str]) -> list[str]:
    """Return the arguments of a Swift command with the plugin among those that are loaded.

    A user's own plugins stay, also those in the YAML or JSON file that may be the first argument. Those that an
    ``args.json`` names do not: it may be a stranger's.

    Args:
        arguments: Everything after Swift's command.

    Raises:
        RecipeError: The file named first cannot be read, or a JSON object among the arguments holds a key twice.
    """
    found = list(arguments)
    _refuse_twice(found)
    ours = str(plugin_file())
    at = max((index for index, text in enumerate(found) if _is_plugins(text)), default=None)
    if at is None:
        return [*found, PLUGINS, *_plugins_of_file(found), ours]
    name, equals, value = found[at].partition("=")
    rest = [*([value] if equals else []), *found[at + 1 :]]
    named = takewhile(lambda text: not text.startswith("--"), rest)
    return found if ours in named else [*found[:at], name, ours, *rest]


def _is_plugins(text: str) -> bool:
    name = text.partition("=")[0].replace("-", "_").replace("__", "--", 1)
    return len(name) >= _SHORTEST and PLUGINS.startswith(name)


def _refuse_twice(arguments: Sequence[str]) -> None:
    """Refuse JSON in which a key stands twice, as in ``--model_kwargs '{...}'``: Swift would take the last one."""
    from vlm_lora_plugin.errors import DocumentError, DuplicateKeyError
    from vlm_lora_plugin.outside.json_text import parse_json

    for text in arguments:
        name, _, value = text.partition("=") if text.startswith("--") else ("", "", text)
        if value.lstrip().startswith("{"):
            try:
                parse_json(value)
            except DuplicateKeyError as error:
                raise RecipeError(f"{name or 'An argument of Swift'}: {error}") from None
            except DocumentError:  # a value in another form, for Swift to judge
                continue


def _plugins_of_file(arguments: Sequence[str]) -> list[str]:
    if not arguments or not arguments[0].endswith((".json", ".yaml", ".yml")):
        return []
    from vlm_lora_plugin.outside.files import reason
    from vlm_lora_plugin.outside.json_text import read_json
    from vlm_lora_plugin.outside.yaml_text import read_yaml

    file = Path(arguments[0])
    try:
        document: Any = read_json(file) if file.suffix == ".json" else read_yaml(file)
    except (OSError, ValueError) as error:
        raise RecipeError(f"Swift's config file {file} cannot be read: {reason(error)}") from None
    keys = document if isinstance(document, Mapping) else {}
    plugins: Any = next((value for key, value in keys.items() if _is_plugins(f"--{key}")), [])
    return list(map(str, plugins)) if isinstance(plugins, list) else [str(plugins)]


def swift_command(command: str, arguments: Sequence[str]) -> list[str]:
    """Return the program line that runs a Swift command with the plugin.

    Args:
        command: Swift's: ``sft``, ``infer``, ``export``, ...
        arguments: What follows it.

    Raises:
        SwiftError: ms-swift is not installed, or of a version that is not supported.
        RecipeError: A config file cannot be read.
    """
    check_version()
    plain = command.replace("_", "-") in _WITHOUT_MODEL
    return [*module_line(MAIN), command, *(arguments if plain else with_plugin(arguments))]


def become_swift(command: str, arguments: Sequence[str]) -> int:
    """Run a Swift command with the plugin in this very process, which then does nothing else.

    Swift's command line starts a process for the work itself; one more before it would only take time. Signals
    that are sent to this process alone are passed on to those that Swift has started, which it does not do.

    Args:
        command: Swift's: ``sft``, ``infer``, ``export``, ...
        arguments: What follows it.

    Returns:
        Swift's exit code; 128 + N when signal N ended its work, as a shell says it.

    Raises:
        SwiftError: ms-swift is not installed, or of a version that is not supported.
        RecipeError: A config file cannot be read.
    """
    line = swift_command(command, arguments)
    sys.argv = ["swift", *line[len(module_line(MAIN)) :]]
    become_safe()
    with _ForwardedSignals(), as_launcher():
        try:
            run_main()
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except SystemExit as end:
            if end.code is None or isinstance(end.code, int):
                return _exit_code(end.code or 0)
            raise  # with a message, which Python prints
    return 0


def _exit_code(code: int) -> int:
    return 128 - code if code < 0 else code


def run_swift(
    command: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    output: IO[bytes] | None = None,
    meanwhile: Callable[[], None] | None = None,
) -> int:
    """Run a Swift command with the plugin and wait for it.

    Signals that are sent to this process alone are passed on to Swift and to the processes it started:
    Swift's own launcher passes none on.

    Args:
        command: Swift's: ``sft``, ``infer``, ``export``, ...
        arguments: What follows it.
        environment: Further environment variables.
        output: Where what it prints goes, errors included; None for where this process prints.
        meanwhile: Called about five times a second until it is done.

    Returns:
        Swift's exit code; 128 + N when signal N ended it, as a shell says it.

    Raises:
        SwiftError: ms-swift is not installed, or of a version that is not supported.
        RecipeError: A config file cannot be read.
    """
    line = swift_command(command, arguments)
    errors = None if output is None else subprocess.STDOUT
    with as_launcher():
        process = subprocess.Popen(line, env=child_environment(environment), stdout=output, stderr=errors)
    with _ForwardedSignals():
        while True:
            try:
                code = process.wait(None if meanwhile is None else _PAUSE)
            except subprocess.TimeoutExpired:
                if meanwhile is not None:
                    _or_end_all(meanwhile, process)
            except KeyboardInterrupt:  # the terminal has told Swift as well, which then ends by itself
                continue
            else:
                return _exit_code(code)


def _or_end_all(meanwhile: Callable[[], None], process: subprocess.Popen[bytes]) -> None:
    """Do what is done meanwhile; when it fails, end Swift and all that it started first."""
    import psutil

    try:
        meanwhile()
    except Exception:
        with suppress(psutil.NoSuchProcess):
            for one in (*psutil.Process(process.pid).children(recursive=True), process):
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        process.wait()
        raise


class _ForwardedSignals:
    """While it lasts, signals that ask this process to end are passed on to all that descend from it.

    As long as there is none, they end this process.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # where Python handles no signals
        for name in _FORWARDED if sys.stdin.isatty() else (*_FORWARDED, "SIGINT"):
            if hasattr(signal, name):  # Windows lacks some
                number = getattr(signal, name)
                self._before[number] = signal.signal(number, self._forward)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        import psutil

        everyone = psutil.Process().children(recursive=True)
        if not everyone:
            signal.signal(number, self._before[number])
            signal.raise_signal(signal.Signals(number))
        for one in reversed(everyone):  # a launcher last: once it has ended, its children are no longer found
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)
