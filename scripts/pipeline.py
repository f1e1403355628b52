"""The whole chain, steps 1 to 9: on this machine, or on a Slurm cluster.

./pipeline.sh --profile tiny --run x                run here; what is finished stays, and is not done again
./pipeline.sh --slurm --profile tiny --run x        submit everything at once, each stage waiting for those before it
./pipeline.sh --slurm --dry-run …                   say what would be submitted, read and written
./pipeline.sh status x | cancel x | resume x        how it goes; end it; go on with what is not complete
./pipeline.sh preflight [flags]                     check everything before anything queues

Every setting of a stage (TEACHER_LR …) is a variable or a line of the profile, as for the stage alone.
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> int:
    from arena_distill.pipeline.commands import run

    return run(sys.argv[1:], __doc__ or "")


if __name__ == "__main__":
    sys.exit(run_command(main))
