"""The files that tools and platforms read: they parse, and what they name exists."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from vlm_lora_plugin import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github/workflows/test.yml"
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
PROSE = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))


def read(path):
    return yaml.safe_load((ROOT / path).read_text("utf-8"))


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def jobs():
    return read(WORKFLOW)["jobs"]


def test_the_citation_names_this_version_and_licence(project):
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["license"] == project["project"]["license"]
    assert citation["title"] == project["project"]["name"]
    assert citation["repository-code"] == project["project"]["urls"]["Source"]
    assert all(author.keys() >= {"name"} for author in citation["authors"])


def test_every_url_of_the_project_is_in_its_repository_and_names_a_file_that_exists(project):
    urls = project["project"]["urls"]
    assert {"Source", "Documentation", "Issues", "Changelog"} <= urls.keys()
    for url in urls.values():
        assert url.startswith(urls["Source"])
    links = [*urls.values()]
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        links += re.findall(re.escape(urls["Source"]) + r"[\w./#-]*", form.read_text("utf-8"))
    files = [link.partition("/blob/main/")[2] for link in links if "/blob/main/" in link]
    assert files
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_the_workflow_runs_make_targets_that_exist(jobs):
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    targets = [word for command in commands for word in re.findall(r"^make (\S+)", command)]
    assert len(targets) == len(commands), "every command is a make target, so that anyone can run it"
    named = {target for target in targets if "$" not in target and "{" not in target}
    chosen = {entry["target"] for entry in jobs["test"]["strategy"]["matrix"]["include"]}
    assert named | chosen <= TARGETS
    assert "test-transformers-main" in named


def test_the_workflow_tries_the_oldest_and_newest_python_and_dependencies(jobs, project):
    entries = {(entry["target"], entry["python"]) for entry in jobs["test"]["strategy"]["matrix"]["include"]}
    oldest = project["project"]["requires-python"].removeprefix(">=")
    assert {("test", oldest), ("test", "3.x")} <= entries
    assert "test-oldest" in {target for target, _ in entries}


def test_transformers_main_is_tried_every_week_and_not_on_pull_requests(jobs):
    triggers = read(WORKFLOW)[True]  # YAML 1.1 reads the key `on` as a boolean
    assert [entry["cron"].split()[-1] for entry in triggers["schedule"]] == ["1"]
    assert "schedule" in jobs["transformers-main"]["if"]
    assert "pull_request" not in jobs["transformers-main"]["if"]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_whole(form):
    document = read(form)
    assert document.keys() >= {"name", "description", "body"}
    fields = [field for field in document["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_a_bug_report_asks_for_commands_that_exist():
    from typer.main import get_command

    from vlm_lora_plugin.cli.app import app

    named = set(re.findall(r"`vlm-lora ([a-z][a-z-]*)", (ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text("utf-8")))
    assert {"inspect", "adapters"} <= named
    assert named <= get_command(app).commands.keys()


def test_the_hooks_before_a_commit_are_those_of_make_lint():
    hooks = [hook for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in read(".pre-commit-config.yaml")["repos"]} == {"local"}, "nothing is fetched"
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)
    lint = (ROOT / "Makefile").read_text("utf-8").partition("\nlint:")[2].partition("\n\n")[0]
    for hook in hooks:
        words = hook["entry"].removeprefix(".venv/bin/").replace(" --force-exclude", "")
        assert words in lint, hook["id"]
    assert len(hooks) == lint.count("$(VENV)/bin/")


@pytest.mark.parametrize("page", PROSE)
def test_what_a_page_at_the_root_tells_to_run_and_read_exists(page):
    text = (ROOT / page).read_text("utf-8")
    assert {target for target in re.findall(r"`?make ([a-z-]+)", text) if target != "targets"} <= TARGETS
    links = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    paths = re.findall(r"(?<![\w/.])(?:tests|tools|docs)/[\w./-]*\w", text)
    assert [path for path in {*links, *paths} if not (ROOT / path).exists()] == []
