"""Hooks of mkdocs: pages that lie outside docs/, an index of the decisions, and the Python reference."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
REFERENCE = {
    "siegebench": (
        "Evaluate and attack",
        ["api.evaluate", "api.run", "direct.attack", "reporting.report", "reporting.to_pandas",
         "api.load_model", "api.load_data",
         "checkpoints.load_checkpoint"],
    ),
    "types": ("Base classes of entries", ["types"]),
    "tools": (
        "What entries work with",
        ["classifier.Network", "classifier.Classifier", "classifier.Wrapped", "oracle.Oracle", "threat.ThreatModel",
         "draws.Draws", "data.ImageSet", "data.Granted", "train", "ops", "errors"],
    ),
}  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_inside(text)))
    for name, (title, members) in REFERENCE.items():
        files.append(File.generated(config, f"reference/{name}.md", content=_reference(title, members)))
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [(path.name, path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")) for path in decisions]
    index = "# Decisions\n\n" + "".join(f"- [{title}]({name})\n" for name, title in titles)
    files.append(File.generated(config, "decisions/index.md", content=index))
    return files


def _inside(text: str) -> str:
    """Links of a page at the top of the repository, as links from within docs/."""
    text = re.sub(r"\]\(docs/(replications)/?\)", r"](\1/README.md)", text)
    text = re.sub(r"\]\(docs/(decisions)/?\)", r"](\1/index.md)", text)
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    return text.replace("](README.md)", "](index.md)")


def _reference(title: str, members: list[str]) -> str:
    return f"# {title}\n\n" + "\n".join(f"::: siegebench.{member}\n" for member in members)
