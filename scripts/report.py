"""The report of a run: one page that says how good its model is, and where every number comes from.

python scripts/report.py --run demo
"""

import sys

from arena_distill.runtime.errors import run_command


def main() -> None:
    from arena_distill.report.report_settings import ReportSettings
    from arena_distill.runtime.settings import parse_settings

    settings = parse_settings(ReportSettings, sys.argv[1:], program="report.py", description=__doc__ or "")
    from arena_distill.report.report_stage import write_report

    write_report(settings)


if __name__ == "__main__":
    sys.exit(run_command(main))
