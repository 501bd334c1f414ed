"""Starting one process a device: ``vlm-lora train --gpus N`` runs itself under torchrun.

The processes run the very command line that the user typed. The first that fails ends all of them, and its exit
code becomes that of the command; a signal is passed on to all. They end when the command dies.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_lora_plugin.errors import HardwareError
from vlm_lora_plugin.parallel.children import become_safe, module_words
from vlm_lora_plugin.parallel.parent_death import as_launcher

if TYPE_CHECKING:
    from vlm_lora_plugin.recipe import Recipe

PROGRAM = "vlm_lora_plugin.cli"
CPU_VARIABLE, CPU = "DS_ACCELERATOR", "cpu"
"""DeepSpeed's own switch. Accelerate's, ACCELERATE_USE_CPU, makes it leave DeepSpeed out silently."""

SIGNALLED = 128
"""What a shell adds to a signal's number for an exit code."""


@dataclass(frozen=True)
class Launch:
    """How many processes are started where.

    Attributes:
        gpus: Processes of this node.
        nnodes: Nodes of the job.
        options: torchrun's own options for several nodes, by name: ``node-rank``, ``master-addr``, ``master-port``,
            ``rdzv-endpoint``, ``rdzv-id``, ``rdzv-backend``.
    """

    gpus: int
    nnodes: int = 1
    options: Mapping[str, str | int] | None = None

    @property
    def ranks(self) -> int:
        """Processes of all nodes."""
        return self.gpus * self.nnodes

    def arguments(self, command: Sequence[str]) -> list[str]:
        """Return torchrun's arguments for a command line of ``vlm-lora``."""
        given, program = self.options or {}, module_words(PROGRAM)
        where = ["--standalone"] if self.nnodes == 1 and not given else [f"--nnodes={self.nnodes}"]
        return [
            *where,
            f"--nproc-per-node={self.gpus}",
            "--monitor-interval=0.1",
            *(f"--{name}={value}" for name, value in given.items()),
            *(["--module", PROGRAM] if program == ["-m", PROGRAM] else program),
            *command,
        ]


def is_rank() -> bool:
    """Return whether this process was started by torchrun, or by another launcher that speaks its variables."""
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def first_rank() -> bool:
    """Return whether this process is the one that writes a job's results: rank 0, or the only one."""
    return not is_rank() or os.environ.get("RANK", "0") == "0"


def started_ranks() -> int:
    """Return the number of processes that this one was started among; 1 without a launcher."""
    return int(os.environ["WORLD_SIZE"]) if is_rank() else 1


def expected_ranks(recipe: Recipe) -> int:
    """Return how many processes a job will have: those started, or else what the recipe's hardware says."""
    if is_rank() or recipe.hardware is None:
        return started_ranks()
    return recipe.hardware.gpus * recipe.hardware.nodes


def wanted_launch(
    recipe: Recipe, gpus: int | None, nnodes: int | None, options: Mapping[str, str | int] | None = None
) -> Launch | None:
    """Return how a job is to be started, or None where this process can run it alone.

    Args:
        recipe: The resolved recipe; its hardware says how many devices there are where ``gpus`` does not.
        gpus: Processes of this node that the user asks for.
        nnodes: Nodes that the user asks for.
        options: torchrun's own options.

    Raises:
        HardwareError: The numbers contradict the recipe's hardware.
    """
    hardware = recipe.hardware
    for name, asked, key, known in (
        ("gpus", gpus, "hardware.gpus", hardware.gpus if hardware else None),
        ("nnodes", nnodes, "hardware.nodes", hardware.nodes if hardware else None),
    ):
        if asked is not None and known is not None and asked != known:
            raise HardwareError(
                f"--{name} is {asked}, {recipe.said(key)}",
                why="Its settings, global batch and sharding are made for that number.",
                fix=f"Leave --{name} out, or change the recipe's hardware.",
            )
    count = gpus or (hardware.gpus if hardware else 1)
    nodes = nnodes or (hardware.nodes if hardware else 1)
    sharded = hardware is not None and bool(hardware.zero_stage)
    if count * nodes == 1 and not sharded and not options:
        return None
    if nodes > 1 and not options:
        raise HardwareError(
            f"The job is for {nodes} nodes, and nothing says how they find each other",
            fix="Give --node-rank, --master-addr and --master-port on each, or --rdzv-endpoint; "
            "see docs/how-to/several-gpus-and-nodes.md.",
        )
    return Launch(count, nodes, options)


def check_devices(gpus: int) -> None:
    """Refuse more processes than this machine has devices.

    Raises:
        HardwareError: Names both numbers.
    """
    if on_cpu():
        return
    import torch

    devices = torch.cuda.device_count()
    if gpus > devices:
        raise HardwareError(
            f"{gpus} processes need {gpus} devices; this machine has {devices}",
            why="Two processes on one device would share its memory.",
            fix=f"Give --gpus {devices}." if devices else f"For processes on the CPU set {CPU_VARIABLE}={CPU}.",
        )


def free_port() -> str:
    """Return a port of this machine that nothing listens on."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def on_cpu() -> bool:
    """Return whether the user asked for processes on the CPU."""
    return os.environ.get(CPU_VARIABLE) == CPU


def check_deepspeed() -> None:
    """Refuse to run without DeepSpeed what needs it.

    Raises:
        HardwareError: It is not installed.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise HardwareError(
            "This job shards its model, and DeepSpeed is not installed",
            fix="pip install 'vlm-lora-plugin[deepspeed]', or set hardware.zero_stage: 0.",
        )


def check_started(recipe: Recipe) -> None:
    """Refuse to run on other hardware than the recipe's: another number of processes, or devices without its bf16.

    Raises:
        HardwareError: Names both.
    """
    hardware = recipe.hardware
    if hardware is None:
        return
    wanted, started = hardware.machine().ranks, started_ranks()
    if wanted != started:
        raise HardwareError(
            f"The recipe's hardware ({hardware.machine()}) has {wanted} devices, and {started} process"
            f"{'es were' if started > 1 else ' was'} started",
            why="Its settings, global batch and sharding are made for that number.",
            fix="Start it with vlm-lora train, which starts one process a device (swift sft: "
            f"NPROC_PER_NODE={hardware.gpus}), or change the recipe's hardware.",
        )
    import torch

    if hardware.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise HardwareError(
            f"{recipe.said('hardware.bf16')}, and {torch.cuda.get_device_name()} does not compute in bf16",
            fix="Set hardware.bf16: false, which trains in fp16.",
        )
    if hardware.zero_stage:
        if not is_rank():
            raise HardwareError(
                f"ZeRO-{hardware.zero_stage} needs a launcher, for one process, too",
                fix="Start the job with vlm-lora train, or under torchrun.",
            )
        check_deepspeed()


def swift_processes(plan: Launch | None) -> dict[str, str]:
    """Return the environment variables from which ``swift sft`` starts one process a device; none for None.

    Raises:
        HardwareError: The job is for several nodes, there are fewer devices, this process is one of several, or
            ``NPROC_PER_NODE`` says otherwise.
    """
    if is_rank():
        raise HardwareError(
            "ms-swift starts its processes itself, and this one was started by a launcher already",
            fix="Start one `vlm-lora train --framework swift` without torchrun; --gpus says how many it starts.",
        )
    if plan is None:
        return {}
    if plan.nnodes > 1 or plan.options:
        raise HardwareError(
            "A job on several nodes is not started in ms-swift by vlm-lora train",
            why="Its results are gathered by one process that sees every other.",
            fix="Leave --framework out, or run `vlm-lora swift sft` on each node with Swift's own NNODES, NODE_RANK, "
            "MASTER_ADDR, MASTER_PORT and NPROC_PER_NODE.",
        )
    own = os.environ.get("NPROC_PER_NODE")
    if own not in (None, str(plan.gpus)):
        raise HardwareError(
            f"NPROC_PER_NODE is {own}, the job is for {plan.gpus} processes",
            fix="Unset NPROC_PER_NODE, or change --gpus or the recipe's hardware.",
        )
    check_devices(plan.gpus)
    return {"NPROC_PER_NODE": str(plan.gpus), "MASTER_PORT": os.environ.get("MASTER_PORT") or free_port()}


def launch_job(plan: Launch, recipe: Recipe, command: Sequence[str]) -> int:
    """Check that a job can be started here, then :func:`launch` it.

    Raises:
        HardwareError: DeepSpeed is needed and missing, or there are fewer devices.
    """
    if recipe.hardware is not None and recipe.hardware.zero_stage:
        check_deepspeed()
    return launch(plan, command)


def launch(plan: Launch, command: Sequence[str]) -> int:
    """Run a command line of ``vlm-lora`` once for each device, and wait for all.

    Args:
        plan: How many processes where.
        command: The arguments, ``["train", ...]``.

    Returns:
        0, the exit code of the first process that failed, or 128 and the number of the signal that ended the job.

    Raises:
        HardwareError: There are fewer devices.
    """
    check_devices(plan.gpus)
    become_safe()
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    try:
        with as_launcher():
            run(parse_args(plan.arguments(command)))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else SIGNALLED - failure.exitcode
    except SignalException as error:
        return SIGNALLED + int(error.sigval)
    return 0
