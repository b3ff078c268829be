"""The packages and the documentation use one word for one thing, and the check of that can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from devtools.words import PACKAGES, check

REPOSITORY = Path(__file__).parents[2]

OLD_WORDS = {
    "an argument": "def poll_rate(looks_per_second: float) -> None: ...",
    "a part of an argument": "def read(max_answer_size: int) -> None: ...",
    "a class": "class LookBudget: ...",
    "a method": "class Job:\n    def answer(self) -> None: ...",
    "a field": "class Settings:\n    fault_patience: float",
    "an attribute": "def set_rate(client) -> None:\n    client.budget = 1",
    "a stored key": "record = {'maybe_sent_at': None}",
    "a key that is written": "record['identity'] = 1",
    "a key that is read": "record.get('place')",
    "a key that only records avoid": "record = {'sent_at': None}",
    "an option": "parser.add_argument('--book')",
    "a log phrase": "log.info('%s: looked again', job)",
    "a comment": "# the budget of polls",
    "a docstring": "'''Wait, but not in vain.'''",
}


def copy(root: Path, **files: str) -> Path:
    """Make a folder with the shape of the repository, and one line in each document."""
    for package in PACKAGES:
        (root / package).mkdir(parents=True)
    (root / "docs").mkdir()
    for document in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (root / document).write_text(files.get(document.partition(".")[0], "Noukai jobs\n"))
    return root


def test_the_words_hold() -> None:
    """No public or stored name, option, log phrase or text uses a word that the project avoids."""
    assert [str(finding) for finding in check(REPOSITORY)] == []


@pytest.mark.parametrize("code", OLD_WORDS.values(), ids=OLD_WORDS)
@pytest.mark.parametrize("package", PACKAGES)
def test_an_old_word_is_found(tmp_path: Path, package: str, code: str) -> None:
    """One use of an old word, in any of these places and packages, is reported with file and line."""
    (copy(tmp_path) / package / "module.py").write_text(f"import logging\n{code}\n")
    findings = check(tmp_path)
    assert {finding.path for finding in findings} == {f"{package}/module.py"}
    assert min(finding.line for finding in findings) >= 2


def test_an_old_word_in_the_documentation_is_found(tmp_path: Path) -> None:
    """The README is checked like the source."""
    findings = check(copy(tmp_path, README="Jobs\n\n50 looks a second\n"))
    assert [(finding.path, finding.line, finding.text) for finding in findings] == [("README.md", 3, "looks")]


def test_new_words_are_not_found(tmp_path: Path) -> None:
    """The replacements pass."""
    code = "def look_up(max_polls_per_second: float) -> None:\n    record['last_sent_at'] = sent_at = None\n"
    (copy(tmp_path) / "noukai_airflow" / "module.py").write_text(code)
    assert check(tmp_path) == []
