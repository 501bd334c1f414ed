"""What a recipe may set in ``data.processor``: one option and the values that it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

OptionValue: TypeAlias = "bool | int | float | str"
"""What a processor's option may be."""

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}


@dataclass(frozen=True)
class ProcessorOption:
    """What users may set as ``data.processor.<name>`` in a recipe.

    The processor has its value as an attribute of the same name.

    Attributes:
        name: The key.
        description: What it does, for tables.
        type: ``int`` (a whole number), ``float`` (any number), ``bool`` or ``str``.
        least: The smallest number allowed; None for any.
        choices: The only values allowed; empty for any of the type.
    """

    name: str
    description: str
    type: type[bool] | type[int] | type[float] | type[str] = int
    least: float | None = None
    choices: tuple[OptionValue, ...] = ()

    def problem(self, value: OptionValue) -> str | None:
        """Return what is wrong with a value, the end of a sentence that begins with the key, or None.

        A whole number counts as a number, and ``true`` as neither.

        Example:
            >>> ProcessorOption("hd_num", "Most crops of an image.", least=1).problem(0)
            'is 0, less than 1'
            >>> ProcessorOption("resize", "How an image is resized.", type=str, choices=("fit", "crop")).problem("cut")
            'is cut, which is none of fit, crop'
        """
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = number if self.type is float else type(value) is self.type
        if not fits:
            return f"is {shown}, which is not {_WORDS[self.type]}"
        if self.choices and value not in self.choices:
            return f"is {shown}, which is none of {', '.join(map(str, self.choices))}"
        if self.least is not None and isinstance(value, (int, float)) and not value >= self.least:
            return f"is {shown}, less than {self.least:g}"
        return None
