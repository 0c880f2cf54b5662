"""`mum <stage> [key=value ...]`: dispatch, and nothing but dispatch."""

import errno
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import hydra
from omegaconf import DictConfig

from mum_model.config import CONFIG_DIR, CONFIG_NAME
from mum_model.errors import UserError

STAGES = {
    "prepare": ("mum_model.prepare", "raw captures, or rendered scenes -> a dataset"),
    "pretrain": ("mum_model.pretrain", "a dataset -> a run with the trained encoder"),
    "evaluate": ("mum_model.evaluate", "a run and a dataset -> a report on matching and relative pose"),
    "report": ("mum_model.evaluate", "evaluations made apart -> one report over all of them"),
    "export": ("mum_model.export", "a run -> ONNX, checked against PyTorch"),
    "serve": ("mum_model.serve", "ONNX -> an endpoint (Open Inference Protocol, REST and gRPC)"),
    "summary": ("mum_model.summary", "what the stages found, and where everything lies"),
}

COMMANDS = {
    "data": ("mum_model.prepare.compare", "two datasets -> what changed between them: mum data diff A B"),
    "embed": ("mum_model.serve.embed", "images -> features, by an exported encoder"),
    "reconstruct": ("mum_model.pretrain.reconstruct", "images -> a picture of what a trained model reconstructs"),
}

# What a volume does, not this program: full, over its quota, read-only, or another user's.
OF_THE_VOLUME = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)

# Hydra would make a folder of its own for each run; stages say themselves where they write.
HYDRA_SETTINGS = [
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=stdout",
    "hydra.sweep.dir=outputs/multirun",
]


def main() -> None:
    """Entry point of the `mum` command."""
    name, *arguments = sys.argv[1:] or ["--help"]
    try:
        sys.exit(_run(name, arguments))
    except UserError as error:
        sys.exit(_say(error))


def _run(name: str, arguments: Sequence[str]) -> int:
    if name in COMMANDS:
        return import_module(COMMANDS[name][0]).main(arguments)
    if name == "prepare" and "--list-sources" in arguments:
        print(import_module("mum_model.data.sources").source_table())
        return 0
    if name in STAGES:
        return _run_stage(name, arguments)
    if name in ("--help", "-h", "help"):
        print(_help())
        return 0
    raise UserError(f"'{name}' is no stage of mum: expected one of {', '.join([*STAGES, *COMMANDS])}")


def _run_stage(name: str, arguments: Sequence[str]) -> int:
    """Run a stage under Hydra, which composes the configuration from the arguments."""
    failure: list[UserError] = []

    def stage(cfg: DictConfig) -> None:
        logging.getLogger().setLevel(logging.WARNING)  # libraries speak up when something is wrong
        logging.getLogger("mum_model").setLevel(logging.INFO)
        function: Callable[[DictConfig], object] = getattr(import_module(STAGES[name][0]), name)
        try:
            function(cfg)
        except UserError as error:
            failure.append(error)
        except OSError as error:
            if error.errno not in OF_THE_VOLUME:
                raise
            place = Path(error.filename).absolute() if error.filename else "a file below paths.*"
            failure.append(UserError(f"{place}: {error.strerror}; look at the volume, its space and its owner"))

    # Beside the first override: Hydra's parser wants all overrides in one row, before or behind its flags.
    first = next((i for i, argument in enumerate(arguments) if "=" in argument), len(arguments))
    sys.argv = [f"mum {name}", *arguments[:first], *HYDRA_SETTINGS, *arguments[first:]]
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(stage)()
    return _say(failure[0]) if failure else 0


def _say(error: UserError) -> int:
    print(f"mum: {error}", file=sys.stderr)
    return error.status


def _help() -> str:
    width = max(map(len, [*STAGES, *COMMANDS])) + 2
    stages = "\n".join(f"  {name:{width}}{text}" for name, (_, text) in STAGES.items())
    commands = "\n".join(f"  {name:{width}}{text}" for name, (_, text) in COMMANDS.items())
    return f"""mum: multi-view masked image modelling, from captures to a served encoder.

Stages, in their order: mum STAGE [key=value ...]
{stages}

Commands: mum COMMAND ...
{commands}

  mum STAGE --help            options of a stage
  mum STAGE --cfg job         the configuration it would run with
  mum STAGE -m seed=0,1,2     one run for each value
  mum prepare --list-sources  the formats and datasets that can be read
  mum COMMAND --help          options of a command"""


if __name__ == "__main__":
    main()
