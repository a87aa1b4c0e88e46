"""The workflows: contributed code gets no permission, and the job that has one reads a single JSON file of it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = {path.name: path for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))}
CHECK, COMMENT = "submission.yml", "submission-comment.yml"
# what GitHub fills in itself, which nobody who contributes can choose
TRUSTED = {
    "github.token", "github.event.workflow_run.id", "github.event.workflow_run.head_sha", "github.base_ref",
    "github.event.repository.default_branch", "github.event.pull_request.number", "steps.found.outputs.number",
}  # fmt: skip


def read(name: str) -> dict[Any, Any]:
    return dict(yaml.safe_load(WORKFLOWS[name].read_text()))


def steps(name: str) -> list[dict[str, Any]]:
    return [step for job in read(name)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_workflow_gives_contributed_code_anything(name: str) -> None:
    text, found = WORKFLOWS[name].read_text(), read(name)
    triggers = found[True]  # YAML 1.1 reads `on` so
    assert "pull_request_target" not in triggers
    assert "secrets." not in text
    assert set(re.findall(r"\$\{\{ *([^} ]+) *\}\}", text)) <= TRUSTED
    assert not any("${{" in step.get("run", "") for step in steps(name)), "a value in a script is code"
    for job in found["jobs"].values():
        assert not {"permissions", "env"} & job.keys()
        assert job["timeout-minutes"]
    for step in steps(name):
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"]), "a tag can be moved"
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False
    if "pull_request" in triggers:
        assert found["permissions"] == {"contents": "read"}


def test_the_job_that_may_write_never_has_the_contribution() -> None:
    found = read(COMMENT)
    assert list(found[True]) == ["workflow_run"]
    assert found[True]["workflow_run"]["workflows"] == [read(CHECK)["name"]]
    assert found["permissions"] == {"contents": "read", "actions": "read", "pull-requests": "write"}
    (checkout,) = [step for step in steps(COMMENT) if "checkout" in step.get("uses", "")]
    assert checkout["with"]["ref"] == "${{ github.event.repository.default_branch }}"
    _, fetch, write, post = [step for step in steps(COMMENT) if "run" in step]
    assert fetch["run"].count("out/submissions.json") == 1
    assert "head -c" in fetch["run"]
    assert not any("git " in step["run"] for step in (fetch, write, post))
    assert [step for step in steps(COMMENT) if "GH_TOKEN" in step.get("env", {})] == [fetch, post]
    assert not any("python" in step["run"] or "make" in step["run"] for step in (fetch, post))


def test_the_jobs_call_what_make_calls() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name, target in ((CHECK, "submission-check"), (COMMENT, "submission-comment")):
        assert any(f" {target} " in f" {step.get('run', '')} " for step in steps(name)), target
        assert f"\n{target}:" in makefile
    (upload,) = [step["with"] for step in steps(CHECK) if "upload-artifact" in step.get("uses", "")]
    assert upload["path"] in makefile
    assert any(upload["name"] in step.get("run", "") for step in steps(COMMENT))


def test_the_comment_needs_only_the_packages_that_its_job_installs(tmp_path: Path) -> None:
    report = tmp_path / "r.json"
    report.write_text('{"schema": 1, "protocol": 1, "ok": true, "submissions": []}')
    (line,) = [step["run"] for step in steps(COMMENT) if "pip install" in step.get("run", "")]
    installed = {word.replace("pyyaml", "yaml") for word in line.partition("constraints.txt")[2].split()}
    code = (
        "import sys; from siegebench import cli\n"
        f"sys.argv = ['siegebench', 'submit', 'comment', {str(report)!r}]\n"
        "try: cli.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print(*{m.partition('.')[0] for m in sys.modules if getattr(sys.modules[m], '__file__', None)}"
        " - set(sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    needed = set(done.stdout.splitlines()[-1].split())
    brought = {"annotated_doc", "annotated_types", "pydantic_core", "typing_extensions", "typing_inspection", "rich",
               "shellingham", "markdown_it", "mdurl", "pygments", "click", "siegebench"}  # fmt: skip
    heavy = {"torch", "scipy", "timm", "sklearn", "jinja2", "PIL", "pyarrow"}
    assert not needed & heavy
    assert {"numpy", "pydantic", "typer", "yaml"} <= needed & installed
    unexplained = {m for m in needed - installed - brought if not m.startswith(("_", "cython"))}
    assert not unexplained
