"""How often do attacks on files, downloads and trainings leave something lost, wrong or crashed?

    python benchmarks/reliability.py attacks.jsonl

runs every attack that the file does not hold yet, each in a process of its own, adds the counts, and prints the table
of docs/reliability.md. This takes more than an hour. ``disk`` fills a small file system of its own, so it
must run as root on Linux.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
ATTEMPTS = {  # of each group of attacks; the others need as many as there are cases
    ("faults.py", "flips"): 2000,
    ("faults.py", "contents"): 300,
    ("faults.py", "disk"): 10,
    ("faults.py", "kills"): 50,
    ("faults.py", "exchange"): 10,
    ("faults.py", "overwrite"): None,
    ("faults.py", "writers"): 24,
    ("faults.py", "readers"): 600,
    ("faults.py", "downloads"): None,
    ("interrupts.py", "signals"): 20,
    ("interrupts.py", "kills"): 20,
    ("interrupts.py", "diverging"): None,
}
DETAILS = ("memory", "retrieval", "validation")


def command(script: str, group: str, n: int | None, out: Path) -> list[str]:
    """Return the command that makes a group of attacks."""
    chosen = [group] if script == "faults.py" else ["--only", group]
    attempts = [] if n is None else ["--n", str(n)]
    return [sys.executable, str(HERE / script), *chosen, *attempts, "--out", str(out)]


def table(rows: list[dict]) -> str:
    """Return the counts as a table of Markdown, one row for each kind of attack."""
    frame = pd.DataFrame(rows)
    frame["attack"] = frame["attack"].str.replace(r" +\(.*\)$", "", regex=True)  # counts in words
    total = frame.groupby(["script", "group", "attack"], sort=False)[["n", "bad"]].sum().reset_index()
    lines = ["| attack | n | bad |", "|---|---|---|"]
    lines += [f"| {row.attack} | {row.n:,} | {row.bad} |" for row in total.itertuples()]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="file of the counts, as lines of JSON")
    parser.add_argument("--only", nargs="+", help="groups of attacks")
    chosen = parser.parse_args()
    rows = [json.loads(line) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    done = {(row["script"], row["group"]) for row in rows}
    for (script, group), n in ATTEMPTS.items():
        if (script, group) in done or (chosen.only and group not in chosen.only):
            continue
        part = chosen.out.with_suffix(f".{Path(script).stem}.{group}.part")
        part.unlink(missing_ok=True)  # of a run that was interrupted
        subprocess.run(command(script, group, n, part), check=True)
        rows += [{"script": script, **json.loads(line)} for line in part.read_text().splitlines()]
        chosen.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
        part.unlink()
    print(table(rows))


if __name__ == "__main__":
    main()
