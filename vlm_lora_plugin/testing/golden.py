"""Check adapters against folders of reference numbers: ``python -m vlm_lora_plugin.testing.golden FOLDER...``.

A case folder holds ``config.json``, ``inputs.*``, ``expected.json`` and ``expected.safetensors``. Its family is
the one whose ``TestSupport.read_golden_case`` takes it. The model loads the weights strictly and runs in fp64; then
the loss, every stored stage, every gradient and the trainable names of every recipe are compared, and for a
case with an adapter the same with that loaded, and merged (:mod:`vlm_lora_plugin.testing.golden_lora`). So this
verdict is the same on every processor. What fp32 gives on this machine is compared with the same model's fp64
(``fp32: ...``), every gradient element by element.

Both are held to the tolerance that the references' README states. Where one is beyond it, the pass is repeated in
fp64 with each operation rounded at random as fp32 rounds: the references were computed in fp32 too, and a model may
carry rounding errors further than the tolerance. What such errors explain is marked ``rounding`` and counted, and is
not a miss. The exit status is 1 when anything misses, and 2 when there is no case in the folders given.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file

from vlm_lora_plugin.contract import Family, GoldenCase
from vlm_lora_plugin.errors import ModelError, VlmLoraError, listed
from vlm_lora_plugin.names import canonical_name
from vlm_lora_plugin.planning.resolve import resolve_recipe
from vlm_lora_plugin.plugins.manager import get_manager
from vlm_lora_plugin.reporting.console import SafeConsole
from vlm_lora_plugin.selection.layout import Layout
from vlm_lora_plugin.selection.resolve import resolve_selection
from vlm_lora_plugin.testing.comparison import (
    Finding,
    Tolerance,
    agreement,
    compare_number,
    compare_tensors,
    miss,
    worst,
)
from vlm_lora_plugin.testing.golden_comparison import compare_narrowing, compare_single, compare_stages
from vlm_lora_plugin.testing.golden_lora import CASE_KEY, compare_lora
from vlm_lora_plugin.testing.golden_passes import Passes, dot_with_cosines

CASE_FILES = ("config.json", "expected.json")
GRADIENT_PREFIX = "grad."
REPORT_WIDTH = 160  # columns in a log file


@dataclass(frozen=True)
class CaseReport:
    """What came out of one case.

    Attributes:
        folder: The case.
        family: Name of the family that read it, or an empty string.
        findings: One per stage, loss, group of gradients and recipe.
    """

    folder: Path
    family: str
    findings: tuple[Finding, ...]

    @property
    def misses(self) -> int:
        """How many comparisons missed."""
        return sum(not finding.passed for finding in self.findings)


def find_cases(folders: Iterable[Path]) -> list[Path]:
    """Return the case folders among and below the given ones, sorted, each once."""
    found = {path.parent for folder in folders for path in folder.rglob(CASE_FILES[1])}
    return sorted(folder for folder in found if all((folder / name).is_file() for name in CASE_FILES))


def check_case(folder: Path) -> CaseReport:
    """Run one case and compare everything that it stores; a case that cannot be read or run is a miss."""
    family = None
    try:
        family, case = read_case(folder)
        findings = tuple(_compare(folder, family, case))
    except (VlmLoraError, SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
        findings = (miss("case", f"{type(error).__name__}: {error}"),)
    return CaseReport(folder, family.name if family else "", findings)


def read_case(folder: Path) -> tuple[Family, GoldenCase]:
    """Return a case, and the family that reads it.

    Raises:
        ModelError: No installed family does.
    """
    manager = get_manager()
    for family in manager.families().values():
        read = family.test_support.read_golden_case
        case = None if read is None else manager.function(family, read)(folder)
        if case is not None:
            return family, case
    raise ModelError(f"No family reads {folder}", fix="Install the adapter of the family that the case is for.")


def _compare(folder: Path, family: Family, case: GoldenCase) -> Iterator[Finding]:
    model, tolerance = case.model, Tolerance(case.rtol, case.atol)
    problem = _load_strictly(model, case.weights)
    yield miss("weights", problem) if problem else agreement("weights", "every name and shape")
    if problem:
        return
    expected = json.loads((folder / "expected.json").read_text("utf-8"))
    tensors = load_file(folder / "expected.safetensors")
    full = {
        name.removeprefix(GRADIENT_PREFIX): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(GRADIENT_PREFIX)
    }

    model.requires_grad_(True)
    component_of = {
        name: part.name for name, part in Layout(model, get_manager().architecture(family, model)).component_of.items()
    }
    passes = Passes(model, dict(model.named_parameters()), case.inputs, case.stages, sorted(tensors))
    yield compare_narrowing(passes.double)
    yield from compare_stages(passes, float(expected["loss"]), tensors, tolerance)
    yield from compare_gradients(passes, component_of, expected, full, tolerance)
    yield from compare_single(passes, tolerance, component_of)
    yield from _compare_recipes(model, family, case, _recipes(folder, expected))
    if CASE_KEY in expected:
        yield from compare_lora(folder, case, expected, tolerance)


def _load_strictly(model: torch.nn.Module, weights: Path) -> str:
    """Load a state dict; return what does not fit, or an empty string."""
    state, own = load_file(weights), model.state_dict()
    problems = {
        "missing": [name for name in own if name not in state],
        "extra": [name for name in state if name not in own],
        "of another shape": [name for name in own if name in state and own[name].shape != state[name].shape],
    }
    if any(problems.values()):
        return "; ".join(f"{what}: {listed(names)}" for what, names in problems.items() if names)
    model.load_state_dict(state, strict=True)
    return ""


def compare_gradients(
    passes: Passes,
    component_of: Mapping[str, str],
    expected: Mapping[str, Any],
    full: Mapping[str, torch.Tensor],
    tolerance: Tolerance,
) -> Iterator[Finding]:
    """Compare the fp64 pass's gradients with what is recorded of them.

    Args:
        passes: Of the model.
        component_of: Name of a parameter's component.
        expected: The case's ``expected.json``.
        full: Whole gradients, where they are recorded.
        tolerance: The stated one.
    """
    digests, parameters = _digests(expected), set(passes.parameters)
    unknown, unrecorded = sorted({*digests, *full} - parameters), sorted(parameters - {*digests, *full})
    if unknown:
        yield miss("gradients", f"of parameters that the model lacks: {listed(unknown)}")
    if unrecorded:
        yield miss("gradients", f"not recorded for {listed(unrecorded)}")
    groups: defaultdict[tuple[str, str], list[Finding]] = defaultdict(list)
    for name, parameter in passes.parameters.items():
        gradient = passes.double.gradients[name]
        gradient = torch.zeros_like(parameter, dtype=torch.float64) if gradient is None else gradient
        component = component_of[name]
        if name in digests:
            for kind, finding in _compare_digest(name, gradient, digests[name], tolerance, passes):
                groups[component, kind].append(finding)
        if name in full:
            finding = compare_tensors(name, gradient, full[name], tolerance, partial(passes.gradient_spread, name))
            groups[component, "elements"].append(finding)
    for (part, kind), findings in groups.items():
        yield worst(findings, f"gradients, {part}: {kind} of {len(findings)}")


def _digests(expected: Mapping[str, Any]) -> dict[str, Mapping[str, float] | None]:
    """Return norm and dot product of each gradient, None where there is none; two spellings are in use."""
    if "grad" in expected:
        return {**expected["grad"], **dict.fromkeys(expected.get("parameters_without_grad", ()))}
    norms, dots = expected.get("grad_l2", {}), expected.get("grad_dot_cos", {})
    return {name: None if norm is None else {"l2": norm, "dot_cos": dots[name]} for name, norm in norms.items()}


def _compare_digest(
    name: str, gradient: torch.Tensor, digest: Mapping[str, float] | None, tolerance: Tolerance, passes: Passes
) -> Iterator[tuple[str, Finding]]:
    flat = gradient.double().flatten()
    if digest is None:
        yield "absence", agreement(name, "") if not flat.any() else miss(name, "has a gradient, the reference none")
        return
    norm, size = flat.norm().item(), digest["l2"]
    dot = dot_with_cosines(gradient).item()
    yield "norms", compare_number(name, norm, size, size, tolerance, lambda: passes.norm_spread(name))
    yield "dot products", compare_number(name, dot, digest["dot_cos"], size, tolerance, lambda: passes.dot_spread(name))


def _recipes(folder: Path, expected: Mapping[str, Any]) -> Mapping[str, Sequence[str]]:
    if "recipes_same_as" in expected:
        expected = json.loads((folder / expected["recipes_same_as"]).read_text("utf-8"))
    recipes: Mapping[str, Sequence[str]] = expected.get("recipes", {})
    return recipes


def _compare_recipes(
    model: torch.nn.Module, family: Family, case: GoldenCase, recipes: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    architecture = get_manager().architecture(family, model)
    for name, expected in recipes.items():
        what = f"recipe {name}"
        if name not in case.recipes:
            yield miss(what, f"{family.title} has no recipe for it")
            continue
        wanted = {canonical_name(parameter) for parameter in expected}
        ours = resolve_selection(
            model, family, resolve_recipe(case.recipes[name], family, architecture=architecture)
        ).names
        parts = {"missing": sorted(wanted - ours), "extra": sorted(ours - wanted)}
        if any(parts.values()):
            yield miss(what, "; ".join(f"{part}: {listed(names)}" for part, names in parts.items() if names))
        else:
            yield agreement(what, f"{len(wanted)} names")


def print_report(report: CaseReport, console: Console) -> None:
    """Print one case as a table."""
    title = escape(f"{report.folder} ({report.family or 'no family'})")
    headings = ("", "compared (fp64, but for fp32)", "error", "of stated", "of allowed", "elementwise", "where")
    table = Table(*headings, title=title)
    for finding in report.findings:
        mark = "[yellow]rounding[/]" if finding.is_rounding else "[green]ok[/]"
        mark = mark if finding.passed else "[bold red]MISS[/]"
        numbers = (finding.stated, finding.share, finding.elementwise)
        table.add_row(mark, finding.what, f"{finding.error:.2e}", *(f"{n:.3f}" for n in numbers), finding.note)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the folders on the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vlm_lora_plugin.testing.golden", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="case folders, or folders of them")
    cases = find_cases(parser.parse_args(arguments).folders)
    console = SafeConsole(width=None if sys.stdout.isatty() else REPORT_WIDTH, markup=True)
    if not cases:
        console.print("No case found: a case folder holds config.json and expected.json.")
        return 2
    misses = roundings = 0
    for folder in cases:
        report = check_case(folder)
        print_report(report, console)
        misses += report.misses
        roundings += sum(finding.is_rounding for finding in report.findings)
    console.print(
        f"{len(cases)} cases, {misses} misses, {roundings} beyond the stated tolerance but within rounding in fp32. "
        "'elementwise' measures each value by its own magnitude alone."
    )
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
