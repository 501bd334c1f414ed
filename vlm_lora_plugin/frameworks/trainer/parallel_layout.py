"""Several processes of one Trainer: how the job is divided among them, and what they must have in common."""

from __future__ import annotations

import json
from collections.abc import Sized
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.data import ConcatDataset
from transformers import TrainingArguments

from vlm_lora_plugin.checkpoint.data_record import DataRecord
from vlm_lora_plugin.data.dataset import ConversationDataset
from vlm_lora_plugin.parallel.agreement import check_ranks_agree, several_ranks
from vlm_lora_plugin.parallel.heartbeat import start_heartbeat

if TYPE_CHECKING:
    from transformers import Trainer

    from vlm_lora_plugin.prepared.model import VlmLoraPeftModel

OF_EACH_RANK = frozenset(
    {
        "output_dir",
        "run_name",
        "project",
        "report_to",
        "disable_tqdm",
        "local_rank",
        "deepspeed",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "resume_from_checkpoint",
        "ddp_timeout",
        "use_cpu",
        "dataloader_num_workers",
        "dataloader_pin_memory",
        "dataloader_persistent_workers",
        "dataloader_prefetch_factor",
    }
)
"""TrainingArguments that machines may have in their own way: they change no number. DeepSpeed's settings
may be a path here; what stands in the file is compared."""

_REPORTING = ("logging_", "hub_", "push_to_hub", "trackio_")
"""Beginnings of the names of further ones."""


@dataclass(frozen=True)
class ParallelLayout:
    """How a job is divided among processes, which decides what its checkpoints are made of.

    Attributes:
        processes: Of all machines.
        zero_stage: DeepSpeed's; 0 is a plain process, or DistributedDataParallel.
    """

    processes: int
    zero_stage: int = 0

    @classmethod
    def of(cls, trainer: Trainer) -> ParallelLayout:
        """Return that of a Trainer."""
        plugin = trainer.accelerator.state.deepspeed_plugin if trainer.is_deepspeed_enabled else None
        return cls(trainer.args.world_size, 0 if plugin is None else int(plugin.zero_stage))

    def __str__(self) -> str:
        """Return it in words: ``2 processes under ZeRO-3``."""
        many = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{many} under ZeRO-{self.zero_stage}" if self.zero_stage else f"{many} without ZeRO"


def check_trainers_agree(trainer: Trainer, prepared: VlmLoraPeftModel, **more: object) -> None:
    """Compare what all ranks' Trainers are about to do, and begin to watch over them; every rank must come here.

    It comes before anything in which ranks wait for each other, such as answering validation data: a rank that was
    given none would not come there.

    Args:
        trainer: This rank's.
        prepared: The model it trains.
        more: Further values by what they are, in which ranks must agree.

    Raises:
        TrainingError: A rank differs from rank 0; raised on all ranks alike.
    """
    if several_ranks():
        start_heartbeat(trainer.args.ddp_timeout)
        check_ranks_agree(prepared.vlm_lora.manifest, **common_ground(trainer), **more)


def common_ground(trainer: Trainer) -> dict[str, Any]:
    """Return what all ranks of a Trainer must agree in, by topic; JSON can hold it.

    Data files are read through; of a dataset of another kind only its length is known.
    """
    given = trainer.args.to_dict()
    names = [field.name for field in fields(TrainingArguments) if field.name in given]
    arguments = {
        name: _plain(given[name]) for name in names if name not in OF_EACH_RANK and not name.startswith(_REPORTING)
    }
    deepspeed = getattr(trainer.args, "hf_deepspeed_config", None)
    return {
        "arguments": arguments,
        "deepspeed": dict(deepspeed.config) if deepspeed is not None else {},
        "training data": _described(trainer.train_dataset),
        "validation data": _described(trainer.eval_dataset),
        "output folder": Path(str(trainer.args.output_dir)).name,  # machines may mount its parents elsewhere
    }


def _plain(value: object) -> Any:
    """Return a value as JSON holds it; in place of an object the name of its type, as its text may be its address."""
    return json.loads(json.dumps(value, default=lambda found: type(found).__qualname__))


def _described(data: Any) -> dict[str, Any]:
    if isinstance(data, ConversationDataset):
        return asdict(DataRecord(len(data), *data.fingerprint))
    if isinstance(data, dict):
        return {str(name): _described(part) for name, part in data.items()}
    if isinstance(data, ConcatDataset):
        return {str(number): _described(part) for number, part in enumerate(data.datasets)}
    return {"rows": len(data) if isinstance(data, Sized) else None}
