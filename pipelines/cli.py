"""`mum-pipeline`: run the pipeline on this machine, or hand it to a Kubeflow Pipelines server."""

import warnings

import click
import kfp_server_api
import urllib3
from kfp import client, local

from mum_model.config import compose
from mum_model.errors import UserError
from pipelines.pipeline import PIPELINE_YAML, compile_pipeline, mum_pipeline


def _checked(context: click.Context, parameter: click.Parameter, overrides: tuple[str, ...]) -> list[str]:
    """Compose the configuration here, so that a mistyped key fails now and not in a container minutes later."""
    try:
        compose(overrides)
    except UserError as error:
        raise click.BadParameter(str(error)) from error
    return list(overrides)


overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...", callback=_checked)


EXAMPLES = """
\b
Examples:
  # here, each stage in a process of its own
  mum-pipeline run pretrain.steps=200
  # on a server
  mum-pipeline submit --endpoint http://localhost:8888 -e ablations model=small
"""

SAME_BY_KFP = """
\b
The same by KFP's own command:
  kfp --endpoint URL run create -e NAME -f pipelines/pipeline.yaml \\
    'overrides=["KEY=VALUE"]'
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXAMPLES)
def main() -> None:
    """The whole chain as one pipeline: prepare -> pretrain -> evaluate, and export.

    KEY=VALUE are the overrides that `mum STAGE` takes; every stage gets all of them. `mum pretrain --cfg job` prints
    what can be overridden. Where the stages write is the pipeline's business: `paths.*` has no effect here.
    """
    # KFP warns of every image without `python` in its name, and of servers older than its version 2.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="kfp.local")
    warnings.filterwarnings("ignore", category=FutureWarning, module="kfp.client")


@main.command("compile")
def compile_() -> None:
    """Renew pipelines/pipeline.yaml after a change of pipeline, components or image."""
    click.echo(compile_pipeline())


@main.command()
@overrides_argument
@click.option(
    "--root",
    default="local_outputs",
    show_default=True,
    help="Gets one folder for each run.",
    metavar="DIR",
)
def run(overrides: list[str], root: str) -> None:
    """Run the pipeline on this machine, without containers or a server.

    Nothing is taken from an earlier run: KFP's cache knows the components, not the code that they call. For runs that
    skip what has not changed use `dvc repro`.
    """
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=root)
    try:
        outputs = mum_pipeline(overrides=overrides).outputs
    except RuntimeError as error:
        raise click.ClickException(f"{error} Its own message is in the log above.") from error
    for name, artifact in outputs.items():
        click.echo(f"{name:12}{artifact.path}")


@main.command(epilog=SAME_BY_KFP)
@overrides_argument
@click.option(
    "--endpoint",
    required=True,
    envvar="KF_PIPELINES_ENDPOINT",
    show_envvar=True,
    help="URL of the server.",
    metavar="URL",
)
@click.option("-e", "--experiment", required=True, help="Experiment of the run; made where missing.", metavar="NAME")
def submit(overrides: list[str], endpoint: str, experiment: str) -> None:
    """Start a run of pipelines/pipeline.yaml on a server."""
    try:
        started = client.Client(host=endpoint).create_run_from_pipeline_package(
            str(PIPELINE_YAML), arguments={"overrides": overrides}, experiment_name=experiment
        )
    except (kfp_server_api.ApiException, urllib3.exceptions.HTTPError) as error:
        raise click.ClickException(
            f"{endpoint}: {error}\nExpected a Kubeflow Pipelines API there; look at --endpoint, and whether it can be "
            "reached, for instance by `kubectl port-forward -n kubeflow svc/ml-pipeline 8888`."
        ) from error
    click.echo(f"{endpoint.rstrip('/')}/#/runs/details/{started.run_id}")
