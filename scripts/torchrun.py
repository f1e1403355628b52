"""torchrun that ends with the exit code of the worker that failed first: 2, 3 and 75 are its own, and no crash."""

import argparse
import signal
import sys

from arena_distill.runtime.errors import EXIT_BAD_INPUT, EXIT_BAD_SETTINGS, EXIT_REQUEUE

SAID_WHY = (EXIT_BAD_SETTINGS, EXIT_BAD_INPUT, EXIT_REQUEUE)
USAGE = "torchrun.py [torchrun's flags] WORKER [the worker's flags]"
FLAGS = "torchrun's flags: python -m torch.distributed.run --help"


def main() -> int:
    if sys.argv[1:] in (["--help"], ["-h"]):  # torchrun's own help would import torch first
        argparse.ArgumentParser("torchrun.py", USAGE, __doc__, FLAGS).print_help()
        return 0
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    try:
        torchrun(sys.argv[1:])
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode not in SAID_WHY:
            raise
        return int(first.exitcode)
    except SignalException as error:  # Slurm may tell the steps of a job alone that it is preempted
        return EXIT_REQUEUE if error.sigval == signal.SIGTERM else 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main())
