"""The README and the documentation name only what exists: links, pictures, commands, options and make targets."""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from multispin.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def targets(page: Path) -> list[str]:
    """The relative links of a page, code aside."""
    found = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
    return [link for link in found if not link.startswith(("http://", "https://", "mailto:"))]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for link in targets(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} does not exist"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_the_readme_on_a_package_index_links_to_what_is_there():
    """There is no folder docs/ beside it: the build makes plain words of links to files."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["metadata"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for each in settings["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(each["pattern"], each["replacement"], text)
    links = LINK.findall(CODE.sub("", text))
    assert len(links) > 1
    assert {link.removeprefix("#") for link in links if link.startswith("#")} <= anchors(ROOT / "README.md")
    assert all(link.startswith(("#", "https://")) for link in links)
    assert not re.search(r"<img|<a |^\[[^]]+\]:", text, re.MULTILINE)  # forms that the substitution does not know
    assert "docs/advise.md" in text  # a link's words are kept


def test_the_index_names_every_page():
    index = ROOT / "docs" / "README.md"
    named = {(index.parent / link).resolve() for link in targets(index)}
    assert {page for page in PAGES if page.parent != ROOT} - {index} <= named


def test_every_picture_of_the_documentation_is_shown_somewhere():
    shown = {(page.parent / link).resolve() for page in PAGES for link in targets(page)}
    assert set((ROOT / "docs" / "images").iterdir()) <= shown


def test_the_changelog_goes_back_to_the_first_version():
    """A commit once cut off all but its newest entries, and nothing else noticed."""
    assert "\n## 0.1.0\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


COMMANDS = "|".join(cli.list_commands(click.Context(cli)))
PLACEHOLDER = re.compile(r"[A-Z_]+$|.*[…$]")
"""A word that stands for what the reader puts in, such as FILE or $P."""


def shown_commands() -> list[tuple[str, str]]:
    """(page, command line) of every `multispin …` that stands in a block of code or in a sentence."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^(?: {4})?(?:\.venv/bin/)?(multispin +[a-z].*)$", text, re.MULTILINE):
            found += [(page.name, part.strip()) for part in re.split(r"&&|\|", line)]
        for line in re.findall(rf"`(?:[A-Z_]+=\S+ )*(?:multispin )?((?:{COMMANDS}) [^`]*?)(?:\||`)", text):
            found.append((page.name, "multispin " + " ".join(line.split())))
    return list(dict.fromkeys((page, part) for page, part in found if part.startswith("multispin")))


def values_of(words: list[str], parameter: click.Parameter, given: object) -> list[str]:
    """The words that stand for a parameter, without placeholders."""
    values = given if isinstance(given, list | tuple) else [given]
    flat = [word for value in values for word in (value if isinstance(value, tuple) else [value])]
    return [word for word in flat if word in words and not PLACEHOLDER.match(word)]


@pytest.mark.parametrize(("page", "line"), shown_commands())
def test_every_shown_command_parses(page, line):
    """Its options exist, have as many values as they take, and numbers and choices are allowed ones."""
    name, *words = shlex.split(line.split(" > ")[0], comments=True)[1:]
    command = cli.get_command(click.Context(cli), name)
    if isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(click.Context(command), name)
    assert command is not None, f"no command {name}"
    if words[-1:] and words[-1].startswith("--"):
        words += ["VALUE"] * 3  # a sentence may name an option alone
    context = click.Context(command)
    given, left, _ = command.make_parser(context).parse_args(list(words))
    assert not [word for word in left if not PLACEHOLDER.match(word)]
    for parameter in command.params:
        if not isinstance(parameter.type, click.Path | click.File):
            for word in values_of(words, parameter, given.get(parameter.name)):
                parameter.type.convert(word, parameter, context)


def shown_programs() -> list[tuple[str, str]]:
    """(file, command line) of every `python FILE …` of this repository, in a block of code or in a sentence."""
    lines = [
        line
        for page in PAGES
        for line in re.findall(
            r"python ([\w/]+\.py\b[^`|&#]*?)(?:`|\||&|#|\n\n|\n    )", page.read_text(encoding="utf-8")
        )
    ]
    return sorted({(shlex.split(line)[0], " ".join(line.split())) for line in lines})


@pytest.mark.parametrize(("file", "line"), shown_programs())
def test_every_shown_program_exists_and_knows_its_options(file, line):
    source = (ROOT / file).read_text(encoding="utf-8")
    for option in re.findall(r"--[a-z-]+", line):
        assert f'"{option}"' in source, f"{file} has no {option}"


def test_every_make_target_that_is_named_exists():
    targets_of_make = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [*PAGES, *(ROOT / ".github").rglob("*.yml")]
    named = {
        target
        for page in pages
        for target in re.findall(r"(?:`|^ {4}|run: )make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"demo", "test"} <= named <= targets_of_make


def shown_imports() -> list[tuple[str, str]]:
    """(page, statement) of every import of this package that stands in a block of Python."""
    blocks = [(p.name, b) for p in PAGES for b in re.findall(r"```python\n(.*?)```", p.read_text("utf-8"), re.DOTALL)]
    return [(page, line) for page, block in blocks for line in re.findall(r"^from multispin.*$", block, re.MULTILINE)]


@pytest.mark.parametrize(("page", "line"), shown_imports())
def test_every_shown_import_works(page, line):
    exec(line, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_exists(page):
    """`tests/…`, `benchmarks/…`, `examples/…`, and files of a room such as `models/packed.py`."""
    for name in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|toml|json|txt))`", page.read_text(encoding="utf-8")):
        assert (ROOT / name).exists() or (ROOT / "src" / "multispin" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_name_of_a_module_that_is_given_exists(page):
    """Such as `protocol.limits.MAX_FRAME_BYTES`: a room, a module, and what it defines."""
    rooms = "|".join(path.name for path in (ROOT / "src" / "multispin").iterdir() if path.is_dir())
    for room, module, name in re.findall(rf"`({rooms})\.(\w+)\.(\w+)`", page.read_text(encoding="utf-8")):
        there = importlib.util.find_spec(f"multispin.{room}.{module}").submodule_search_locations
        if not (there and importlib.util.find_spec(f"multispin.{room}.{module}.{name}")):  # a module of a folder
            assert hasattr(importlib.import_module(f"multispin.{room}.{module}"), name), f"{room}.{module}.{name}"


def test_the_page_of_the_protocol_lists_the_error_codes_that_an_edge_sends():
    codes = set()
    for room in ("protocol", "passes", "edge"):
        for path in (ROOT / "src" / "multispin" / room).rglob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if (
                    isinstance(call, ast.Call)
                    and getattr(call.func, "id", "") in ("ProtocolError", "Error")
                    and call.args
                ):
                    codes |= {call.args[0].value} if isinstance(call.args[0], ast.Constant) else set()
    listed = (
        (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8").partition("Error codes: ")[2].partition("\n\n")[0]
    )
    named = set(re.findall(r"`([\w-]+)`", listed))
    assert codes <= named
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "multispin").rglob("*.py"))
    assert not [code for code in named if f'"{code}"' not in sources]


def test_the_page_and_the_picture_of_the_architecture_show_every_room():
    rooms = {path.stem for path in (ROOT / "src" / "multispin").iterdir() if path.is_dir() or path.suffix == ".py"}
    rooms = {room for room in rooms if not room.startswith("__")}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## The rooms")[2].partition("\n## ")[0]
    assert rooms <= set(re.findall(r"`(\w+)`", table))
    picture = (ROOT / "docs" / "images" / "architecture.svg").read_text(encoding="utf-8")
    assert rooms <= set(re.findall(r">(\w+)<", picture))
