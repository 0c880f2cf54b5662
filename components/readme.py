"""Writes the README of each component from its `metadata.yaml` and its signature: `python -m components.readme`."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import docstring_parser
import yaml
from kfp.dsl.base_component import BaseComponent

STAGES = (
    "prepare",
    "dataset_version",
    "pretrain",
    "plan",
    "evaluate",
    "report",
    "export",
    "gate",
    "register",
    "deploy",
    "finish",
)


def component_of(stage: str) -> BaseComponent:
    """The KFP component of a stage.

    Args:
        stage: One of `STAGES`.

    Returns:
        The component.
    """
    return getattr(import_module(f"components.{stage}"), stage)


def readme_path(stage: str) -> Path:
    """Where the README of a component lies.

    Args:
        stage: One of `STAGES`.

    Returns:
        The path.
    """
    return Path(__file__).parent / stage / "README.md"


def readme(stage: str) -> str:
    """The README of a component.

    Args:
        stage: One of `STAGES`.

    Returns:
        Markdown.
    """
    component = component_of(stage)
    metadata = yaml.safe_load(readme_path(stage).with_name("metadata.yaml").read_text())
    described = docstring_parser.parse(inspect.getdoc(component.python_func) or "")
    meaning = {parameter.arg_name: parameter.description for parameter in described.params}
    if described.returns is not None:
        meaning["Output"] = described.returns.description
    needs = ", ".join(f"{need['name']} {need['version']}" for need in metadata["dependencies"]["kubeflow"])
    lines = [
        "<!-- Generated from metadata.yaml and component.py by `python -m components.readme`. -->",
        f"# {metadata['name']}",
        described.short_description,
        metadata["notes"],
        "## Inputs",
        "\n".join(_table(component.component_spec.inputs or {}, meaning)),
        "## Outputs",
        "\n".join(_table(component.component_spec.outputs or {}, meaning)),
        "## Facts",
        f"- Stability: {metadata['stability']}\n- Needs: Kubeflow {needs}\n- Tags: {', '.join(metadata['tags'])}",
    ]
    return "\n\n".join(lines) + "\n"


def _table(ports: dict[str, Any], meaning: dict[str, str | None]) -> Iterator[str]:
    if not ports:
        yield "None."
        return
    yield "| Name | Type | Meaning |"
    yield "|---|---|---|"
    for name, port in ports.items():
        kind = port.type.removeprefix("system.").partition("@")[0]
        yield f"| `{name}` | `{kind}` | {meaning[name]} |"


def main() -> None:
    """Write all READMEs."""
    for stage in STAGES:
        readme_path(stage).write_text(readme(stage))
        print(readme_path(stage))


if __name__ == "__main__":
    main()
