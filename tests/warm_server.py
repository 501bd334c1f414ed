"""Runs Python programs as forks of a process that has the libraries imported: ``python warm_server.py trainer|swift``.

A test that starts a program of ours spends most of its time on importing torch and what stands on it. Here only the
libraries are imported before the fork. This package, its adapters and whatever the program registers are imported after
it, in the fork alone, as in a process of its own. ms-swift changes transformers when it is imported, so programs that
import it have a server of their own.

Reads a request a line from standard input, in JSON, and answers with a line:

``line`` (what would follow the interpreter: ``-c CODE``, ``-m MODULE`` or a script, and arguments), ``environment``
(the whole of it), ``cwd``, ``stdout`` and ``stderr`` (files), ``ranks`` (how many forks; each but a lone one without a
launcher is told its rank as torchrun would), ``launched`` (whether to tell a lone one, too), ``patience`` (seconds that
ranks have to end by themselves after one failed with an exit code; after a signal they have none) and ``seconds`` (when
all are ended). The answer: ``statuses`` (exit code of each rank, or minus the signal) and ``seconds`` of each.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import time
import traceback

LIBRARIES = (
    *("torch", "torchvision", "torch.distributed", "accelerate", "deepspeed", "peft", "timm", "PIL.Image"),
    "deepspeed.runtime.zero.muon.original_muon",  # ZeRO imports it, and with it torch's compiler
    *("transformers.trainer", "transformers.generation.utils", "transformers.models.auto.modeling_auto"),
    *("transformers.models.clip.modeling_clip", "transformers.models.mistral.modeling_mistral"),
    *("transformers.models.llama.modeling_llama", "safetensors.torch", "matplotlib.backends.backend_agg"),
    *("matplotlib.figure", "rich.table", "rich.tree", "typer", "pluggy", "pydantic", "yaml", "tiktoken", "psutil"),
)
OF_SWIFT = (
    "swift.pipelines.train.sft",
    "swift.pipelines.infer.infer",
    "swift.pipelines.export.export",
    "swift.arguments",
)
"""What Swift's packages put off until something of theirs is used."""


def run(line: list[str]) -> None:
    """Run what would follow ``python`` on a command line, as the main module."""
    match line:
        case ["-c", code, *arguments]:
            sys.argv = ["-c", *arguments]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
        case ["-m", module, *arguments]:
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case [script, *arguments]:
            sys.argv = [script, *arguments]
            sys.path.insert(0, os.path.dirname(os.path.abspath(script)))
            runpy.run_path(script, run_name="__main__")


def become(request: dict, environment: dict[str, str]) -> None:
    """Turn this fork into the program; never returns."""
    status = 1
    try:
        for name, number in (("stdout", 1), ("stderr", 2)):
            file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(file, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(request["cwd"])
        first = [os.path.abspath(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        sys.path[:] = [*first, *(path for path in sys.path if path not in first)]
        importlib.invalidate_caches()
        run(request["line"])
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        from multiprocessing.util import _exit_function

        _exit_function()  # ends the workers of data loaders
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status & 0xFF)  # the interpreter's own end sometimes aborts on a CPU


def rank_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank."""
    world = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0, "MASTER_PORT": port}
    own = {"RANK": rank, "LOCAL_RANK": rank}
    return {**{name: str(value) for name, value in {**world, **own}.items()}, "MASTER_ADDR": "127.0.0.1"}


def serve(request: dict) -> dict:
    """Run the ranks of a request to their end."""
    ranks, begun, port = request["ranks"], time.monotonic(), 0
    if launched := ranks > 1 or request["launched"]:
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
    children = {}
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            become(request, request["environment"] | (rank_variables(rank, ranks, port) if launched else {}))
        children[child] = rank
    ended: dict[int, tuple[int, float]] = {}
    deadline = begun + request["seconds"]
    while len(ended) < ranks:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child in children:
            code = os.waitstatus_to_exitcode(status)
            ended[children[child]] = code, time.monotonic() - begun
            if code != 0:
                deadline = min(deadline, time.monotonic() + (request["patience"] if code > 0 else 0))
            continue
        if time.monotonic() > deadline:
            for child, rank in children.items():
                if rank not in ended:
                    os.kill(child, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.01)
    return {"statuses": [ended[rank][0] for rank in range(ranks)], "seconds": [ended[r][1] for r in range(ranks)]}


def main(kind: str) -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    for library in (*LIBRARIES, *(OF_SWIFT if kind == "swift" else ())):
        with contextlib.suppress(ModuleNotFoundError):  # the oldest versions lack some
            importlib.import_module(library)
    ours = {name for name in sys.modules if name.partition(".")[0].startswith("vlm_lora_")}
    if ours:
        raise RuntimeError(f"imported before the fork: {sorted(ours)}")
    for line in iter(sys.stdin.readline, ""):
        answers.write(json.dumps(serve(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
