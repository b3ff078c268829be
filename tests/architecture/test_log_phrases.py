"""Every log call of the packages uses a phrase of `docs/log-phrases.md`, so that one event has one phrase."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from devtools.words import LOG_METHODS, PACKAGES

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "log-phrases.md").read_text(encoding="utf-8")

# Values that are a state, a change of state, or a whole phrase, which is checked where it is written.
STATES = re.compile(r"change|phrase|\w*(?:status|job)\.state|[\w.]*left_running\(.*\)", re.DOTALL)

# Lines at level DEBUG are for developers, who do not alert on them.
METHODS = LOG_METHODS - {"debug"}
LOGGERS = re.compile(r"(?:^|[._])log(?:ger)?(?:\(\))?$")

# Values that are the beginning of a line.
SUBJECTS = re.compile(r"self\._name|self\._?subject")


class LogCall(NamedTuple):
    """A log call in the source: where it is, its template, and the source of its values."""

    where: str
    template: str
    values: list[str]


def phrases() -> dict[str, list[str]]:
    """Return the documented phrases by the beginning of their lines."""
    sections: dict[str, list[str]] = {}
    for section in DOCUMENT.split("\n## ")[1:]:
        found = re.search(r"line begins with `([^`]+)`", section)
        assert found is not None, section
        listed = [line.partition("`: ")[0] for line in section.splitlines() if line.startswith("- ")]
        sections[found[1]] = [phrase.strip("`") for line in listed for phrase in line[2:].split("`, `")]
    sections[next(name for name in sections if "batch" in name)] += sections[next(iter(sections))]
    return sections


def pattern(documented: str) -> str:
    """Return the regular expression of a documented phrase or beginning of a line."""
    parts = re.split(r"(<[^>]+>)", documented)
    return "".join(".+" if part.startswith("<") else re.escape(part) for part in parts)


PATTERNS = [
    re.compile(pattern(start + phrase), re.DOTALL)
    for start, listed in phrases().items()
    for phrase in listed
    if phrase not in ("<state>", "<state> → <state>")
]
SUBJECT_PATTERNS = [
    re.compile(r"%s: " + pattern(phrase), re.DOTALL)
    for phrase in next(iter(phrases().values()))
    if phrase not in ("<state>", "<state> → <state>")
]
STATE_TEMPLATES = {
    "Noukai job %s of %s: %s",
    "Noukai job %s of %s: %s → %s",
    "%s: %s",
    "%s: %s → %s",
}


def log_calls(source: str, path: str) -> Iterator[LogCall]:
    """Find the log calls in a module."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=receiver, attr=method), args=[first, *values]):
                if method in METHODS and re.search(r"(?:^|[._])log(?:ger)?(?:\(\))?$", ast.unparse(receiver)):
                    template = first.value if isinstance(first, ast.Constant) else ast.unparse(first)
                    yield LogCall(
                        f"{path}:{node.lineno}", str(template), [ast.unparse(value) for value in values]
                    )
            case _:
                pass


def allowed(call: LogCall) -> bool:
    """Return whether a log call uses a documented phrase."""
    if (call.template, call.values) == ("%s", ["error"]):  # an error's message begins like a line of the log
        return True
    if (call.template, call.values) == ("message", ["*values"]):  # a logger that passes on what it is given
        return True
    if call.template in STATE_TEMPLATES:
        return STATES.fullmatch(call.values[-1]) is not None
    if call.values and SUBJECTS.fullmatch(call.values[0]):
        return any(known.fullmatch(call.template) for known in SUBJECT_PATTERNS)
    return any(known.fullmatch(call.template) for known in PATTERNS)


def sources() -> Iterator[tuple[str, str]]:
    """Yield the path and the source of every module of the packages."""
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            yield str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")


def calls_of_the_packages() -> list[LogCall]:
    return [call for path, source in sources() for call in log_calls(source, path)]


def written_phrases(source: str, path: str) -> Iterator[tuple[str, str]]:
    """Find the texts that begin like a phrase with a reason, outside of log calls."""
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in inside:
                pass
            case ast.JoinedStr(values=parts):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "%s" for part in parts)
            case _:
                continue
        if re.match(r"(?:left running|may be left running|cancel failed|not cancelled) \(", text):
            yield f"{path}:{node.lineno}", text


def test_log_calls_use_the_documented_phrases() -> None:
    """Each log call of the three packages matches a phrase of `docs/log-phrases.md`."""
    assert [call for call in calls_of_the_packages() if not allowed(call)] == []


def test_phrases_that_are_composed_are_documented_ones() -> None:
    """A phrase that is built before it is logged matches the list too."""
    found = [item for path, source in sources() for item in written_phrases(source, path)]
    known = [
        re.compile(pattern(phrase)) for listed in phrases().values() for phrase in listed if "(" in phrase
    ]
    assert found
    assert [item for item in found if not any(each.fullmatch(item[1]) for each in known)] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_log_calls_are_found(package: str) -> None:
    """Every package has log calls, and the check sees them."""
    assert len([call for call in calls_of_the_packages() if call.where.startswith(package)]) > 5


@pytest.mark.parametrize(
    "code",
    [
        "log.info('Noukai job %s of %s: sent', job.id, job.flow)",
        "log.info('Noukai job %s of %s was submitted', job.id, job.flow)",
        "log.info('Job %s of %s: submitted', job.id, job.flow)",
        "log.warning('Noukai job %s of %s: keeps running (%s)', job.id, job.flow, reason)",
        "log.warning('%s: a poll failed: %s', self._name, error)",
        "self.log.warning('%s', message)",
        "run.logger().info('Noukai job %s of %s: %s', job.id, job.flow, message)",
        "logger.error(f'job {job.id} failed')",
    ],
)
def test_another_wording_is_found(code: str) -> None:
    """A log call that words an event in another way fails."""
    (call,) = log_calls(code, "module.py")
    assert not allowed(call)


@pytest.mark.parametrize(
    "code",
    [
        "log.info('Noukai job %s of %s: submitted', job.id, job.flow)",
        "log.info('Noukai job %s of %s: %s', job.id, job.flow, status.state)",
        "log.warning('%s: poll failed (retrying for up to %.0f s): %s', self._name, left, error)",
        "logger.warning('Noukai job %s of %s: left running (%s)', job.id, job.flow, reason)",
        "logger.warning('Noukai submission %s to %s: lookup failed: %s', submission.id, flow, error)",
        "logger.warning('Noukai batch of %d jobs of %s: left running (%s)', size, flow, reason)",
    ],
)
def test_a_documented_phrase_passes(code: str) -> None:
    """A log call with a documented phrase passes."""
    (call,) = log_calls(code, "module.py")
    assert allowed(call)
