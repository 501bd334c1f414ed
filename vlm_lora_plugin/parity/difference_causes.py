"""Kinds of difference, in the order in which one brings about the next, and what is likely behind each."""

from __future__ import annotations

from enum import Enum


class Kind(str, Enum):
    """Where two runs part first."""

    processes = "number of processes"
    trainables = "names of what is trained"
    dtype = "dtype of the frozen weights"
    initial = "first values"
    micro_batches = "number of forward passes"
    order = "order of the rows"
    ids = "token ids"
    labels = "labels"
    pixels = "pixels"
    random = "state of the random generator"
    loss = "loss"
    rates = "settings of the optimizer"
    gradients = "gradients"
    weights = "weights after the step"
    reported_loss = "reported loss"
    grad_norm = "gradient norm"
    evaluation = "evaluation loss"
    length = "number of steps"
    saved = "saved files"


CAUSES: dict[Kind, str] = {
    Kind.processes: "The frameworks were started with different numbers of processes.",
    Kind.trainables: "The recipe did not reach one of them, or an option of its own selects other parameters.",
    Kind.dtype: "The base model was loaded in different dtypes.",
    Kind.initial: "LoRA was drawn from another seed, or the base weights differ; a resumed run began from another "
    "checkpoint.",
    Kind.micro_batches: "Accumulation, batch size or the number of rows differ, or a row was left out.",
    Kind.order: "Another seed of the sampler, a second shuffle, or rows dealt differently to the processes.",
    Kind.ids: "The rows were encoded by different code, or with another system prompt, length or truncation.",
    Kind.labels: "Other parts of the answers are supervised.",
    Kind.pixels: "The images were read, resized or normalised differently.",
    Kind.random: "Another seed, or one framework drew random numbers the other did not (workers of the DataLoader); "
    "dropout falls differently.",
    Kind.loss: "From equal weights, rows and random state: the forward pass or the scaling of the loss differs "
    "(num_items_in_batch, autocast).",
    Kind.rates: "Learning rate, schedule, decay or the grouping of parameters differ.",
    Kind.gradients: "From equal losses: accumulation, clipping or the sum over processes differs.",
    Kind.weights: "From equal gradients: another optimizer, or other state of it after resuming.",
    Kind.reported_loss: "The losses of the forward passes are equal; the framework sums or scales them differently.",
    Kind.grad_norm: "The gradients are equal; the framework measures their norm differently.",
    Kind.evaluation: "Evaluation takes other rows, another batch size or another scaling of the loss.",
    Kind.length: "Number of steps, epochs or rows differ, or one run ended early.",
    Kind.saved: "The weights in memory are equal; one framework saves another part of them, or after changing them.",
}
