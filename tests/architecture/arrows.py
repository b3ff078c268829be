"""Who may import whom, and a reader of the imports that are there.

    noukai_airflow  →  noukai_core  ←  noukai_prefect

The orchestrator packages take the core's public names alone and know nothing of each other. Inside the core
a module imports from the rows below its own; the emulator stands aside, and nobody imports it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LAYERS = (
    ("client", "aio"),
    ("handles",),
    ("http", "submission", "watch"),
    ("budget", "room", "steps", "transport"),
    ("aiohttp_transport", "httpx_transport"),
    ("policy", "calls", "exchange"),
    ("answers",),
    ("settings",),
    ("inputs",),
    ("models",),
    ("errors",),
)
DEPTH = {module: depth for depth, row in enumerate(LAYERS) for module in row}
EMULATOR_MAY_USE = DEPTH["policy"]
WIRE_USERS = {
    "aiohttp": {"aiohttp_transport"},
    "httpx": {"client", "aio", "http", "transport", "aiohttp_transport", "httpx_transport"},
    "yarl": {"aiohttp_transport"},
}
THIRD_PARTIES = {
    "core": {"aiohttp", "httpx", "pydantic", "yarl"},
    "emulator": {"httpx", "pydantic", "starlette", "uvicorn"},
    "noukai_airflow": {"airflow", "attrs"},  # Airflow makes its operator links with attrs
    "noukai_prefect": {"anyio", "prefect", "pydantic"},
}
OURS = {"noukai_core", "noukai_airflow", "noukai_prefect"}


@dataclass(frozen=True)
class Import:
    """One name that one module takes from another."""

    importer: str
    target: str
    line: int
    for_types_only: bool

    @property
    def part(self) -> str:
        """The part of the house that the importing module belongs to."""
        package, *inner = self.importer.split(".")
        if package != "noukai_core":
            return package
        return "emulator" if inner[:1] == ["emulator"] else "core"

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def violations(root: Path) -> list[str]:
    """What in the three packages under `root` goes against the arrows, one sentence each."""
    public = public_names(root / "core" / "noukai_core" / "__init__.py")
    found = [f"{each}: {wrong}" for each in imports(root) if (wrong := fault(each, public))]
    unplaced = [
        f"noukai_core.{path.stem} has no place in the layers"
        for path in sorted((root / "core" / "noukai_core").glob("*.py"))
        if path.stem not in DEPTH and path.stem != "__init__"
    ]
    return found + unplaced


def fault(each: Import, public: set[str]) -> str | None:
    """Why an import is not allowed, or `None` when it is."""
    package, *names = each.target.split(".")
    if package not in OURS:
        return _third_party_fault(each, package)
    if each.part in ("noukai_airflow", "noukai_prefect"):
        return _orchestrator_fault(each, package, names, public)
    if package != "noukai_core":
        return "the core knows no orchestrator"
    return _core_fault(each, names)


def _third_party_fault(each: Import, package: str) -> str | None:
    if package in sys.stdlib_module_names:
        return None
    if package not in THIRD_PARTIES[each.part]:
        return f"{package} is no dependency of {each.part}"
    module = each.importer.removeprefix("noukai_core.")
    if each.part == "core" and module not in WIRE_USERS.get(package, {module}):
        return f"{package} stays behind http.py and the transports"
    return None


def _orchestrator_fault(each: Import, package: str, names: list[str], public: set[str]) -> str | None:
    if package == each.part:
        return None
    if package != "noukai_core":
        return "the two orchestrator packages do not know each other"
    if (
        not names
        or names[0] in public
        or (names[0] == "errors" and not any(name.startswith("_") for name in names))
    ):
        return None
    return "only public names of noukai_core and noukai_core.errors"


def _core_fault(each: Import, names: list[str]) -> str | None:
    importer = each.importer.split(".")[1:]
    module = names[0] if names else ""
    if not importer or (each.for_types_only and module in DEPTH):
        return None
    if each.part == "emulator":
        allowed = module == "emulator" or DEPTH.get(module, -1) >= EMULATOR_MAY_USE
        return None if allowed else "the emulator does not lean on what it is there to test"
    if module == "emulator":
        return "nothing imports the emulator"
    if module not in DEPTH:
        return "inside the core a name is taken from the module that holds it"
    return (
        None if DEPTH[module] > DEPTH.get(importer[0], -1) else "a module imports from the rows below its own"
    )


def imports(root: Path) -> Iterator[Import]:
    """Every import in the three packages, also those inside functions."""
    for source_root, package in (
        (root / "core", "noukai_core"),
        (root, "noukai_airflow"),
        (root, "noukai_prefect"),
    ):
        for path in sorted((source_root / package).rglob("*.py")):
            module = ".".join(path.relative_to(source_root).with_suffix("").parts).removesuffix(".__init__")
            yield from _imports_of(module, path)


def _imports_of(module: str, path: Path) -> Iterator[Import]:
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    tree = ast.parse(path.read_text("utf-8"), str(path))
    typing_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            yield Import(module, target, node.lineno, node in typing_only)


def public_names(path: Path) -> set[str]:
    """The names in a module's `__all__`."""
    for statement in ast.parse(path.read_text("utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return set(ast.literal_eval(statement.value))
    return set()
