"""``swift sft`` and an unmodified Trainer, given the same job, do the same to the last bit."""

import json
from dataclasses import replace

import pytest

from vlm_lora_plugin.parity.compare import compare

pytestmark = pytest.mark.xdist_group("parity")

PRESETS = {
    "monkey": ("lora", "lora-only", "lora+llm", "lora+llm-lora"),
    "omnilmm": ("lora", "lora-text", "lora+vision"),
    "xcomposer2_4khd": ("lora", "lora-low-memory", "lora+separators", "lora+projector", "full-llm", "full"),
    "xcomposer2_5": ("lora", "full"),
    "xcomposer2": ("lora",),
}
OF_EACH = [(family, preset) for family, presets in PRESETS.items() for preset in presets]


@pytest.fixture(scope="module")
def two_epochs(make_job, both):
    """Eleven rows twice, four to a step: three steps an epoch, of which the last has three rows."""
    job = make_job(
        evaluate=True,
        max_steps=-1,
        num_train_epochs=2,
        gradient_accumulation_steps=4,
        dataloader_num_workers=2,
        save_steps=3,
        eval_steps=2,
    )
    return job, *both(job)


@pytest.fixture(scope="module")
def resumed(two_epochs, train):
    """Each framework from each framework's checkpoint after three of the six steps."""
    job, *runs = two_epochs
    found = {}
    for start in runs:
        for framework in ("trainer", "swift"):
            checkpoint = start.checkpoint.with_name("checkpoint-3")
            name = f"{framework} from {start.framework}"
            found[name] = train(framework, job, name=name.replace(" ", "-"), resume=checkpoint)
    return found


def test_two_epochs_with_workers_accumulation_and_evaluation_are_equal(two_epochs):
    _, trainer, swift = two_epochs
    assert compare(trainer, swift) is None


def test_what_is_compared_is_whole(two_epochs):
    _, trainer, swift = two_epochs
    for run in (trainer, swift):
        steps = run.steps()
        assert list(steps) == [1, 2, 3, 4, 5, 6]
        assert all({"loss", "grad_norm", "learning_rate"} <= values.keys() for values in steps.values())
        assert [step for step, values in steps.items() if "eval_loss" in values] == [2, 4, 6]
        passes = [event for event in run.events[0] if event["event"] == "batch" and event["mode"] == "train"]
        assert [sum(event["step"] == step for event in passes) for step in range(6)] == [4, 4, 3, 4, 4, 3]
        first, second = ({row for event in passes[half] for row in event["ids"]} for half in (slice(11), slice(11, 22)))
        assert first == second, "each epoch takes every row"
        assert len({event["random"] for event in passes}) == len(passes), "dropout is on"
        assert len(run.saved) == len(run.start["trainables"])


@pytest.mark.slow
@pytest.mark.parametrize("start", ["trainer", "swift"])
@pytest.mark.parametrize("framework", ["trainer", "swift"])
def test_a_run_that_was_resumed_at_three_ends_as_the_uninterrupted_one(two_epochs, resumed, framework, start):
    _, uninterrupted, _ = two_epochs
    run = resumed[f"{framework} from {start}"]
    assert run.start["step"] == 3
    assert list(run.steps()) == [4, 5, 6]
    late = {step: values for step, values in uninterrupted.steps().items() if step > 3}
    assert run.steps() == late
    assert run.saved == uninterrupted.saved


def test_two_processes_at_micro_batch_two_in_bf16_are_equal(make_job, both):
    trainer, swift = both(make_job("lora", dtype="bf16", processes=2, per_device_train_batch_size=2, evaluate=True))
    assert compare(trainer, swift) is None
    assert len(swift.events) == 2
    assert swift.start["dtype"] == "torch.bfloat16"
    one, other = ({row for e in events if e["event"] == "batch" for row in e["ids"]} for events in swift.events)
    assert one != other, "each process has rows of its own"


@pytest.fixture(scope="module")
def marked_rows(rows):
    """Rows with system messages, marks of the loss and keys to pass over, in both of ms-swift's forms."""
    path = rows[0].with_name("marked.jsonl")
    image = json.loads(rows[0].read_text("utf-8").splitlines()[0])["images"][0]
    talk = [("user", "<image>Which?"), ("assistant", "Red."), ("user", "And?"), ("assistant", "Blue."), ("user", "So?")]
    messages = [{"role": role, "content": text} for role, text in (*talk, ("assistant", "Both."))]
    marked = [dict(message) for message in messages]
    marked[1]["loss"], marked[5]["weight"] = True, 0
    pairs = [["<image>Which?", "Red."], ["And?", "Blue."]]
    lines = [
        {"messages": messages, "images": [image], "system": "In rhyme.", "id": 1},
        {"messages": marked, "images": [image]},
        {"query": "So?", "response": "Both.", "history": pairs, "images": [image], "system_prompt": "Be brief."},
        {"messages": marked[:4], "images": [image], "score": 0.5},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return path


@pytest.mark.parametrize(
    ("of", "end"),
    [
        ("monkey", "<|endoftext|>"),
        pytest.param("omnilmm", "</s>", marks=pytest.mark.slow),
        pytest.param("xcomposer2_5", "[UNUSED_TOKEN_145]", marks=pytest.mark.slow),
    ],
)
def test_system_messages_marks_and_the_last_answer_alone_are_equal(make_job, both, marked_rows, of, end):
    from vlm_lora_plugin import ConversationDataset, load
    from vlm_lora_plugin.frameworks.digests import tensor_digest

    job = make_job("lora", of=of, max_steps=2, gradient_accumulation_steps=4)
    job = replace(
        job, data=marked_rows, overrides={**job.overrides, "data": {"loss_on": "last", "ignore_keys": "score"}}
    )
    trainer, swift = both(job)
    assert compare(trainer, swift) is None
    family, recipe = job.check()
    _, processor = load(job.model, recipe, device="meta")
    data = list(ConversationDataset(job.data, processor, recipe.data, family))
    read = [processor.tokenizer.decode(row["labels"][row["labels"] != -100]) for row in data]
    assert [text.split(end)[:-1] for text in read] == [["Both."], ["Red."], ["Both."], ["Red.", "Blue."]]
    taken = {row for event in swift.events[0] if event["event"] == "batch" for row in event["ids"]}
    assert taken == {tensor_digest(row["input_ids"]) for row in data}


@pytest.fixture(scope="module")
def mixed(make_job, rows):
    """Eight of eleven rows and five drawn from three, with crops and a seed that are not the defaults."""
    mixture = rows[0].with_name("data.txt")
    mixture.write_text(f"{rows[0].name} 0.008\n{rows[1].name} 0.005\n", "utf-8")

    def make(**settings):
        job = make_job("lora", of="xcomposer2_4khd", **settings)
        over = {**job.overrides, "seed": 7, "data": {"processor": {"hd_num": 4}}}
        return replace(job, data=mixture, overrides=over)

    return make


def test_the_trainers_rows_of_a_mixture_are_those_of_the_recipes_seed_and_crops(mixed, train):
    from vlm_lora_plugin import ConversationDataset, load
    from vlm_lora_plugin.frameworks.digests import tensor_digest

    job = mixed(max_steps=1, gradient_accumulation_steps=1, per_device_train_batch_size=13)
    family, recipe = job.check()
    _, processor = load(job.model, recipe, device="meta")
    data = ConversationDataset(job.data, processor, recipe.data, family, seed=7)
    (batch,) = [event for event in train("trainer", job).events[0] if event["event"] == "batch"]
    assert sorted(batch["ids"]) == sorted(tensor_digest(row["input_ids"]) for row in data)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_mixture_is_equal(mixed, both, dtype):
    job = mixed(dtype=dtype, evaluate=True, max_steps=-1, num_train_epochs=2, dataloader_num_workers=2)
    assert compare(*both(job)) is None


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("family", "preset"), OF_EACH)
def test_every_preset_is_equal(make_job, both, family, preset, dtype):
    trainer, swift = both(make_job(preset, of=family, dtype=dtype, evaluate=True, per_device_train_batch_size=2))
    assert compare(trainer, swift) is None


def test_no_preset_is_left_out_of_the_matrix():
    from vlm_lora_plugin.plugins.manager import get_manager

    tried = {("xcomposer" if family.startswith("xcomposer") else family, preset) for family, preset in OF_EACH}
    families = get_manager().families().values()
    assert tried == {(family.name, preset) for family in families for preset in family.presets}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("micro_batch", [1, 2])
@pytest.mark.parametrize("preset", ["lora", "lora+llm-lora"])
def test_two_processes_are_equal(make_job, both, preset, micro_batch, dtype):
    job = make_job(
        preset,
        dtype=dtype,
        processes=2,
        per_device_train_batch_size=micro_batch,
        max_steps=-1,
        num_train_epochs=2,
        evaluate=True,
        dataloader_num_workers=1,
    )
    assert compare(*both(job)) is None


@pytest.mark.slow
def test_checkpointing_and_rates_by_group_are_equal(make_job, both, rows, model, tmp_path):
    job = make_job("lora+llm")
    table = {"default": 1e-4, "vision.lora": 5e-3, "aligner": 1e-3, "language": 1e-3}
    over = {**job.overrides, "gradient_checkpointing": {"vision": True, "language": True}}
    over["optimizer"] = {**over["optimizer"], "learning_rate": table, "lr_scheduler_type": "linear"}
    assert compare(*both(replace(job, overrides=over))) is None


def test_upstreams_decay_and_mean_are_equal_too(make_job, both):
    job = make_job("lora", optimizer={"decay": "upstream"}, gradient_accumulation_steps=4)
    job = replace(job, overrides={**job.overrides, "loss_mean": "micro_batch"})
    trainer, swift = both(job)
    assert compare(trainer, swift) is None
    for step, logged in swift.steps().items():
        passes = [event for event in swift.events[0] if event["event"] == "batch" and event["step"] == step - 1]
        losses = [float.fromhex(event["loss"]) for event in passes]
        assert sum(losses) / len(losses) == pytest.approx(logged["loss"], rel=1e-3)
