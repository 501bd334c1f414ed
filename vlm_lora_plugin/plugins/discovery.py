"""The installed entry points: read in a fixed order, without importing what they point to."""

from __future__ import annotations

import os
from collections import defaultdict
from importlib.metadata import EntryPoint, entry_points

ENTRY_POINT_GROUP = "vlm_lora_plugin.adapters"
POLICY_ENTRY_POINT_GROUP = "vlm_lora_plugin.policies"
OWN_DISTRIBUTION = "vlm-lora-plugin"
DISABLE_VARIABLE = "VLM_LORA_DISABLE_PLUGINS"


def installed_entries(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group by name, sorted by name and then by distribution.

    A name with several entry points is claimed by several distributions. With ``VLM_LORA_DISABLE_PLUGINS``
    set to anything but an empty string, ``0``, ``false`` or ``no``, only this distribution's are returned.
    """
    disabled = os.environ.get(DISABLE_VARIABLE, "").lower() not in {"", "0", "false", "no"}
    found: defaultdict[str, list[EntryPoint]] = defaultdict(list)
    seen = set()
    for entry in sorted(entry_points(group=group), key=lambda e: (e.name, distribution_of(e))):
        claim = (entry.name, entry.value, distribution_of(entry))
        if claim in seen or (disabled and not is_own(entry)):
            continue
        seen.add(claim)
        found[entry.name].append(entry)
    return dict(found)


def distribution_of(entry: EntryPoint) -> str:
    """Return name and version of the distribution that ships an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def is_own(entry: EntryPoint) -> bool:
    """Return whether an entry point ships with this package."""
    return entry.dist is not None and entry.dist.name.replace("_", "-").lower() == OWN_DISTRIBUTION
