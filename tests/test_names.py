"""A name has one meaning: no two modules of the package define the same public class, function or constant."""

import ast
from collections import defaultdict
from pathlib import Path

import multispin

PACKAGE = Path(multispin.__file__).parent

MAY_STAND_TWICE = {
    "command": "what the command line calls, one in each file of a command",
    "main": "where a process begins, one in each program",
    "advise": "the Python API offers what a room does, under the same name",
    "load_scenario": "the same",
    "plan": "the same",
    "simulate": "the same",
    "log": "each module has its own logger",
    "DEVICE": "who drafts, for planners; and who drafted, for OpenAI's clients, whom a device serves without a planner",
    "EDGE": "the same",
    "Clock": "a type, spelt out where it is needed",
    "Floats": "the same",
    "Handler": "the same",
    "Made": "a type variable, which means something only where it is bound",
    "Result": "the same",
}


def definitions(source):
    """Public names that a module defines at its top, with what defines them."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                yield from (name.id for name in names if isinstance(name, ast.Name))


def test_a_public_name_is_defined_in_one_module():
    where = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for name in definitions(path.read_text(encoding="utf-8")):
            if not name.startswith("_"):
                where[name].add(str(path.relative_to(PACKAGE)))
    twice = {name: sorted(files) for name, files in where.items() if len(files) > 1}
    assert {name: files for name, files in twice.items() if name not in MAY_STAND_TWICE} == {}
    assert set(MAY_STAND_TWICE) == set(twice), "an exception that is not needed any more"


def test_a_class_has_a_name_of_its_own_be_it_private_or_not():
    where = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                where[node.name.lstrip("_")].add((str(path.relative_to(PACKAGE)), node.name))
    assert {name: sorted(found) for name, found in where.items() if len(found) > 1} == {}
