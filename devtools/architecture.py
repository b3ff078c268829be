"""Draws the packages and their imports: `python -m devtools.architecture > picture.svg`.

The boxes of the core are the layers that `pyproject.toml` sets for import-linter; the arrows are the imports
that the code has. An arrow that follows from others is left out.
"""

from __future__ import annotations

import tomllib
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]

PACKAGES = {
    "noukai_airflow": "operator, sensor, trigger, hook: Airflow tasks",
    "noukai_prefect": "blocks, tasks, flows, hooks: Prefect runs",
}
CORE, EMULATOR = "noukai_core", "emulator"
PURPOSES = {  # of a layer, by one of its modules
    "client": "the drivers: who sends, who sleeps",
    "_handles": "what can be done with a flow or a job",
    "_engine": "decisions over time, as generators of effects",
    "_http": "connections and bytes",
    "_api": "each request, and what each response means",
    "_options": "what a client is set up with",
    "following": "a job's steps, live",
    "submission": "what the integrations share",
    "models": "what the server says, typed",
    "_progress": "progress in words",
    "_text": "text that is safe to show",
    "_validation": "what a caller may pass",
    "errors": "everything that can go wrong",
}

Edge = tuple[str, str]

_WIDTH, _BOX_WIDTH, _BOX_HEIGHT, _STEP, _TOP, _LEFT = 860, 470, 42, 58, 150, 90


def imports() -> set[Edge]:
    """Return which box imports which, without what `TYPE_CHECKING` guards."""
    graph = grimp.build_graph(CORE, *PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    return {
        (importer, imported)
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
        if (importer := _box(module)) != (imported := _box(other)) and importer != CORE
    }


def without_implied(edges: set[Edge]) -> set[Edge]:
    """Return the edges that no path of others implies."""
    return {edge for edge in edges if edge[1] not in _reachable(edge[0], edges - {edge})}


def layers() -> list[str]:
    """Return the layers of the core from top to bottom, as import-linter enforces them."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (contract,) = (one for one in tools["importlinter"]["contracts"] if one.get("containers") == [CORE])
    return [layer.replace(" | ", ", ") for layer in contract["layers"]]


def draw() -> str:
    """Return the picture."""
    edges = without_implied(imports())
    names = layers()
    height = _TOP + _STEP * len(names) + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img"'
        ' font-family="system-ui, sans-serif" font-size="14">',
        "<title>The packages and their imports</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8"'
        ' orient="auto"><path d="M0 0 8 4 0 8z" fill="#5e35b1"/></marker></defs>',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<rect x="50" y="110" width="590" height="{height - 120}" rx="10" fill="#f6f3fb" stroke="#b39ddb"/>',
        f'<text x="66" y="134" font-weight="600" fill="#4527a0">{CORE}</text>',
    ]
    for index, (name, purpose) in enumerate(PACKAGES.items()):
        x = 50 + index * 305
        parts += _rectangle(x, 14, 285, name, purpose)
        parts.append(_arrow(f"M{x + 142} 60 V108"))
    for index, name in enumerate(names):
        parts += _rectangle(_LEFT, _TOP + _STEP * index, _BOX_WIDTH, name, _purpose(name))
    for importer, imported in sorted(edges & {(a, b) for a in names for b in names}):
        parts.append(_between(names.index(importer), names.index(imported)))
    parts += _rectangle(665, _TOP, 180, EMULATOR, "a local Noukai over HTTP")
    parts += [
        f'<text x="665" y="{_TOP + 64 + 18 * line}" fill="#555" font-size="12">{text}</text>'
        for line, text in enumerate(("no import in or out:", "clients meet it over HTTP"))
    ]
    if outside := {edge for edge in edges if EMULATOR in edge}:
        raise ValueError(f"the picture shows the emulator without imports, but there are {outside}")
    return "\n".join([*parts, "</svg>", ""])


def _box(module: str) -> str:
    package, _, rest = module.partition(".")
    if package != CORE or not rest:
        return package
    part = rest.split(".")[0]
    return next((layer for layer in layers() if part in layer.split(", ")), part)


def _purpose(layer: str) -> str:
    return next((purpose for module, purpose in PURPOSES.items() if module in layer.split(", ")), "")


def _reachable(start: str, edges: set[Edge]) -> set[str]:
    found: set[str] = set()
    waiting = [start]
    while waiting:
        current = waiting.pop()
        following = {imported for importer, imported in edges if importer == current} - found
        found |= following
        waiting += following
    return found


def _rectangle(x: int, y: int, width: int, name: str, purpose: str) -> list[str]:
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{_BOX_HEIGHT}" rx="6" fill="#fff" stroke="#7e57c2"/>',
        f'<text x="{x + 12}" y="{y + 18}" font-weight="600" fill="#222">{escape(name)}</text>',
        f'<text x="{x + 12}" y="{y + 35}" font-size="12" fill="#555">{escape(purpose)}</text>',
    ]


def _between(upper: int, lower: int) -> str:
    start, end = _TOP + _STEP * upper, _TOP + _STEP * lower
    if lower == upper + 1:
        return _arrow(f"M{_LEFT + _BOX_WIDTH // 2} {start + _BOX_HEIGHT} V{end}")
    right, bend = _LEFT + _BOX_WIDTH, _LEFT + _BOX_WIDTH + 26 * (lower - upper) // 2 + 14
    return _arrow(f"M{right} {start + 26} C{bend} {start + 26} {bend} {end + 16} {right} {end + 16}")


def _arrow(path: str) -> str:
    return f'<path d="{path}" fill="none" stroke="#5e35b1" stroke-width="1.4" marker-end="url(#arrow)"/>'


if __name__ == "__main__":
    print(draw(), end="")
