"""What two checkpoints hold, compared bit by bit."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

FILES = ("adapter_model.safetensors", "base_trainables.safetensors")
LOGGED = ("step", "loss", "grad_norm", "learning_rate", "eval_loss")


def different_tensors(one: Path, other: Path) -> dict[str, float]:
    """Return the largest difference of every trained tensor that is not bitwise the same."""
    found = {}
    for name in FILES:
        assert (one / name).is_file() == (other / name).is_file()
        if (one / name).is_file():
            ours, theirs = load_file(one / name), load_file(other / name)
            assert ours.keys() == theirs.keys()
            different = (key for key in ours if not torch.equal(ours[key], theirs[key]))
            found |= {key: float((ours[key] - theirs[key]).abs().max()) for key in different}
    return found


def logged(checkpoint: Path) -> list[dict[str, float]]:
    """Return what was logged at each step, in full precision."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [{key: entry[key] for key in LOGGED if key in entry} for entry in history]
