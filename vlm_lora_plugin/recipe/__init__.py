"""The recipe: one document that says what learns, how fast, and on what.

The same keys work in a YAML file, in Python and as ``--set key=value`` on the command line. A recipe that
names a preset starts from it; what the recipe says comes after and wins.
"""

from vlm_lora_plugin.recipe.data import DataSettings
from vlm_lora_plugin.recipe.document import RecipeDocument, RecipeSource, lay_over, parse_assignments, read_recipe
from vlm_lora_plugin.recipe.evaluation import EvaluationSettings
from vlm_lora_plugin.recipe.hardware import HardwareSettings
from vlm_lora_plugin.recipe.lora import LoraSettings
from vlm_lora_plugin.recipe.optimizer import OptimizerSettings
from vlm_lora_plugin.recipe.rules import Rule
from vlm_lora_plugin.recipe.schema import Recipe
from vlm_lora_plugin.recipe.sources import Source, SourceKind
from vlm_lora_plugin.recipe.training import TrainingSettings

__all__ = [
    "DataSettings",
    "EvaluationSettings",
    "HardwareSettings",
    "LoraSettings",
    "OptimizerSettings",
    "Recipe",
    "RecipeDocument",
    "RecipeSource",
    "Rule",
    "Source",
    "SourceKind",
    "TrainingSettings",
    "lay_over",
    "parse_assignments",
    "read_recipe",
]
