"""The layout of the code, read from its source: which file imports which, and how long things are.

A *room* is a folder of the three packages; a module directly in ``lab/`` or ``federated/`` is a
room by itself. Every import counts: at the top of a file, inside a function, and under
``TYPE_CHECKING``.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("lab", "federated", "secure_agg")
FLAT_PACKAGES = ("secure_agg",)  # one room, folders in it counted
FLOWER_API = {"flwr.app", "flwr.serverapp", "flwr.clientapp"}
FLOWER_ROOM = "federated.transport"

FILES_IN_A_FOLDER = 14
LINES_OF_A_FUNCTION = 50
LINES_OF_A_FILE = 400
REASON = "Longer than 400 lines because"


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, its path below the root, its text and its syntax tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def room(self) -> str:
        package, *inner = self.name.split(".")
        if package in FLAT_PACKAGES:
            return package
        if self.is_package or len(inner) == 1:
            return self.name
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class Import:
    """One import statement's target: a module of ours, or the dotted name of somebody else's."""

    source: str
    target: str
    place: str


# -- reading the source -----------------------------------------------------------------------


@cache
def modules() -> Mapping[str, Module]:
    """Every module of the three packages, by dotted name."""
    files = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    read = [module(path.relative_to(ROOT), path.read_text(encoding="utf-8")) for path in files]
    return {each.name: each for each in read}


def module(path: Path, text: str) -> Module:
    parts = path.with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, text, ast.parse(text, str(path)))


def imports_of(source: Module, ours: Mapping[str, Module]) -> Iterator[Import]:
    """Every import of ``source``, wherever it stands in the file."""
    for node in ast.walk(source.tree):
        place = f"{source.path}:{getattr(node, 'lineno', 0)}"
        match node:
            case ast.Import(names=names):
                for alias in names:
                    yield Import(source.name, known_module(alias.name, ours), place)
            case ast.ImportFrom(names=names):
                origin = absolute_origin(source, node)
                for alias in names:  # a name is a module of its own or something inside origin
                    target = f"{origin}.{alias.name}"
                    yield Import(source.name, target if target in ours else origin, place)


def absolute_origin(source: Module, node: ast.ImportFrom) -> str:
    """The module after ``from``, with leading dots resolved."""
    if not node.level:
        return node.module or ""
    package = source.name.split(".") if source.is_package else source.name.split(".")[:-1]
    parents = package[: len(package) - node.level + 1]
    return ".".join([*parents, node.module] if node.module else parents)


def known_module(name: str, ours: Mapping[str, Module]) -> str:
    """``name``, or for an attribute of one of our modules, that module."""
    while name not in ours and name.partition(".")[0] in PACKAGES and "." in name:
        name = name.rpartition(".")[0]
    return name


@cache
def imports() -> tuple[Import, ...]:
    return tuple(each for source in modules().values() for each in imports_of(source, modules()))


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Qualified name and length in lines of every function, from ``def`` to its last line."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield prefix + name, (node.end_lineno or node.lineno) - node.lineno + 1
                yield from functions(node, f"{prefix}{name}.")
            case ast.ClassDef(name=name):
                yield from functions(node, f"{prefix}{name}.")
            case _:
                yield from functions(node, prefix)


# -- circles ----------------------------------------------------------------------------------


def circles(links: tuple[Import, ...], unit: Callable[[str], str]) -> list[str]:
    """Every circle of units that import each other, described by the imports that close it."""
    between: dict[tuple[str, str], list[str]] = defaultdict(list)
    for link in links:
        source, target = unit(link.source), unit(link.target)
        if source != target:
            between[source, target].append(link.place)
    graph: dict[str, set[str]] = defaultdict(set)
    for source, target in between:
        graph[source].add(target)
    reach = {start: reachable(start, graph) for start in list(graph)}
    return [
        f"{source} -> {target} ({', '.join(places)})"
        for (source, target), places in sorted(between.items())
        if source in reach.get(target, ())
    ]


def reachable(start: str, graph: Mapping[str, set[str]]) -> set[str]:
    """Everything that can be reached from ``start`` in one step or more."""
    visited: set[str] = set()
    frontier = list(graph.get(start, ()))
    while frontier:
        node = frontier.pop()
        if node not in visited:
            visited.add(node)
            frontier.extend(graph.get(node, ()))
    return visited


def own_imports() -> tuple[Import, ...]:
    return tuple(link for link in imports() if link.target in modules())


def listing(culprits: list[str]) -> str:
    return "\n".join(["", *culprits])


# -- the reader itself ------------------------------------------------------------------------


def test_imports_in_functions_and_under_type_checking_are_counted() -> None:
    first = module(
        Path("lab/first/one.py"),
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lab.second import two\n",
    )
    second = module(
        Path("lab/second/two.py"), "def later():\n    from ..first.one import anything\n"
    )
    ours = {each.name: each for each in (first, second)}
    links = tuple(
        link for each in ours.values() for link in imports_of(each, ours) if link.target in ours
    )
    assert circles(links, lambda name: name) == [
        "lab.first.one -> lab.second.two (lab/first/one.py:3)",
        "lab.second.two -> lab.first.one (lab/second/two.py:2)",
    ]
    assert len(circles(links, lambda name: ours[name].room)) == 2


def test_the_source_of_all_three_packages_is_read() -> None:
    packages_with_imports = {link.source.partition(".")[0] for link in own_imports()}
    assert packages_with_imports == set(PACKAGES)


# -- the layout -------------------------------------------------------------------------------


def test_no_modules_import_each_other_in_a_circle() -> None:
    culprits = circles(own_imports(), lambda name: name)
    assert not culprits, listing(culprits)


def test_no_rooms_import_each_other_in_a_circle() -> None:
    culprits = circles(own_imports(), lambda name: modules()[name].room)
    assert not culprits, listing(culprits)


def test_no_folder_of_code_has_more_than_14_files() -> None:
    folders: dict[Path, int] = defaultdict(int)
    for each in modules().values():
        folders[each.path.parent] += not each.is_package
    culprits = [f"{f}: {n} files" for f, n in folders.items() if n > FILES_IN_A_FOLDER]
    assert not culprits, listing(culprits)


def test_no_function_has_more_than_50_lines() -> None:
    culprits = {
        f"{each.name}.{name}"
        for each in modules().values()
        for name, lines in functions(each.tree)
        if lines > LINES_OF_A_FUNCTION
    }
    assert not culprits, listing(sorted(culprits))


def test_a_file_of_more_than_400_lines_says_why_in_its_docstring() -> None:
    lengths = {each: len(each.text.splitlines()) for each in modules().values()}
    culprits = {
        each.name
        for each, lines in lengths.items()
        if lines > LINES_OF_A_FILE and REASON not in " ".join(docstring_words(each))
    }
    assert not culprits, listing(sorted(culprits))


def docstring_words(each: Module) -> list[str]:
    return (ast.get_docstring(each.tree) or "").split()


def test_every_class_name_is_defined_once() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for each in modules().values():
        for node in ast.walk(each.tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{each.path}:{node.lineno}")
    culprits = [f"{name}: {', '.join(at)}" for name, at in sorted(places.items()) if len(at) > 1]
    assert not culprits, listing(culprits)


def test_only_the_transport_room_imports_more_of_flower_than_its_public_api() -> None:
    culprits = [
        f"{link.place} imports {link.target}"
        for link in imports()
        if link.target.partition(".")[0] == "flwr" and link.target not in FLOWER_API
        if modules()[link.source].room != FLOWER_ROOM
    ]
    assert not culprits, listing(culprits)


def test_test_folders_mirror_the_packages() -> None:
    culprits = [
        f"{folder.relative_to(ROOT)} has no counterpart {folder.relative_to(ROOT / 'tests')}"
        for package in PACKAGES
        for folder in sorted((ROOT / "tests" / package).rglob("*"))
        if folder.is_dir() and folder.name != "__pycache__" and any(folder.glob("*.py"))
        if not (ROOT / folder.relative_to(ROOT / "tests")).is_dir()
    ]
    assert not culprits, listing(culprits)


def test_every_test_that_the_readme_names_is_there() -> None:
    names = re.findall(r"`(\S+/test_\w+\.py)`", (ROOT / "README.md").read_text())
    assert len(names) > 20
    assert [name for name in names if not (ROOT / "tests" / name).is_file()] == []
