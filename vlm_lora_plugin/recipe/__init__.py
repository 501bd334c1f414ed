"""The recipe: one document that says what learns, how fast, and on what.

The same keys work in a YAML file, in Python and as ``--set key=value`` on the command line. A recipe that
names a preset starts from it; what the recipe says comes after and wins.
"""

from vlm_lora_plugin.recipe.document import RecipeDocument, RecipeSource, lay_over, parse_assignments, read_recipe
from vlm_lora_plugin.recipe.schema import (
    DataSettings,
    EvaluationSettings,
    LoraSettings,
    OptimizerSettings,
    Recipe,
    Rule,
    TrainingSettings,
)
from vlm_lora_plugin.recipe.sources import Source, SourceKind

__all__ = [
    "DataSettings",
    "EvaluationSettings",
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
