"""``vlm-lora train --gpus``: one process a device, and what becomes of exit codes and signals."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.parallel import launcher as launching
from vlm_lora_plugin.parallel.launcher import Launch, check_started, swift_processes, wanted_launch
from vlm_lora_plugin.recipe import Recipe

ON_CPU = {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
PLAIN = Recipe.parse({})
THREE = Recipe.parse({"hardware": {"gpus": 3, "gpu_memory": 24, "zero_stage": 3}})
TWO_NODES = Recipe.parse({"hardware": {"gpus": 8, "gpu_memory": 80, "nodes": 2, "zero_stage": 2}})
MEETING = {"node-rank": 1, "master-addr": "10.0.0.1", "master-port": 29500}

STUB = """
import os, sys, time
from pathlib import Path
rank = os.environ["RANK"]
Path(sys.argv[1], rank).write_text(str(os.getpid()))
{body}
"""


def launcher(folder, body):
    """The program of a launch whose processes run ``body`` in place of ``vlm-lora``."""
    (folder / "stub.py").write_text(STUB.format(body=textwrap.dedent(body)))
    code = (
        "import sys; from vlm_lora_plugin.parallel import launcher as launching\n"
        "launching.PROGRAM = 'stub'\n"
        "sys.exit(launching.launch(launching.Launch(2), [sys.argv[1]]))"
    )
    environment = {**os.environ, **ON_CPU, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], env=environment, stderr=subprocess.PIPE)


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def pids(folder):
    return [int((folder / str(rank)).read_text()) for rank in range(2)]


def test_one_device_is_trained_in_this_process():
    assert wanted_launch(PLAIN, None, None) is None
    assert wanted_launch(PLAIN, 1, None) is None


def test_the_recipes_hardware_says_how_many():
    assert wanted_launch(THREE, None, None) == Launch(3, 1, None)
    assert wanted_launch(PLAIN, 4, None) == Launch(4, 1, None)


def test_zero_on_one_device_needs_a_launcher_too():
    alone = Recipe.parse({"hardware": {"gpus": 1, "gpu_memory": 24, "zero_stage": 3}})
    assert wanted_launch(alone, None, None) == Launch(1, 1, None)


def test_options_for_several_nodes_reach_torchrun():
    found = wanted_launch(TWO_NODES, None, None, MEETING).arguments(["train", "model"])
    assert found == [
        "--nnodes=2",
        "--nproc-per-node=8",
        "--monitor-interval=0.1",
        "--node-rank=1",
        "--master-addr=10.0.0.1",
        "--master-port=29500",
        "--module",
        "vlm_lora_plugin.cli",
        "train",
        "model",
    ]


def test_torchrun_understands_the_arguments():
    from torch.distributed.run import parse_args

    one = parse_args(Launch(3).arguments(["train", "--gpus", "3"]))
    assert (one.nproc_per_node, one.standalone, one.training_script) == ("3", True, "vlm_lora_plugin.cli")
    assert one.training_script_args == ["train", "--gpus", "3"]
    two = parse_args(Launch(8, 2, {"rdzv-endpoint": "host:1", "rdzv-id": "x", "rdzv-backend": "c10d"}).arguments([]))
    assert (two.nnodes, two.rdzv_endpoint, two.rdzv_id) == ("2", "host:1", "x")


@pytest.mark.parametrize(
    ("recipe", "gpus", "nnodes", "message"),
    [
        (THREE, 2, None, "--gpus is 2, hardware.gpus is 3"),
        (THREE, None, 2, "--nnodes is 2, hardware.nodes is 1"),
        (TWO_NODES, None, None, "nothing says how they find each other"),
    ],
)
def test_contradictions_are_refused(recipe, gpus, nnodes, message):
    with pytest.raises(HardwareError, match=message):
        wanted_launch(recipe, gpus, nnodes)


def test_another_number_of_processes_is_refused(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(HardwareError, match=r"3x24\) has 3 devices, and 1 process was started"):
        check_started(THREE)
    check_started(PLAIN)


def test_a_device_without_the_recipes_bf16_is_refused(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    one = {"gpus": 1, "gpu_memory": 32}
    with pytest.raises(HardwareError, match=r"hardware\.bf16 is true, and Tesla V100 does not"):
        check_started(Recipe.parse({"hardware": one}))
    check_started(Recipe.parse({"hardware": {**one, "bf16": False}}))


def test_missing_deepspeed_is_said_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "0")
    check_started(THREE)
    monkeypatch.setattr(launching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(HardwareError, match=r"pip install 'vlm-lora-plugin\[deepspeed\]'"):
        check_started(THREE)


def test_more_processes_than_devices_are_refused(command, model, data, tmp_path):
    outcome = command("train", model, "--data", data, "-o", tmp_path / "out", "--gpus", 99, DS_ACCELERATOR="")
    assert outcome.code == 2
    assert "99 processes need 99 devices; this machine has" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_failing_process_ends_all_and_its_exit_code_is_the_commands(tmp_path):
    body = """
        if rank == "1":
            while not Path(sys.argv[1], "0").exists():
                time.sleep(0.05)
            sys.exit(3)
        time.sleep(600)
    """
    running = launcher(tmp_path, body)
    running.communicate(timeout=120)
    assert running.returncode == 3
    assert not any(alive(pid) for pid in pids(tmp_path))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all(tmp_path, sent):
    running = launcher(tmp_path, "time.sleep(600)")
    while not all((tmp_path / str(rank)).exists() and (tmp_path / str(rank)).read_text() for rank in range(2)):
        assert running.poll() is None
        time.sleep(0.1)
    running.send_signal(sent)
    running.communicate(timeout=120)
    assert running.returncode == 128 + sent
    assert not any(alive(pid) for pid in pids(tmp_path))


def test_all_done_is_zero(tmp_path):
    running = launcher(tmp_path, "")
    running.communicate(timeout=120)
    assert running.returncode == 0


def test_swift_is_told_how_many_processes_it_starts(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.delenv("NPROC_PER_NODE", raising=False)
    monkeypatch.setenv("MASTER_PORT", "29511")
    assert swift_processes(None) == {}
    assert swift_processes(Launch(3)) == {"NPROC_PER_NODE": "3", "MASTER_PORT": "29511"}
    monkeypatch.delenv("MASTER_PORT")
    assert int(swift_processes(Launch(3))["MASTER_PORT"]) > 0


@pytest.mark.parametrize(
    ("launch", "environment", "message"),
    [
        (Launch(8, 2, MEETING), {}, "several nodes is not started in ms-swift"),
        (Launch(3), {"NPROC_PER_NODE": "2"}, "NPROC_PER_NODE is 2, the job is for 3 processes"),
        (None, {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "ms-swift starts its processes itself"),
    ],
)
def test_what_swift_cannot_start_is_refused(monkeypatch, launch, environment, message):
    for name, value in {"DS_ACCELERATOR": "cpu", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(HardwareError, match=message):
        swift_processes(launch)


@pytest.mark.slow
def test_two_processes_train_the_same_in_swift_under_zero(command, model, data, tmp_path):
    for framework in ("trainer", "swift"):
        settings = ("--set", "hardware=2x24", "--preset", "lora+llm-lora", "--dtype", "fp32", "--max-steps", 2)
        output = ("-o", tmp_path / framework, "--framework", framework)
        outcome = command("train", model, "--data", data, *output, *settings, **ON_CPU)
        assert outcome.code == 0, outcome.out[-3000:] + outcome.err[-3000:]
    printed = (tmp_path / "swift/swift.log").read_text()
    assert "Using deepspeed: {" in printed
    assert "'stage': 3" in printed
    ours, theirs = (
        {file.name: file.read_bytes() for file in (tmp_path / name / "adapter").iterdir()}
        for name in ("trainer", "swift")
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in ours if name.endswith(".safetensors"))


@pytest.mark.slow
@pytest.mark.parametrize("hardware", [None, "2x24"])
def test_two_processes_train_an_adapter(command, model, data, tmp_path, hardware):
    output = tmp_path / "out"
    how = ("--gpus", 2) if hardware is None else ("--set", f"hardware={hardware}")
    outcome = command("train", model, "--data", data, "-o", output, *how, "--dtype", "fp32", "--max-steps", 2, **ON_CPU)
    assert outcome.code == 0, outcome.err
    assert (output / "adapter" / "adapter_config.json").is_file()
    assert [json.loads(line)["step"] for line in (output / "log.jsonl").read_text().splitlines()] == [1, 2]
    assert outcome.out.count("results") == 1, "only the first process speaks"
