"""What is known of a model, in one record: on the workspace volume and, if there is one, in Kubeflow's registry."""

import asyncio
import json
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiohttp import ClientError
from model_registry.core import ModelRegistryAPIClient
from model_registry.types import ModelArtifact, ModelVersion, RegisteredModel
from mr_openapi import ApiException, Configuration
from omegaconf import OmegaConf

from components.cluster import Cluster
from components.workspace import read_json
from mum_model.errors import UserError
from mum_model.files import write_json

AUTHOR = "mum-pipeline"
TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
"""Of the service account, in a pod; a registry behind a proxy that checks who asks wants it."""

FACTS_OF_DATA = ("revision", "remote", "repository", "commit", "content_sha256", "frames", "scenes", "splits")
"""What `dataset_version` and `prepare` say of a dataset; Kubeflow adds what depends on the cluster."""


def lineage(
    *,
    experiment: str,
    run_id: str,
    uri: str,
    image: str,
    data: Mapping[str, Any],
    run: Path,
    evaluation: Path,
    onnx: Path,
) -> dict[str, Any]:
    """Where a model comes from and what it is worth. The same inputs give the same record, whenever it is made.

    Args:
        experiment: Name of the model in the registry.
        run_id: Of the pipeline; the name of the version.
        uri: Of the export folder, as KServe takes it.
        image: The image that the steps ran in.
        data: Metadata of the dataset's artifact.
        run: The run folder.
        evaluation: The report folder.
        onnx: The export folder.

    Returns:
        `experiment`, `version`, `uri`, `onnx` (name, bytes and SHA-256 of each file), `data`, `code`, `weights_sha256`,
        `licence`, `metrics` by encoder, and `config`, with which the model was trained.
    """
    facts = read_json(onnx / "export.json")
    return {
        "experiment": experiment,
        "version": run_id,
        "uri": uri,
        "onnx": facts["files"],
        "data": {name: data[name] for name in FACTS_OF_DATA if name in data},
        "code": {
            "revision": facts["git_revision"],
            "version": version("mum-pipeline"),
            "image": image,
            "image_digest": digest_of(image),
        },
        "weights_sha256": facts["source"]["sha256"],
        "licence": facts["licence"],
        "metrics": read_json(evaluation / "metrics.json"),
        "config": OmegaConf.to_container(OmegaConf.load(run / "config.yaml")),
    }


def digest_of(image: str) -> str | None:
    """What an image really was: a tag can be moved to another one, a digest cannot.

    Args:
        image: The image that this step was started with.

    Returns:
        `sha256:...`, from the name where it has one, else from Kubernetes; None outside of a cluster.

    Raises:
        UserError: Kubernetes does not tell.
    """
    if "@" in image or not TOKEN.is_file():
        return image.partition("@")[2] or None
    cluster, name = Cluster(), os.environ["HOSTNAME"]
    pod = cluster.ask(f"pod {name}", cluster.core.read_namespaced_pod, name, cluster.namespace)
    # Kubeflow runs a step's own program in the container `main`.
    used = next(container.image_id for container in pod.status.container_statuses if container.name == "main")
    return used.rpartition("@")[2]


def keep(record: Mapping[str, Any], workspace: Path) -> Path:
    """Write the record of a version to the workspace volume, once.

    Args:
        record: From `lineage`.
        workspace: Where the volume is mounted.

    Returns:
        The version's folder, `<workspace>/models/<experiment>/<version>`, with `model.json` in it.

    Raises:
        UserError: The version is there with another record.
    """
    path = workspace / "models" / record["experiment"] / record["version"] / "model.json"
    if not path.exists():
        write_json(path, record)
    elif read_json(path) != record:
        raise UserError(f"{path}: this version is another model; versions are never overwritten, start a new run")
    return path.parent


def register(record: Mapping[str, Any], address: str) -> None:
    """Enter a version into Kubeflow's model registry; what an earlier attempt entered stays and is completed.

    Args:
        record: From `lineage`; all of it becomes custom properties of the version.
        address: URL of the registry's REST API, for instance `http://model-registry-service.kubeflow.svc:8080`.

    Raises:
        UserError: The registry cannot be reached or refuses, or has another model as this version.
    """
    if not address.startswith(("http://", "https://")):
        raise UserError(f"registry={address}: expected a URL with http:// or https://")
    token = TOKEN.read_text() if TOKEN.is_file() else None
    api = ModelRegistryAPIClient(Configuration(host=address.rstrip("/"), access_token=token))
    try:
        asyncio.run(_register(record, api))
    except (ClientError, TimeoutError) as error:
        raise UserError(f"{address}: no model registry can be reached there ({error}); is it up?") from error
    except ApiException as error:
        raise UserError(f"{address}: the model registry refused: {error.status} {error.reason} {error.body}") from error


async def _register(record: Mapping[str, Any], api: ModelRegistryAPIClient) -> None:
    name, facts = record["experiment"], dict(_properties(record))
    model = await api.get_registered_model_by_params(name)
    if model is None:
        model = await api.upsert_registered_model(RegisteredModel(name=name, owner=AUTHOR))
    entered = await api.get_model_version_by_params(model.id, record["version"])
    if entered is None:
        new = ModelVersion(name=record["version"], author=AUTHOR, custom_properties=facts)
        entered = await api.upsert_model_version(new, model.id)
    # Others may add properties of their own.
    elif {key: (entered.custom_properties or {}).get(key) for key in facts} != facts:
        raise UserError(f"model registry: version {entered.name} of {name} is another model; start a new run")
    if await api.get_model_artifact_by_params(name, entered.id) is None:
        artifact = ModelArtifact(name=name, uri=record["uri"], model_format_name="onnx")
        await api.upsert_model_version_artifact(artifact, entered.id)


def _properties(record: Mapping[str, Any]) -> Iterator[tuple[str, str | int | float]]:
    """The record as the registry takes it: numbers of their own, so that it can sort by them, the rest as text."""
    for name, value in record.items():
        if name == "metrics":
            for encoder, numbers in value.items():
                yield from ((f"metrics.{encoder}.{number}", found) for number, found in numbers.items())
        elif isinstance(value, str):
            yield name, value
        elif name in ("data", "code"):
            yield from (
                (f"{name}.{key}", found if isinstance(found, str) else json.dumps(found))
                for key, found in value.items()
            )
        else:
            yield name, json.dumps(value)
