"""The contract between the core and a family plugin: the four hooks, and what they exchange.

Nothing here imports torch, transformers or pydantic, so that listing families stays instant.
"""

from vlm_lora_plugin.contract.answers import Patch, TrainableSelection
from vlm_lora_plugin.contract.architecture import Architecture
from vlm_lora_plugin.contract.example import IMAGE_MARK, Example, Message, Role
from vlm_lora_plugin.contract.family import DataFormats, Family, LoadRequest, MixturePart, TestSupport
from vlm_lora_plugin.contract.golden import GoldenCase
from vlm_lora_plugin.contract.hookspecs import AdapterSpecs, hookimpl
from vlm_lora_plugin.contract.model import CarriesLora, CountsImages, SplicesImages, VisionLanguageModel
from vlm_lora_plugin.contract.options import OptionValue, ProcessorOption
from vlm_lora_plugin.contract.processor import MeasuringProcessor, Processor
from vlm_lora_plugin.contract.sizes import ComponentSize, ModelSize
from vlm_lora_plugin.vocabulary import COMPONENT_NAMES, MEANS, Component, ComponentName, Hardware, Kind, Means

__all__ = [
    "COMPONENT_NAMES",
    "IMAGE_MARK",
    "MEANS",
    "AdapterSpecs",
    "Architecture",
    "CarriesLora",
    "Component",
    "ComponentName",
    "ComponentSize",
    "CountsImages",
    "DataFormats",
    "Example",
    "Family",
    "GoldenCase",
    "Hardware",
    "Kind",
    "LoadRequest",
    "Means",
    "MeasuringProcessor",
    "Message",
    "MixturePart",
    "ModelSize",
    "OptionValue",
    "Patch",
    "Processor",
    "ProcessorOption",
    "Role",
    "SplicesImages",
    "TestSupport",
    "TrainableSelection",
    "VisionLanguageModel",
    "hookimpl",
]
