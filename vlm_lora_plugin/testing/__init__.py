"""The contract kit: what every family plugin promises, as checks that need only the family's name.

``assert_adapter_contract("sketch")`` checks all of it from any test runner. With pytest, each promise is a test of
its own; see :mod:`vlm_lora_plugin.testing.plugin`.
"""

from vlm_lora_plugin.testing.contract import ContractError, assert_adapter_contract
from vlm_lora_plugin.testing.recording import Calls, numbered, recorded
from vlm_lora_plugin.testing.verdict import BrokenPromise, NotApplicable

__all__ = [
    "BrokenPromise",
    "Calls",
    "ContractError",
    "NotApplicable",
    "assert_adapter_contract",
    "numbered",
    "recorded",
]
