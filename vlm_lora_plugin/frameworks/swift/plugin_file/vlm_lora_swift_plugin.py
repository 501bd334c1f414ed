"""What ``--external_plugins`` names. Swift puts this file's folder on ``sys.path``, so it stands there alone."""

from vlm_lora_plugin.frameworks.swift.registration import register
from vlm_lora_plugin.parallel.parent_death import die_with_launchers

die_with_launchers()
register()
