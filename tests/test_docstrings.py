"""Where a docstring says what an argument is, it says its default too, and a unit where the name holds a quantity."""

import ast
import re
from pathlib import Path

import pytest

import multispin

PACKAGE = Path(multispin.__file__).parent
ARGUMENTS = re.compile(r"\n *Args:\n(.*?)(?=\n *(?:Returns|Raises|Attributes|Yields):|\Z)", re.DOTALL)
QUANTITY = re.compile(r"_(s|hz|bits|bytes|db)$")


def described(docstring):
    """The text that a docstring has on each argument."""
    found, indent = {}, None
    section = ARGUMENTS.search(docstring)
    for line in section[1].splitlines() if section else ():
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        if line.strip() and depth == indent:
            name, _, text = line.strip().partition(":")
            found[name] = text
        elif found:
            found[name] += " " + line.strip()
    return found


def documented(tree):
    """Functions that have docstrings with arguments, a class's constructor with the docstring of the class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and each.name == "__init__":
                    yield each, ast.get_docstring(node, clean=False) or ""
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name != "__init__":
            yield node, ast.get_docstring(node, clean=False) or ""


def faults(source):
    """What the docstrings of a module leave out."""
    for function, docstring in documented(ast.parse(source)):
        texts, arguments = described(docstring), function.args
        positional = [*arguments.posonlyargs, *arguments.args]
        optional = positional[len(positional) - len(arguments.defaults) :]
        named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        optional += [argument for argument, default in named if default is not None]
        for name in (argument.arg for argument in optional):
            if "default" not in texts.get(name, "default").lower():
                yield f"{function.name}, line {function.lineno}: {name} without its default"
        for name, text in texts.items():
            if QUANTITY.search(name) and "[" not in text:
                yield f"{function.name}, line {function.lineno}: {name} without its unit"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_argument_is_documented_with_its_default_and_its_unit(path):
    assert list(faults(path.read_text(encoding="utf-8"))) == []


def test_what_is_left_out_is_found():
    source = '''
class Link:
    """A link.

    Args:
        delay_s: one-way delay.
        burst: what it saves up.

    """

    def __init__(self, delay_s, burst=0): ...
'''
    assert list(faults(source)) == [
        "__init__, line 11: burst without its default",
        "__init__, line 11: delay_s without its unit",
    ]
