"""The section `training`."""

from __future__ import annotations

from pydantic import Field, field_validator

from vlm_lora_plugin.recipe.section import Section


class TrainingSettings(Section):
    """Batches and length of the run, in the names of transformers' TrainingArguments."""

    per_device_train_batch_size: int = Field(1, ge=1, description="Examples in one forward pass of one device.")
    per_device_eval_batch_size: int = Field(1, ge=1, description="The same, in evaluation.")
    gradient_accumulation_steps: int = Field(16, ge=1, description="Forward passes in one optimizer step.")
    global_batch_size: int | None = Field(
        None,
        ge=1,
        description="Examples in one optimizer step of all devices, for a recipe with `hardware`, which divides them; "
        "null: what one device would take by the two keys above.",
    )
    num_train_epochs: float = Field(1.0, gt=0, description="Times that every example is seen.")
    max_steps: int = Field(-1, ge=-1, description="Optimizer steps; overrides num_train_epochs unless it is -1.")
    logging_steps: int = Field(1, ge=1, description="Log every so many optimizer steps.")
    save_steps: int = Field(500, ge=1, description="Write a checkpoint every so many optimizer steps.")
    save_total_limit: int | None = Field(2, ge=1, description="Checkpoints kept, the newest; null: all.")
    eval_steps: int | None = Field(None, ge=1, description="Evaluate every so many steps; None: at each epoch's end.")
    dataloader_num_workers: int = Field(1, ge=0, description="Processes that read and decode images.")

    @field_validator("max_steps")
    @classmethod
    def _trains_at_all(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 steps train nothing; -1 leaves the length to num_train_epochs")
        return value
