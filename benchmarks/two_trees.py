"""Size of this version beside an older one's, and what their commands take: processor time, memory and modules.

    git worktree add ../older 3762bdc
    OMP_NUM_THREADS=1 python benchmarks/two_trees.py ../older

Each command is a process of its own; the versions take turns. Shown is the least of three runs.
"""

import argparse
import ast
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
SCENARIO = "examples/scenarios/paper-llama.toml"
COMMANDS = (
    *("-c import&multispin", "-c import&multispin.device", "-c import&multispin.edge"),
    "-c import&multispin.simulation.site",
    *(f"-m multispin {command}" for command in ("--help", "device --help", "serve --help", "demo --help")),
    *(f"-m multispin {command}" for command in ("profile --help", "distill --help", "reproduce --help")),
    f"-m multispin plan {SCENARIO}",
    f"-m multispin simulate {SCENARIO} --rounds 50",
)


def code_lines(source: str) -> int:
    """Lines that are neither empty, nor comments, nor docstrings."""
    documented = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(number not in documented and line.strip()[:1] not in ("", "#") for number, line in lines)


def longest_function(source: str) -> int:
    """Lines of the longest function, its docstring included."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    found = (node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return max(((node.end_lineno or 0) - node.lineno + 1 for node in found), default=0)


def size(root: Path) -> dict[str, int]:
    sources = [path.read_text(encoding="utf-8") for path in (root / "src").rglob("*.py")]
    tests = [path.read_text(encoding="utf-8") for path in (root / "tests").rglob("*.py")]
    return {
        "Python files in src/": len(sources),
        "lines in them": sum(source.count("\n") for source in sources),
        "of these, code": sum(map(code_lines, sources)),
        "longest file": max(source.count("\n") for source in sources),
        "longest function": max(map(longest_function, sources)),
        "lines of Python in tests/": sum(source.count("\n") for source in tests),
    }


def took(root: Path, command: str) -> tuple[float, float, int]:
    """Processor time [s] and largest memory [MiB] of a command, and the modules that it has loaded at its end."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONPROFILEIMPORTTIME": "1"}
    arguments = [part.replace("&", " ") for part in command.split()]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    modules = sum(line.startswith(b"import time:") for line in process.stderr) - 1  # the first is a heading
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} ended with {process.returncode} in {root}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, modules


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("older", type=Path, help="the older version's working tree")
    trees = parser.parse_args().older.resolve(), HERE
    for (name, before), after in zip(size(trees[0]).items(), size(trees[1]).values(), strict=True):
        print(f"{name:34}{before:10,}{after:10,}")
    print(f"\n{time.strftime('%H:%M')}, load {os.getloadavg()[0]:.0f}")
    for command in COMMANDS:
        runs: tuple[list[tuple[float, float, int]], ...] = [], []
        for _ in range(3):
            for each, tree in zip(runs, trees, strict=True):
                each.append(took(tree, command))
        shown = [tuple(map(min, zip(*each, strict=True))) for each in runs]
        columns = "   ".join(
            f"{seconds:6.2f} s {memory:5.0f} MiB {modules:5} modules" for seconds, memory, modules in shown
        )
        print(f"{command.replace('&', ' '):62}{columns}", flush=True)


if __name__ == "__main__":
    main()
