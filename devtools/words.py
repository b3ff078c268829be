"""The words of the project: `python -m devtools.words` lists every use of a word that the project avoids.

It reads the three packages and the documentation. It checks every identifier, stored keys (the string keys
of mappings), the options of the emulator's program, log calls, and prose.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("core/noukai_core", "noukai_airflow", "noukai_prefect")
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs")

# Parts of identifiers, keys and log phrases. The field's word is on the right.
WORDS = {
    "answer": "response",
    "answers": "responses",
    "answered": "responded",
    "reply": "response",
    "replies": "responses",
    "look": "poll",
    "looks": "polls",
    "looked": "polled",
    "looking": "polling",
    "budget": "rate limit",
    "patience": "retry window",
    "passing": "retryable",
    "book": "state file",
    "born": "submitted_at",
    "luck": "jitter",
    "told": "reported",
    "verdict": "decision",
    "shell": "driver",
    "wire": "connection",
    "outgoing": "HttpRequest",
    "incoming": "ResponseReader",
    "withdraw": "cancel_by_submission",
    "settle": "cancel_or_keep",
    "anew": "again",
}

# Whole names.
NAMES = {
    "looks_per_second": "max_polls_per_second",
    "max_answer_bytes": "max_response_bytes",
    "fault_patience": "retry_timeout",
    "submissions_in_flight": "max_concurrent_submissions",
    "in_flight": "max_concurrency",
    "worth_retrying": "is_retryable",
    "keep_noukai_jobs": "log_resumable_noukai_jobs",
    "identity": "submission_id",
    "place": "slot",
    "maybe_sent_at": "possibly_sent_at",
    "generation": "max_tries, or resubmission in Prefect",
    "Refused": "PermanentError",
    "Unavailable": "TransientError",
}

# Keys of stored mappings.
KEYS = {"sent_at": "last_sent_at"}

# Phrases in prose, comments and messages.
PHRASES = re.compile(r"\blooks?\b|\bbudget of\b|\bpassing fault|\bin vain\b", re.IGNORECASE)

# Where English means what it says, and why.
ALLOWED = {
    re.compile(r"\blooks?[ _]up\b|(?<=_)look_up\b", re.IGNORECASE): "to search in a list",
    re.compile(r"\blooks? like\b"): "to resemble",
    re.compile(r"\bLook for\b"): "advice to a person, who does look",
}

LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


@dataclass(frozen=True)
class Finding:
    """A place that uses an old word."""

    path: str
    line: int
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text!r}: say {self.instead}"


def check(root: Path) -> list[Finding]:
    """Return what uses an old word below a folder that holds the packages and the documents."""
    findings: list[Finding] = []
    for path in _files(root):
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(root))
        findings += _in_text(name, text)
        if path.suffix == ".py":
            findings += _in_source(name, ast.parse(text))
    return findings


def _files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))
    for document in DOCUMENTS:
        path = root / document
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]


def _in_text(path: str, text: str) -> Iterator[Finding]:
    for number, line in enumerate(text.splitlines(), 1):
        for found in PHRASES.finditer(_without_allowed(line)):
            yield Finding(path, number, found[0], "the word of the field, or name the line in ALLOWED")


def _in_source(path: str, tree: ast.AST) -> Iterator[Finding]:
    for node in ast.walk(tree):
        for text in _keys(node):
            if text in KEYS:
                yield Finding(path, getattr(node, "lineno", 0), text, KEYS[text])
        for text in _names(node):
            if text in NAMES:
                yield Finding(path, getattr(node, "lineno", 0), text, NAMES[text])
            for word in _words(_without_allowed(text)):
                if word in WORDS:
                    yield Finding(path, getattr(node, "lineno", 0), text, WORDS[word])


def _without_allowed(text: str) -> str:
    for allowed in ALLOWED:
        text = allowed.sub("", text)
    return text


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the identifiers that a node defines, and the texts in which it stores or logs something."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.arg():
            yield node.arg
        case ast.Name(ctx=ast.Store()):
            yield node.id
        case ast.Attribute(ctx=ast.Store()):
            yield node.attr
        case ast.Call(func=ast.Attribute(attr="add_argument")):
            yield from _strings(node.args)
        case ast.Call(func=ast.Attribute(attr=method)) if method in LOG_METHODS:
            yield from _strings(node.args)
        case _:
            yield from _keys(node)


def _keys(node: ast.AST) -> Iterator[str]:
    """Yield the string keys that a node writes to a mapping or reads from it."""
    match node:
        case ast.Dict():
            yield from _strings(node.keys)
        case ast.Subscript():
            yield from _strings([node.slice])
        case ast.Call(func=ast.Attribute(attr="get" | "pop" | "setdefault")):
            yield from _strings(node.args[:1])
        case _:
            pass


def _strings(nodes: list[ast.expr] | list[ast.expr | None]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def main() -> int:
    """Print the findings, and return the exit code."""
    findings = check(Path(__file__).parents[1])
    for finding in findings:
        print(finding)
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
