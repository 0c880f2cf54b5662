"""torchrun for the pods of a training job: `python -m mum_model.pretrain.launch pretrain key=value ...`.

torchrun itself ends with status 1 whatever its processes ended with; whoever started the job would not know a preempted
training from a failed one.
"""

import sys
from collections.abc import Sequence

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

from mum_model.config import compose
from mum_model.pretrain.preemption import EXIT_STATUS

SPARE_SECONDS = 5
"""What torchrun waits longer for its processes to leave than they take for a last checkpoint."""


def main(arguments: Sequence[str]) -> int:
    """Run `mum` as this node's share of a distributed job; Trainer says by PET_* variables which share that is.

    Args:
        arguments: Of `mum`: a stage and Hydra overrides.

    Returns:
        0, the exit status of the process that failed first (128 + its signal where it was killed), or that of a
        preempted training when SIGTERM came.
    """
    grace = compose(arguments[1:]).machine.grace_seconds
    options = [f"--shutdown-timeout={int(grace) + SPARE_SECONDS}", "-m", "mum_model.cli"]
    try:
        run(parse_args([*options, *arguments]))
    except SignalException:
        return EXIT_STATUS
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"rank {rank} ended first, with status {failure.exitcode}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
