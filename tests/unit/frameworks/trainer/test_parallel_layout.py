"""What the processes of one job compare before they train."""

import json
from types import SimpleNamespace

from torch.utils.data import ConcatDataset
from transformers import TrainingArguments

from vlm_lora_plugin.frameworks.trainer.parallel_layout import ParallelLayout, common_ground


def ground(tmp_path, train=None, **options):
    arguments = TrainingArguments(str(tmp_path / "run"), report_to="none", use_cpu=True, **options)
    trainer = SimpleNamespace(args=arguments, train_dataset=train, eval_dataset=None)
    return json.loads(json.dumps(common_ground(trainer)))


def test_what_changes_the_result_is_compared(tmp_path):
    assert ground(tmp_path) == ground(tmp_path)
    assert ground(tmp_path) != ground(tmp_path, learning_rate=3e-4)
    assert ground(tmp_path) != ground(tmp_path, lr_scheduler_type="cosine")


def test_what_machines_have_in_their_own_way_is_not(tmp_path):
    assert ground(tmp_path) == ground(tmp_path, logging_steps=7, dataloader_num_workers=2, run_name="second")
    assert ground(tmp_path / "a") == ground(tmp_path / "b")  # the same name below other parents


def test_an_object_among_the_arguments_is_compared_by_its_type(tmp_path):
    class Plan:
        """Its text holds its address."""

    one, other = (ground(tmp_path, lr_scheduler_kwargs={"plan": Plan()}) for _ in range(2))
    assert one == other


def test_of_datasets_of_other_kinds_the_length_is_compared(tmp_path):
    assert ground(tmp_path, [1, 2])["training data"] == {"rows": 2}
    assert ground(tmp_path, ConcatDataset([[1], [2, 3]]))["training data"] == {"0": {"rows": 1}, "1": {"rows": 2}}


def test_a_division_reads_as_a_person_would_say_it():
    assert str(ParallelLayout(1)) == "1 process without ZeRO"
    assert str(ParallelLayout(2, 3)) == "2 processes under ZeRO-3"
