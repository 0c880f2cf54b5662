"""The DAG as a picture: `python -m pipelines.graph` renews the Mermaid diagram of docs/kubernetes.md."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipelines.pipeline import PIPELINE_YAML

DOC = Path(__file__).parents[1] / "docs" / "kubernetes.md"
GROUPS = {"exit-handler": "whatever happens, finish reports it", "for-loop": "each encoder on each benchmark"}
BLOCK = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)


def mermaid(file: Path = PIPELINE_YAML) -> str:
    """Draw a compiled pipeline.

    Args:
        file: What `mum-pipeline compile` wrote.

    Returns:
        A Mermaid flowchart: https://mermaid.js.org/syntax/flowchart.html.
    """
    spec = next(yaml.safe_load_all(file.read_text()))
    return "\n".join(["flowchart LR", *_lines(spec, spec["root"]["dag"]["tasks"], "  ")]) + "\n"


def _lines(spec: dict[str, Any], tasks: dict[str, Any], indent: str) -> Iterator[str]:
    for name, task in tasks.items():
        inner = spec["components"][task["componentRef"]["name"]].get("dag")
        if inner is None:
            yield f"{indent}{name}"
        else:
            title = GROUPS.get(name.rpartition("-")[0], "only if the gate says so")
            yield f'{indent}subgraph {name}["{title}"]'
            yield from _lines(spec, inner["tasks"], indent + "  ")
            yield f"{indent}end"
    after = {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()}
    for name, direct in after.items():
        implied = set().union(*(_before(after, other) for other in direct))
        yield from (f"{indent}{before} --> {name}" for before in sorted(direct - implied))


def _before(after: dict[str, set[str]], name: str) -> set[str]:
    """Everything that a task waits for."""
    return after[name].union(*(_before(after, other) for other in after[name]))


def with_graph(text: str) -> str:
    """A page with its diagram made anew.

    Args:
        text: Markdown with one Mermaid block.

    Returns:
        The same with the diagram of pipelines/pipeline.yaml.
    """
    return BLOCK.sub(lambda _: f"```mermaid\n{mermaid()}```\n", text, count=1)


if __name__ == "__main__":
    DOC.write_text(with_graph(DOC.read_text()))
    print(DOC)
