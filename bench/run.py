"""Every measurement of this folder, one after the other, and the table of what came of them.

    make bench                              # sets up what it needs first, peers in .venv-bench included
    python bench/run.py --quick             # a look at whether everything runs; no results are written
    python bench/run.py tta startup         # some of them

Writes bench/results/table.json and table.txt. A target that is missed is said in the table and is no failure; a script
that breaks is one, after the others have run. Scripts run one at a time, on all cores: leave the machine alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from common import RESULTS, RESULTS_VARIABLE, Row, arguments, table, table_line, write_result

FOLDER = Path(__file__).resolve().parent
SCRIPTS = (
    "student_inference",
    "tta",
    "teacher_scoring",
    "training",
    "merge",
    "data_layer",
    "startup",
    "growth",
    "demo",
    "gpu",
)
LIMIT_SECONDS = 1200  # of one script


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help=f"of {', '.join(SCRIPTS)} (default: all)")
    options = parser.parse_args()
    if unknown := [name for name in options.scripts if name not in SCRIPTS]:
        parser.error(f"there is no {unknown[0]}; choose from {', '.join(SCRIPTS)}")
    rows: list[Row] = []
    runs: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.scripts or SCRIPTS:
            print(f"\n== {name}", flush=True)
            runs[name], found = run(name, options.quick, Path(temporary))
            rows += found
    print("\n" + summary(rows, runs))
    # Some of the scripts alone say nothing of the others: the table is of all.
    if not options.quick and not options.scripts:
        write_result("table", {"rows": [table_line(row) for row in rows], "scripts": runs})
        (RESULTS / "table.txt").write_text(summary(rows, runs) + "\n", "utf-8")
    return 1 if any(entry["state"] == "broken" for entry in runs.values()) else 0


def run(name: str, quick: bool, scratch: Path) -> tuple[dict[str, Any], list[Row]]:
    """One script: how it went, and its lines of the table."""
    script = FOLDER / f"{name}.py"
    if not script.is_file():
        print("not there")
        return {"state": "not there"}, []
    environment = {**os.environ, **({RESULTS_VARIABLE: str(scratch)} if quick else {})}
    file = (scratch if quick else RESULTS) / f"{name}.json"
    started, wall = time.perf_counter(), time.time()
    command = [sys.executable, str(script), *(["--quick"] if quick else [])]
    try:
        code = subprocess.run(command, env=environment, timeout=LIMIT_SECONDS).returncode
        reason = f"exit code {code}" if code else ""
    except subprocess.TimeoutExpired:
        reason = f"not done after {LIMIT_SECONDS} seconds"
    seconds = round(time.perf_counter() - started, 1)
    if not reason and not (file.is_file() and file.stat().st_mtime >= wall - 2):
        reason = "wrote no result"
    if reason:
        print(f"{name}: {reason}")
        return {"state": "broken", "reason": reason, "seconds": seconds}, []
    return {"state": "done", "seconds": seconds}, [row(line) for line in json.loads(file.read_text("utf-8"))["rows"]]


def row(line: dict[str, Any]) -> Row:
    """A line of the table, from JSON."""
    return Row(**{of.name: line[of.name] for of in fields(Row) if of.name in line})


def summary(rows: list[Row], runs: dict[str, dict[str, Any]]) -> str:
    """The table, how many targets are reached, and how long everything took."""
    aimed = [row for row in rows if row.target is not None]
    reached = sum(row.reached is True for row in aimed)
    unequal = sum(not row.equal for row in rows)
    lines = [table(rows), "", f"{reached} of {len(aimed)} targets reached"]
    if unequal:
        lines[-1] += f"; results differ in {unequal}"
    states = [
        f"{name}: {run['state']}" + (f" ({run['reason']})" if "reason" in run else "")
        for name, run in runs.items()
        if run["state"] != "done"
    ]
    lines += states
    lines.append(f"{sum(run.get('seconds', 0) for run in runs.values()) / 60:.0f} minutes")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
