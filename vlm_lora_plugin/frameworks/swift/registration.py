"""What Swift is told when it imports the plugin file."""

from __future__ import annotations

from vlm_lora_plugin.frameworks.swift.hooks import install_hooks
from vlm_lora_plugin.frameworks.swift.names import JOB_CALLBACK, RECORDER, TUNER
from vlm_lora_plugin.frameworks.swift.refusals import refuse_in_one_message
from vlm_lora_plugin.frameworks.swift.versions import check_version
from vlm_lora_plugin.outside.display import never_crash
from vlm_lora_plugin.parallel.deepspeed_log import quieten_deepspeed
from vlm_lora_plugin.plugins.manager import get_manager


def register() -> None:
    """Tell Swift of the tuner and of every family; of a fallback only once the run's folder is known to be its own.

    A second call changes nothing.

    Raises:
        SwiftError: ms-swift is missing, or of a version that is not supported.
    """
    never_crash()  # this process was not started by our command line
    quieten_deepspeed()
    refuse_in_one_message()
    check_version()
    from swift.callbacks import callbacks_map
    from swift.tuner_plugin import tuners_map

    from vlm_lora_plugin.frameworks.swift.model_types import register_family
    from vlm_lora_plugin.frameworks.swift.tuner import VlmLoraTuner

    for family in get_manager().working_families().values():
        if not family.fallback:
            register_family(family)
    tuners_map[TUNER] = VlmLoraTuner
    callbacks_map[JOB_CALLBACK] = _job
    callbacks_map[RECORDER] = _recorder
    install_hooks("registering")


def _job(args: object, trainer: object) -> object:
    """Return what writes a job's results; Swift's table of callbacks holds functions of arguments and trainer."""
    from vlm_lora_plugin.frameworks.swift.job_callback import JobCallback

    return JobCallback(trainer)


def _recorder(args: object, trainer: object) -> object:
    """Return what writes down a run."""
    from vlm_lora_plugin.frameworks.recorder import recorder_of_environment

    return recorder_of_environment()
