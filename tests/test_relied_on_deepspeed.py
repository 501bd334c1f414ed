"""What is relied on in DeepSpeed, and in transformers about it, without their promise.

A failure here means that DeepSpeed has changed: look at what the test names before anything else. One process of its
own, alone in its group, makes an engine of each ZeRO stage and tells what it sees.
"""

import inspect
import json
import os
import socket
import subprocess
import sys

import pytest
from relied_on import relies_on

PROGRAM = r"""
import gc, json, sys
import deepspeed, torch
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
from torch import nn
from transformers import TrainingArguments
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

# All-reduce through shared memory, for inference on a CPU, takes a minute to build.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
facts = {"communicates before": deepspeed.comm.is_initialized()}
deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
facts["communicates"] = deepspeed.comm.is_initialized()

def document(stage):
    return {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": stage}, "bf16": {"enabled": True},
            "zero_allow_untested_optimizer": True}

def of(parameter):
    return {name: hasattr(parameter, name) for name in ("_hp_mapping", "_z3_optimizer", "ds_id")}

for stage in (1, 2, 3):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = model[1].weight.detach().clone()
    fact = facts[f"ZeRO-{stage}"] = {"plain": of(model[1].weight)}
    if stage == 3:
        deepspeed.zero.Init(module=nn.ParameterList(list(model.parameters())), config_dict_or_path=document(3))
        weight = model[1].weight
        part = weight.ds_tensor
        fact["sharded"] = {
            **of(weight), "numel": weight.numel(), "ds_shape": list(weight.ds_shape), "part": part.numel(),
            "ds_numel": part.ds_numel, "rank": weight.ds_zero_partition_rank,
            "part is the values": bool((part.flatten()[:6] == before.flatten().to(part.dtype)).all()),
        }
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0):
            fact["gathered"] = list(weight.shape)
            weight.data.fill_(2.0)
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=None):
            fact["changed"] = bool((weight == 2.0).all())
    parameters = list(model.parameters())
    groups = [{"params": parameters[:2], "lr": 1e-3}, {"params": parameters[2:], "lr": 1e-4}]
    adamw = torch.optim.AdamW(groups)
    engine, optimizer, _, _ = deepspeed.initialize(model=model, optimizer=adamw, config=document(stage))
    fact["engine"] = type(engine).__name__
    weight = model[1].weight
    fact["trained"] = of(weight)
    name = next(n for n in ("bit16_groups", "bf16_groups", "fp16_groups") if getattr(optimizer, n, None))
    owner = getattr(optimizer, "sub_group_to_group_id", None) or range(len(parameters))
    fact["groups"] = name
    fact["rates"] = {
        str(next(i for i, p in enumerate(parameters) if p is held)): optimizer.param_groups[owner[i]]["lr"]
        for i, group in enumerate(getattr(optimizer, name)) for held in group
    }
    safe_set_full_fp32_param(weight, torch.full((2, 3), 0.1))
    value = safe_get_full_fp32_param(weight)
    fact["fp32"] = [str(value.dtype), value.numel(), bool((value == torch.tensor(0.1)).all())]

facts["zero3 before"] = is_deepspeed_zero3_enabled()
arguments = TrainingArguments(sys.argv[1], deepspeed=document(3), use_cpu=True, bf16=True, report_to="none")
facts["zero3 known"] = is_deepspeed_zero3_enabled()
facts["zero3 configuration"] = deepspeed_config()["zero_optimization"]["stage"]
facts["of arguments"] = arguments.hf_deepspeed_config.config["zero_optimization"]["stage"]
kept = arguments.hf_deepspeed_config
del arguments
gc.collect()
facts["zero3 kept"] = is_deepspeed_zero3_enabled()
open(sys.argv[1] + "/facts.json", "w").write(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepspeed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    done = subprocess.run(command, env={**os.environ, **group}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "facts.json").read_text())


@relies_on("comm.is_initialized", "init_distributed")
def test_deepspeed_knows_whether_it_communicates(facts):
    assert facts["communicates before"] is False
    assert facts["communicates"] is True


@relies_on("DeepSpeedEngine")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_engine_is_known_by_its_name(facts, stage):
    assert facts[f"ZeRO-{stage}"]["engine"] == "DeepSpeedEngine"


@relies_on("parameter._hp_mapping", "parameter._z3_optimizer")
@pytest.mark.parametrize(("stage", "mark"), [(1, "_hp_mapping"), (2, "_hp_mapping"), (3, "_z3_optimizer")])
def test_a_parameter_is_marked_as_soon_as_an_engines_optimizer_keeps_it(facts, stage, mark):
    fact = facts[f"ZeRO-{stage}"]
    assert not any(fact["plain"].values())
    assert fact["trained"][mark]


@relies_on("parameter.ds_id")
def test_only_zero3_gives_a_parameter_an_id(facts):
    assert [facts[f"ZeRO-{stage}"]["trained"]["ds_id"] for stage in (1, 2, 3)] == [False, False, True]
    assert facts["ZeRO-3"]["sharded"]["ds_id"]
    assert not facts["ZeRO-3"]["sharded"]["_z3_optimizer"]


@relies_on("parameter.ds_shape", "parameter.ds_tensor", "parameter.ds_numel", "parameter.ds_zero_partition_rank")
def test_a_sharded_parameter_is_empty_and_tells_its_shape_and_part(facts):
    assert facts["ZeRO-3"]["sharded"] == {
        **{"_hp_mapping": False, "_z3_optimizer": False, "ds_id": True},
        **{"numel": 0, "ds_shape": [2, 3], "part": 6, "ds_numel": 6, "rank": 0, "part is the values": True},
    }


@relies_on("GatheredParameters", "zero.Init")
def test_gathering_gives_the_whole_and_keeps_what_the_modifier_writes(facts):
    assert facts["ZeRO-3"]["gathered"] == [2, 3]
    assert facts["ZeRO-3"]["changed"] is True


@relies_on("optimizer.bit16_groups", "optimizer.fp16_groups", "optimizer.sub_group_to_group_id")
@pytest.mark.parametrize(("stage", "attribute"), [(1, "bit16_groups"), (2, "bit16_groups"), (3, "fp16_groups")])
def test_an_optimizer_lists_the_models_parameters_group_by_group(facts, stage, attribute):
    assert facts[f"ZeRO-{stage}"]["groups"] == attribute
    assert facts[f"ZeRO-{stage}"]["rates"] == {"0": 1e-3, "1": 1e-3, "2": 1e-4, "3": 1e-4}


@relies_on("BF16_Optimizer.bf16_groups")
def test_the_optimizer_of_bf16_lists_them_too():
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

    assert "self.bf16_groups.append(" in inspect.getsource(BF16_Optimizer)


@relies_on("safe_get_full_fp32_param", "safe_set_full_fp32_param")
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_optimizers_fp32_values_are_read_and_written_whole(facts, stage):
    assert facts[f"ZeRO-{stage}"]["fp32"] == ["torch.float32", 6, True]


@relies_on("is_deepspeed_zero3_enabled", "deepspeed_config", "TrainingArguments.hf_deepspeed_config")
def test_transformers_knows_zero3_as_long_as_the_arguments_configuration_lives(facts):
    assert facts["zero3 before"] is False
    assert facts["zero3 known"] is True
    assert facts["zero3 configuration"] == facts["of arguments"] == 3
    assert facts["zero3 kept"] is True
