"""`mum-pipeline`: the pipeline on this machine, or on a Kubeflow Pipelines server."""

import json
import os
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from tempfile import mkdtemp
from textwrap import indent
from typing import Any

import click
from kfp import local

from mum_model.config import compose
from mum_model.errors import UserError
from pipelines.pipeline import PIPELINE_YAML, build, compile_pipeline
from pipelines.platform import Platform, Retries, defaults, load_platform
from pipelines.preflight import look, read_needs
from pipelines.server import Order, Server

EXAMPLES = """
\b
Examples:
  # here, each step in a process of its own
  mum-pipeline run pretrain.steps=200
  # for a cluster of one's own, once
  mum-pipeline compile -o mine.yaml image=registry.example/mum-train:0.1.0 queue=mum
  # on a server
  export KF_PIPELINES_ENDPOINT=http://localhost:8888
  mum-pipeline submit -e rooms --nodes 2 --gpus 8 model=large
  mum-pipeline status
"""

SAME_BY_KFP = """
\b
The same by KFP's own command:
  kfp --endpoint URL run create -e NAME -f pipelines/pipeline.yaml \\
    'overrides=["KEY=VALUE"]' nodes=2 gpus=8
"""

LEFT = {"run": "pretrain", "encoder": "pretrain/encoder", "report": "reports/*/report.html", "onnx": "exports/*/*.onnx"}
"""What a run leaves on the workspace for people."""

STATES = {"ok": "green", "missing": "red", "unknown": "yellow"}


class _Group(click.Group):
    """Commands whose users' mistakes end in a message instead of a traceback."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except UserError as error:
            raise click.ClickException(str(error)) from error


def _checked(context: click.Context, parameter: click.Parameter, overrides: tuple[str, ...]) -> list[str]:
    """Compose the configuration here, so that a mistyped key fails now and not in a container minutes later."""
    try:
        compose(overrides)
    except UserError as error:
        raise click.BadParameter(str(error)) from error
    return list(overrides)


def _options(*options: Callable) -> Callable:
    """Several options as one decorator, in the order of their `--help`."""

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", callback=_checked)
data_options = _options(
    click.option(
        "--dataset-revision",
        default="",
        metavar="REV",
        help="Train on this version of a dataset instead of preparing one.",
    ),
    click.option("--continue-run", default="", metavar="RUN", help="Go on with the training of an earlier run."),
)
server_options = _options(
    click.option(
        "--endpoint", required=True, envvar="KF_PIPELINES_ENDPOINT", show_envvar=True, metavar="URL", help="The server."
    ),
    click.option(
        "--namespace",
        default="mum",
        show_default=True,
        envvar="KF_PIPELINES_NAMESPACE",
        show_envvar=True,
        help="Namespace of the runs.",
    ),
)
order_options = _options(
    overrides_argument,
    server_options,
    click.option(
        "-e", "--experiment", required=True, metavar="NAME", help="What the run is listed and promoted under."
    ),
    click.option("-r", "--name", metavar="NAME", help="Name of the run.  [default: made from the date]"),
    click.option(
        "-f",
        "--file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        default=PIPELINE_YAML,
        help="What `compile` wrote.  [default: pipelines/pipeline.yaml]",
    ),
    click.option(
        "--nodes",
        type=click.IntRange(0),
        default=0,
        help="Nodes to train on; 0: in the step itself.",
        show_default=True,
    ),
    click.option("--gpus", type=click.IntRange(0), default=0, help="GPUs of each node.", show_default=True),
    data_options,
    click.option("--no-cache", is_flag=True, help="Run every step, also those whose result is known."),
    click.option("--no-preflight", is_flag=True, help="Do not look first whether the run can succeed."),
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
def main() -> None:
    """The whole chain as one pipeline: prepare, pretrain, evaluate, report, export, and promote what is better.

    KEY=VALUE are the overrides that `mum STAGE` takes; every stage gets all of them. `mum pretrain --cfg job` prints
    what can be overridden. Where the stages write is the pipeline's business: `paths.*` has no effect here.

    A server that asks for a token finds it in the environment variable KF_PIPELINES_TOKEN.
    """
    # KFP warns of every image without `python` in its name, and of servers older than its version 2.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp.local")
    warnings.filterwarnings("ignore", category=FutureWarning, module="kfp.client")


@main.command("compile", epilog=f"\b\nKeys and defaults:\n{indent(defaults(), '  ')}")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--platform",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="YAML of such settings.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), default=PIPELINE_YAML, metavar="FILE")
def compile_(settings: tuple[str, ...], platform: Path | None, output: Path) -> None:
    """Write the pipeline for a cluster.

    Here KEY=VALUE describe the cluster. They are listed below; pipelines/platform.py says what each means. Without any,
    pipelines/pipeline.yaml is renewed.
    """
    click.echo(compile_pipeline(output, load_platform(platform, settings)))


@main.command()
@overrides_argument
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("local_outputs"),
    show_default=True,
    metavar="DIR",
    help="Gets the workspace, and a folder for each run.",
)
@click.option(
    "-e", "--experiment", default="mum", show_default=True, metavar="NAME", help="What the run is promoted under."
)
@click.option("--remote", default="", metavar="URL", help="DVC remote that gets the dataset, for instance a folder.")
@data_options
def run(
    overrides: list[str], root: Path, experiment: str, remote: str, dataset_revision: str, continue_run: str
) -> None:
    """Run the pipeline on this machine, without containers or a server.

    No step is taken from an earlier run: KFP's cache knows the components, not the code that they call. For runs that
    skip what has not changed use `dvc repro`.
    """
    root = root.absolute()
    platform = Platform(
        workspace=str(root / "workspace"), remote=remote, gpu=None, service="", parallelism=1, retries=Retries(count=0)
    )
    root.mkdir(parents=True, exist_ok=True)
    artifacts = Path(mkdtemp(prefix=f"{datetime.now():%Y-%m-%d-%H-%M-%S}-", dir=root))
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(artifacts))
    parameters = {"dataset_revision": dataset_revision, "experiment": experiment, "continue_run": continue_run}
    try:
        build(platform)(overrides=overrides, **parameters)
    except RuntimeError as error:
        raise click.ClickException(f"{error} Its own message is in the log above.") from error
    for name, pattern in LEFT.items():
        newest = max(_run_folder(artifacts).glob(pattern), key=lambda path: path.stat().st_mtime)
        click.echo(f"{name:9}{newest}")


def _run_folder(artifacts: Path) -> Path:
    """Where on the workspace a run is, by what its training told KFP."""
    (told,) = artifacts.glob("**/pretrain/executor_output.json")
    run = json.loads(told.read_text())["artifacts"]["run"]["artifacts"][0]
    return Path(run["metadata"]["folder"]).parent


@main.command(epilog=SAME_BY_KFP)
@order_options
def submit(endpoint: str, namespace: str, no_preflight: bool, **asked: Any) -> None:
    """Start a run on a server."""
    order = _order(**asked)
    server = Server(endpoint, namespace, os.environ.get("KF_PIPELINES_TOKEN"))
    if not no_preflight:
        _preflight(order, namespace)
    click.echo(server.page(server.run(order)))


@main.command()
@order_options
@click.option(
    "--cron", required=True, metavar="FIELDS", help="When: second minute hour day month weekday, as '0 0 3 * * 1'."
)
def schedule(endpoint: str, namespace: str, no_preflight: bool, cron: str, **asked: Any) -> None:
    """Start runs on a server again and again, one after the other."""
    order = _order(**asked)
    server = Server(endpoint, namespace, os.environ.get("KF_PIPELINES_TOKEN"))
    if not no_preflight:
        _preflight(order, namespace)
    click.echo(server.schedule(order, cron))


@main.command()
@click.argument("run_id", required=False, metavar="[RUN]")
@server_options
def status(run_id: str | None, endpoint: str, namespace: str) -> None:
    """Say how the newest runs stand, or each step of one run."""
    server = Server(endpoint, namespace, os.environ.get("KF_PIPELINES_TOKEN"))
    if run_id is None:
        for one in server.latest(10):
            click.echo(f"{one.run_id}  {one.created_at:%Y-%m-%d %H:%M}  {one.state:10}  {one.display_name}")
        return
    one = server.get(run_id)
    click.echo(f"{one.display_name}: {one.state}  {server.page(run_id)}")
    for task in (one.run_details.task_details or []) if one.run_details else []:
        error = f"  {task.error.message}" if task.error else ""
        click.echo(f"  {task.state or '':10}  {task.display_name}{error}")


def _order(
    overrides: list[str],
    experiment: str,
    name: str | None,
    file: Path,
    nodes: int,
    gpus: int,
    dataset_revision: str,
    continue_run: str,
    no_cache: bool,
) -> Order:
    if gpus and not nodes:
        raise UserError("--gpus: only a TrainJob gets GPUs; give the number of --nodes too, 1 or more")
    parameters = {
        "overrides": overrides,
        "dataset_revision": dataset_revision,
        "nodes": nodes,
        "gpus": gpus,
        "experiment": experiment,
        "continue_run": continue_run,
    }
    return Order(file, experiment, name, parameters, cached=not no_cache)


def _preflight(order: Order, namespace: str) -> None:
    """Say what is missing, before anything is queued."""
    wanted = {key: order.parameters[key] for key in ("nodes", "gpus", "dataset_revision")}
    missing = 0
    for finding in look(read_needs(order.file), namespace, **wanted):
        click.secho(f"{finding.state:8}{finding.text}", fg=STATES[finding.state], err=True)
        missing += finding.state == "missing"
    if missing:
        raise UserError(f"{missing} things are missing, nothing was queued; --no-preflight submits all the same")
