"""What was trained is written whole and comes back equal, or not at all."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from toy_family import PRESETS, toy_batch, toy_config, toy_model
from warm import warm

import vlm_lora_plugin.checkpoint.save as saving
from vlm_lora_plugin import load_adapter, prepare
from vlm_lora_plugin.checkpoint.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_WEIGHTS, MANIFEST
from vlm_lora_plugin.checkpoint.manifest_file import read_manifest
from vlm_lora_plugin.errors import CheckpointError, ModelError
from vlm_lora_plugin.selection.manifest import sealed

WITH_PEFT = "lora+llm-lora"
WITHOUT_PEFT = "lora"


def tuned(preset=WITH_PEFT, **options):
    """A prepared model whose every trained parameter has moved."""
    model = prepare(toy_model(**options), preset)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in model.named_trainables().values():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def logits(model):
    with torch.no_grad():
        return model(**toy_batch()).logits


@pytest.fixture
def saved(toy, tmp_path):
    model = tuned()
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def edit_manifest(folder, change):
    """Change a manifest together with its digest, as another version of the package would have written it."""
    path = folder / MANIFEST
    document = json.loads(path.read_text())
    change(document)
    path.write_text(sealed(document))


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_comes_back_with_equal_logits(toy, tmp_path, preset, dtype):
    model = tuned(preset, dtype=dtype)
    model.save_pretrained(tmp_path)
    again = load_adapter(toy_model(dtype=dtype), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_loaded_model_can_go_on_learning(saved):
    model, folder = saved
    again = load_adapter(toy_model().train(), folder, is_trainable=True)
    assert again.training
    learning = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_base_may_be_a_folder(toy, tmp_path):
    base = toy_model(dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    model = tuned(dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(load_adapter(tmp_path / "base", tmp_path / "adapter")), logits(model))


def test_a_fresh_process_gives_equal_logits(toy, tmp_path):
    base = toy_model()
    base.save_pretrained(tmp_path / "base")
    model = tuned()
    model.save_pretrained(tmp_path / "adapter")
    program = """
import sys, torch
from toy_family import ToyAdapter, toy_batch
from vlm_lora_plugin import get_manager, load_adapter
get_manager().register(ToyAdapter())
model = load_adapter(sys.argv[1], sys.argv[2])
with torch.no_grad():
    torch.save(model(**toy_batch()).logits, sys.argv[3])
"""
    paths = [str(tmp_path / name) for name in ("base", "adapter", "logits.pt")]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    warm("trainer").run([sys.executable, "-c", program, *paths], check=True, env={**os.environ, "PYTHONPATH": path})
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_the_adapter_file_holds_peft_lora_alone_and_the_other_the_rest(saved):
    model, folder = saved
    trainable = model.vlm_lora.trainable
    adapter, base = load_file(folder / ADAPTER_WEIGHTS), load_file(folder / BASE_WEIGHTS)
    assert set(adapter) == {f"base_model.model.{p.name}" for p in trainable.of_peft()}
    assert set(base) == {p.name for p in trainable.of_base()}
    assert {tensor.dtype for tensor in (*adapter.values(), *base.values())} == {torch.float32}


@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_names_its_tensors_the_same(toy, tmp_path, use_dora):
    model = tuned({"components": {"language": "lora"}, "lora": {"use_dora": use_dora}})
    model.save_pretrained(tmp_path)
    by_peft = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = load_file(tmp_path / ADAPTER_WEIGHTS)
    assert all(torch.equal(tensor, by_peft[name]) for name, tensor in found.items())
    # Some versions of PEFT also take the base's own LoRA for theirs.
    assert not [name for name in by_peft.keys() - found.keys() if "fc_lora" not in name]


@pytest.mark.parametrize("use_dora", [False, True])
def test_plain_peft_loads_the_lora_part(toy, tmp_path, use_dora):
    model = tuned({"components": {"language": "lora"}, "lora": {"use_dora": use_dora}}, fresh_lora=False)
    model.save_pretrained(tmp_path)
    plain = PeftModel.from_pretrained(toy_model(fresh_lora=False), tmp_path)
    assert torch.equal(logits(plain), logits(model))


def test_plain_peft_warns_of_what_it_does_not_load(toy, tmp_path):
    tuned(WITH_PEFT).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"vlm_lora_plugin.load_adapter reads {BASE_WEIGHTS}, PEFT alone does not"):
        PeftModel.from_pretrained(toy_model(fresh_lora=False), tmp_path)


def test_a_recipe_without_peft_lora_has_an_empty_adapter_file(toy, tmp_path):
    tuned(WITHOUT_PEFT).save_pretrained(tmp_path)
    assert load_file(tmp_path / ADAPTER_WEIGHTS) == {}
    assert json.loads((tmp_path / ADAPTER_CONFIG).read_text())["peft_type"] == "LORA"


def test_a_recipe_with_peft_lora_alone_has_no_second_file(toy, tmp_path):
    tuned(WITH_PEFT).save_pretrained(tmp_path)
    tuned({"components": {"head": "lora"}}).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST])


def test_the_manifest_lists_what_is_trained(saved):
    model, folder = saved
    document = json.loads((folder / MANIFEST).read_text())
    assert {p["name"] for p in document["parameters"]} == model.vlm_lora.trainable.names
    assert document["recipe"] == model.vlm_lora.recipe.document()
    assert (document["family"], document["dtype"], document["seed"]) == ("toy", "float32", 42)


def test_a_state_dict_is_written_instead_of_the_models_tensors(saved, tmp_path):
    model, _ = saved
    state = {f"module.{name}": tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "other", state_dict=state)
    found = load_file(tmp_path / "other" / BASE_WEIGHTS)
    assert torch.equal(found["aligner.query"], model.named_trainables()["aligner.query"] + 1)


@pytest.mark.parametrize("name", ["lora_A.default.weight", "query"])
def test_an_empty_tensor_is_refused_and_nothing_is_written(saved, tmp_path, name):
    model, _ = saved
    state = {key: torch.empty(0) if key.endswith(name) else tensor for key, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"empty.*\(0,\)"):
        model.save_pretrained(tmp_path / "other", state_dict=state)
    assert not (tmp_path / "other").exists()


def test_a_missing_tensor_is_refused(saved, tmp_path):
    model, _ = saved
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("aligner.query")}
    with pytest.raises(CheckpointError, match=r"missing.*aligner\.query"):
        model.save_pretrained(tmp_path / "other", state_dict=state)


def test_an_interrupted_save_leaves_no_manifest_and_no_half_file(saved, monkeypatch):
    model, folder = saved
    before = load_file(folder / ADAPTER_WEIGHTS)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        model.save_pretrained(folder)
    monkeypatch.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items())
    assert not [path for path in folder.iterdir() if ".tmp-" in path.name]
    with pytest.raises(CheckpointError, match="interrupted"):
        load_adapter(toy_model(), folder)


def test_the_manifest_is_written_last(toy, tmp_path, monkeypatch):
    order = []
    for function in ("write_file", "write_tensors"):
        monkeypatch.setattr(saving, function, lambda path, _: order.append(path.name))
    tuned().save_pretrained(tmp_path)
    assert order[-1] == MANIFEST
    assert set(order) == {BASE_WEIGHTS, ADAPTER_CONFIG, ADAPTER_WEIGHTS, MANIFEST}


def test_other_processes_write_nothing(toy, tmp_path):
    tuned().save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"safe_serialization": False}, {"selected_adapters": ["other"]}])
def test_an_option_that_cannot_be_met_is_an_error(toy, tmp_path, options):
    with pytest.raises(CheckpointError):
        tuned().save_pretrained(tmp_path, **options)


def test_in_place_loading_restores_and_keeps_the_mode_for_training(saved):
    model, folder = saved
    fresh = prepare(toy_model().train(), WITH_PEFT)
    fresh.load_adapter(folder, "default", is_trainable=True)
    assert fresh.training
    assert torch.equal(logits(fresh.eval()), logits(model))


def test_in_place_loading_for_use_switches_to_evaluation(saved):
    _, folder = saved
    model = prepare(toy_model().train(), WITH_PEFT)
    model.load_adapter(folder, "default")
    assert not model.training


def test_a_second_adapter_cannot_be_loaded(saved):
    model, folder = saved
    with pytest.raises(CheckpointError, match="one adapter"):
        model.load_adapter(folder, "second")


@pytest.mark.parametrize("file", [MANIFEST, BASE_WEIGHTS, ADAPTER_WEIGHTS])
def test_a_missing_file_is_an_error(saved, file):
    _, folder = saved
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=file):
        load_adapter(toy_model(), folder)


@pytest.mark.parametrize("file", [BASE_WEIGHTS, ADAPTER_WEIGHTS])
@pytest.mark.parametrize("size", [4, 200, -10])
def test_a_truncated_file_is_an_error(saved, file, size):
    _, folder = saved
    (folder / file).write_bytes((folder / file).read_bytes()[:size])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_adapter(toy_model(), folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("aligner.query"), r"missing: aligner\.query"),
        (lambda t: t.update(stranger=torch.zeros(1)), "not in the manifest: stranger"),
        (lambda t: t.update({"aligner.query": torch.zeros(1)}), r"another shape: aligner\.query"),
        (lambda t: t.update({"aligner.query": t["aligner.query"].half()}), r"not fp32: aligner\.query"),
    ],
)
def test_wrong_tensors_are_an_error_and_change_nothing(saved, change, words):
    _, folder = saved
    tensors = load_file(folder / BASE_WEIGHTS)
    change(tensors)
    save_file(tensors, folder / BASE_WEIGHTS)
    model = prepare(toy_model(), WITH_PEFT)
    before = {name: parameter.clone() for name, parameter in model.named_trainables().items()}
    with pytest.raises(CheckpointError, match=words):
        model.load_adapter(folder)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_trainables().items())


def test_another_base_model_is_an_error_that_shows_the_difference(saved):
    _, folder = saved
    with pytest.raises(CheckpointError, match=r"another base model.*: rms_norm_eps: 1e-06 / 0\.001\n"):
        load_adapter(toy_model(rms_norm_eps=1e-3), folder)


def test_a_checkpoint_of_another_rank_is_an_error_that_shows_the_difference(saved):
    _, folder = saved
    words = r"lora\.r: 16 / 4, .*q_proj\.lora_A\.weight: lora \(peft_lora\) \[16, 16\] / lora \(peft_lora\) \[4, 16\]"
    with pytest.raises(CheckpointError, match=words):
        prepare(toy_model(), {"preset": WITH_PEFT, "lora": {"r": 4}}).load_adapter(folder)


def test_a_checkpoint_of_another_learning_rate_is_loaded(saved):
    model, folder = saved
    again = prepare(toy_model(), {"preset": WITH_PEFT, "optimizer": {"learning_rate": 0.5}})
    again.load_adapter(folder)
    assert torch.equal(logits(again), logits(model))


def test_a_prepared_base_is_an_error(saved):
    _, folder = saved
    with pytest.raises(ModelError, match="plain model"):
        load_adapter(prepare(toy_model(), WITH_PEFT), folder)


def test_a_checkpoint_of_another_recipe_is_an_error(saved):
    _, folder = saved
    with pytest.raises(
        CheckpointError, match=r"another recipe.*q_proj.lora_A.weight: lora \(peft_lora\) \[16, 16\] / None"
    ):
        prepare(toy_model(), WITHOUT_PEFT).load_adapter(folder)


def test_a_checkpoint_of_another_lora_scale_is_an_error(saved):
    _, folder = saved
    with pytest.raises(CheckpointError, match=r"lora_alpha: 32\.0 / 64\.0"):
        prepare(toy_model(), {"preset": WITH_PEFT, "lora": {"lora_alpha": 64}}).load_adapter(folder)


def test_a_missing_folder_is_an_error(toy, tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load_adapter(toy_model(), tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(digest="0" * 64), "digest"),
        (lambda d: d["parameters"].pop(), "digest"),
        (lambda d: d.update(format_version=99), "format version 99"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d.pop("seed"), "seed"),
        (lambda d: d["parameters"][0].pop("kind"), "format"),
        (lambda d: d["recipe"].update(nonsense=1), "nonsense"),
        (lambda d: d.update(parameters=None), "format"),
        (lambda d: d.update(family="monkey"), "family monkey"),
        (lambda d: d["architecture"].pop("components"), "format"),
        (lambda d: d.update(architecture=[]), "format"),
    ],
)
def test_a_changed_manifest_is_an_error(saved, change, words):
    _, folder = saved
    edit_manifest(folder, change)
    with pytest.raises(CheckpointError, match=words):
        load_adapter(toy_model(), folder)


@pytest.mark.parametrize(
    ("key", "value"), [(("lora", "lora_alpha"), 33), (("lora", "r"), 17), (("optimizer", "learning_rate"), {"x": 1.0})]
)
def test_a_manifest_that_was_changed_by_hand_is_an_error(saved, key, value):
    _, folder = saved
    document = json.loads((folder / MANIFEST).read_text())
    document["recipe"][key[0]][key[1]] = value
    (folder / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="document_digest does not belong"):
        load_adapter(toy_model(), folder)


def test_keys_of_the_recipe_that_came_later_have_their_defaults(saved):
    """So that a job of an earlier version is resumed, and its recipe is not another one."""
    _, folder = saved
    whole = read_manifest(folder)

    def earlier(document):
        del document["recipe"]["loss_mean"], document["recipe"]["optimizer"]["decay"]
        del document["steps"], document["lineage"], document["files"], document["base_bytes"]
        document["format_version"] = 4

    edit_manifest(folder, earlier)
    manifest = read_manifest(folder)
    assert manifest.recipe == whole.recipe
    assert (manifest.steps, manifest.lineage) == (None, ())


@pytest.mark.parametrize("wild", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_loaded(saved, wild):
    _, folder = saved
    tensors = load_file(folder / BASE_WEIGHTS)
    tensors["aligner.query"].view(-1)[1] = wild
    save_file(tensors, folder / BASE_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"base_trainables.*not finite: aligner\.query"):
        load_adapter(toy_model(), folder)


def test_swapped_layers_are_an_error(saved):
    _, folder = saved
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    one, other = (f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_A.weight" for n in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"other files than were written: {ADAPTER_WEIGHTS}"):
        load_adapter(toy_model(), folder)


@pytest.mark.parametrize("version", [2, 3])
def test_a_manifest_from_before_knows_nothing_of_the_architecture_and_is_still_read(saved, version):
    model, folder = saved
    later = ("base_bytes", "files", "architecture", *(["base_weights"] if version == 2 else []))
    edit_manifest(folder, lambda d: [d.pop(key) for key in later] and d.update(format_version=version))
    again = load_adapter(toy_model(), folder)
    assert again.vlm_lora.manifest.format_version == 5
    assert torch.equal(logits(again), logits(model))


def test_a_checkpoint_of_a_model_with_other_parts_is_an_error(saved):
    _, folder = saved
    edit_manifest(folder, lambda d: d["architecture"]["components"][1]["prefixes"].append("tower.stem"))
    with pytest.raises(CheckpointError, match=r"other parts \(checkpoint / model\): aligner\.1: tower\.stem / None"):
        load_adapter(toy_model(), folder)


def test_other_targets_of_lora_in_a_newer_plugin_do_not_refuse_a_checkpoint(saved):
    _, folder = saved
    expected = load_adapter(toy_model(), folder).named_trainables()
    edit_manifest(folder, lambda d: d["architecture"]["components"][2].update(target_modules=["o_proj"]))
    found = load_adapter(toy_model(), folder).named_trainables()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("text", ["", "[]", "{", "null"])
def test_a_manifest_that_is_no_object_is_an_error(saved, text):
    _, folder = saved
    (folder / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError):
        load_adapter(toy_model(), folder)


def test_the_base_s_config_survives_saving_dtype_and_use(toy, tmp_path):
    from vlm_lora_plugin.selection.manifest import base_config

    base = toy_model()
    before = base_config(base.config)
    base.save_pretrained(tmp_path)
    again = type(base).from_pretrained(tmp_path, dtype=torch.bfloat16)
    again.config.use_cache = not again.config.use_cache
    assert base_config(again.config) == before
    assert base_config(toy_config(rope_theta=5e5)) != before
