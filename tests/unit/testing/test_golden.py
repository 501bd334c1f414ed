"""The golden checker with a family of nobody: it knows no family by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from toy_family import ToyAdapter, toy_batch, toy_model

from vlm_lora_plugin import hookimpl
from vlm_lora_plugin.contract import GoldenCase, TestSupport
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.testing.golden import check_case


def run_stages(model, inputs, names):
    output = model(**inputs)
    return output, {
        name: {"logits": output.logits, "ids": inputs["input_ids"]}[name] for name in names if name != "odd"
    }


class ReadingAdapter(ToyAdapter):
    """The toy family with a reader of reference numbers."""

    @hookimpl
    def describe_family(self):
        family = super().describe_family()

        def read(folder):
            if json.loads((folder / "config.json").read_text()) != {"toy": True}:
                return None
            recipes = {"theirs": "lora"}
            return GoldenCase(toy_model(), folder / "weights.safetensors", toy_batch(), run_stages, recipes)

        return replace(family, test_support=TestSupport(read_golden_case=read))


@pytest.fixture(autouse=True)
def family():
    adapter = ReadingAdapter()
    yield get_manager().register(adapter)
    get_manager().unregister(adapter)


@pytest.fixture
def case(tmp_path, family):
    """A case in the form that stores whole gradients; returns a function that writes it after a change."""
    model = toy_model()
    output = model(**toy_batch())
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    digests = {
        name: g
        if g is None
        else {
            "l2": g.double().norm().item(),
            "dot_cos": (g.double().flatten() * torch.arange(g.numel(), dtype=torch.float64).cos()).sum().item(),
        }
        for name, g in gradients.items()
    }
    names = [name for name, _ in model.named_parameters() if "_lora." in name or name.startswith("aligner.")]
    expected = {
        "loss": str(output.loss.item()),
        "grad": digests,
        "recipes": {"theirs": ["base_model.model." + name for name in names if name != "aligner.table"]},
    }
    tensors = {"logits": output.logits.detach(), "ids": toy_batch()["input_ids"]}
    tensors |= {f"grad.{name}": g for name, g in gradients.items() if g is not None}
    save_file(model.state_dict(), tmp_path / "weights.safetensors")

    def write(change=lambda expected, tensors: None):
        change(expected, tensors)
        (tmp_path / "config.json").write_text('{"toy": true}')
        (tmp_path / "expected.json").write_text(json.dumps(expected))
        save_file(tensors, tmp_path / "expected.safetensors")
        report = check_case(tmp_path)
        assert report.family == "toy"
        return [finding.what for finding in report.findings if not finding.passed]

    return write


def test_everything_agrees_with_itself(case):
    assert case() == []


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        (lambda e, t: e.update(loss="3.0"), ["loss"]),
        (lambda e, t: t["logits"].mul_(1.01), ["logits"]),
        (lambda e, t: t["ids"].add_(1), ["ids"]),
        (lambda e, t: t.update(odd=torch.zeros(1)), ["odd"]),
        (lambda e, t: t["grad.lm_head.weight"].mul_(1.01), ["gradients, head: elements of 1"]),
        (lambda e, t: e["grad"]["lm_head.weight"].update(l2=0.1), ["gradients, head: norms of 1"]),
        (lambda e, t: e["grad"]["lm_head.weight"].update(dot_cos=9.0), ["gradients, head: dot products of 1"]),
        (lambda e, t: e["grad"].update({"lm_head.weight": None}), ["gradients, head: absence of 1"]),
        (lambda e, t: e["grad"].update(stranger={"l2": 1.0, "dot_cos": 1.0}), ["gradients"]),
        (lambda e, t: (e["grad"].pop("lm_head.weight"), t.pop("grad.lm_head.weight")), ["gradients"]),
        (lambda e, t: e["recipes"]["theirs"].append("lm_head.weight"), ["recipe theirs"]),
        (lambda e, t: e["recipes"].update(unheard=[]), ["recipe unheard"]),
    ],
)
def test_each_difference_is_found_where_it_is(case, change, missed):
    assert case(change) == missed


def test_a_case_whose_model_fails_is_a_miss(case, monkeypatch):
    """It must not stop the cases behind it."""

    def fail(*args):
        raise RuntimeError("sizes of tensors must match")

    monkeypatch.setattr("vlm_lora_plugin.testing.golden.compare_tensors", fail)

    assert case() == ["case"]


def test_recipes_may_stand_in_another_case(case, tmp_path):
    def move(expected, tensors):
        (tmp_path / "other.json").write_text(json.dumps({"recipes": {"theirs": ["lm_head.weight"]}}))
        del expected["recipes"]
        expected["recipes_same_as"] = "other.json"

    assert case(move) == ["recipe theirs"]
