"""DeepSpeed is imported by libraries in runs that do not use it; what it logs then must not reach any output."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from vlm_lora_plugin.parallel import deepspeed_log
from vlm_lora_plugin.parallel.deepspeed_log import LOGGER, quieten_deepspeed


@pytest.fixture
def say(monkeypatch, capsys):
    """Logs as a module of DeepSpeed's, and returns what reached standard output and standard error."""
    logger = logging.getLogger(LOGGER)
    for name, value in (("handlers", []), ("filters", []), ("level", logging.INFO), ("propagate", False)):
        monkeypatch.setattr(logger, name, value)

    def say(module, text="Setting ds_accelerator to cpu", level=logging.INFO):
        quieten_deepspeed()
        quieten_deepspeed()
        assert len(logger.filters) == 1
        logger.setLevel(logging.INFO)  # as LoggerFactory.create_logger does afterwards
        logger.addHandler(logging.StreamHandler(stream=sys.stdout))
        logger.handle(logger.makeRecord(LOGGER, level, f"/x/deepspeed/{module}.py", 1, text, (), None))
        return tuple(capsys.readouterr())

    return say


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_the_search_for_an_accelerator_is_left_out_where_deepspeed_is_not_used(say, level):
    assert say("real_accelerator", level=level) == ("", "")


def test_with_deepspeed_it_is_said_on_standard_error(say, monkeypatch):
    monkeypatch.setattr(deepspeed_log, "uses_deepspeed", lambda: True)
    assert say("real_accelerator") == ("", "Setting ds_accelerator to cpu\n")


def test_everything_else_that_it_says_goes_to_standard_error(say):
    assert say("engine", "something", logging.WARNING) == ("", "something\n")


def test_accelerates_switch_is_known(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert deepspeed_log.uses_deepspeed()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    assert not deepspeed_log.uses_deepspeed()


def test_deepspeed_logs_under_that_name():
    """Its package is not imported for this, which takes seconds."""
    folder = Path(find_spec("deepspeed").origin).parent
    assert f'create_logger(name="{LOGGER}"' in (folder / "utils" / "logging.py").read_text("utf-8")
    assert (folder / "accelerator" / f"{deepspeed_log._ACCELERATOR}.py").is_file()
