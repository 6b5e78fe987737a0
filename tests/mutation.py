"""``python -m tests.mutation [names of mutants with *]``: mutation testing of the modules in ``[tool.mutmut]`` (``make mutation``).

mutmut changes one expression at a time and runs the tests that reach the changed function. A mutant that no test notices survives. It is
printed unless ``tests/equivalent_mutants.toml`` lists it with the reason why no test can notice it. The exit status is 1 if a module is
below ``MIN_SCORE``. Results are kept in ``mutants/``, and a later run tests only functions that changed. ``--report`` prints them again.
The environment variable ``MUTATION_PROCESSES`` is the number of processes (default 2).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import orig_function_and_class_names_from_key

MIN_SCORE = 0.95
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
_KILLED = ("killed", "timeout", "segfault")
# Function, original code, changed code. White space is normalized, and line numbers are not part of it.
_Change = tuple[str, str, str]


def _equivalent_mutants() -> tuple[set[_Change], list[re.Pattern[str]]]:
    """Return the listed changes, and the rules: patterns of ``original => mutated``."""
    listed = tomllib.loads(EQUIVALENT.read_text("utf-8"))
    changes = {(entry["function"], original, mutated) for entry in listed["equivalent"] for original, mutated in entry["changes"]}
    return changes, [re.compile(rule["pattern"]) for rule in listed["rule"]]


def _change(mutant: str, path: Path) -> _Change:
    function, class_name = orig_function_and_class_names_from_key(mutant)
    module = mutant.rpartition(".")[0]
    lines = get_diff_for_mutant(mutant, path=path).splitlines()[2:]
    original, mutated = (" ".join(" ".join(line[1:] for line in lines if line[:1] == sign).split()) for sign in "-+")
    return ".".join(filter(None, (module, class_name, function.rpartition(".")[2]))), original, mutated


def _report(equivalent: set[_Change], rules: list[re.Pattern[str]]) -> int:
    """Print the score of each module, the survivors, and list entries without a survivor. Return 1 if a score is too low."""
    code, survivors, found = 0, defaultdict[Path, list[_Change]](list), set[_Change]()
    print(f"{'module':42} {'mutants':>7} {'killed':>6} {'equivalent':>10} {'survived':>8} {'score':>7}")
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        counts: Counter[str] = Counter()
        for mutant, exit_code in data.exit_code_by_key.items():
            status = status_by_exit_code[exit_code]
            change = _change(mutant, path) if status not in (*_KILLED, "not checked") else None
            if change is not None and (change in equivalent or any(rule.fullmatch(f"{change[1]} => {change[2]}") for rule in rules)):
                found.add(change)
                status = "equivalent"
            elif change is not None:
                survivors[path].append(change)
            counts[status] += 1
        checked = counts.total() - counts["not checked"]
        if not checked:
            continue
        killed = sum(counts[status] for status in _KILLED)
        score = killed / max(1, checked - counts["equivalent"])
        code |= score < MIN_SCORE
        print(f"{path!s:42} {checked:7} {killed:6} {counts['equivalent']:10} {len(survivors[path]):8} {score:7.1%}", flush=True)
    for changes in survivors.values():
        for function, original, mutated in changes:
            print(f"\n{function}\n  - {original}\n  + {mutated}")
    for function, original, mutated in sorted(equivalent - found):
        print(f"\nlisted as equivalent, but killed, changed or not checked: {function}\n  - {original}\n  + {mutated}")
    return code


def main(names: list[str]) -> int:
    """Run mutmut for ``names`` (all mutants by default) and print the report."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    children = os.environ.get("MUTATION_PROCESSES", "2")
    if names != ["--report"]:
        command = [sys.executable, "-m", "mutmut", "run", "--max-children", children, *names]
        # mutmut redraws its progress line for every mutant. A log shows the end of the output, and only of a run that failed.
        output = None if sys.stdout.isatty() else subprocess.PIPE
        done = subprocess.run(command, env=environment, stdout=output, text=True, check=False)
        if done.returncode:
            print(f"{(done.stdout or '')[-4000:]}\nmutmut ended with status {done.returncode}.")
            return done.returncode
    return _report(*_equivalent_mutants())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
