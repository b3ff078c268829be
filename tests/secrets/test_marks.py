"""The search itself: it finds a mark in every form in which a key may be written down, and nothing else."""

from __future__ import annotations

import base64
import json
import pickle
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.fernet import Fernet

from tests.secrets.marks import Mark, marked_key
from tests.secrets.places import cells, files, pages

KEY, SECRET = marked_key()

FORMS = {
    "the key": KEY.encode(),
    "without its beginning": KEY[20:].encode(),
    "the first half": SECRET.text[:20].encode(),
    "the last half": SECRET.text[-20:].encode(),
    "JSON in JSON": json.dumps(json.dumps({"Authorization": f"Bearer {KEY}"})).encode(),
    "a URL": quote(f"https://noukai.test/?key={KEY}&x", safe="").encode(),
    "hexadecimal": KEY.encode().hex().encode(),
    "a pickle": pickle.dumps({"key": KEY}),
    **{
        f"base64 after {before} bytes": base64.b64encode(b"-" * before + f"Bearer {KEY}\n".encode())
        for before in range(3)
    },
    "base64 in lines, in JSON": json.dumps(base64.encodebytes(b"-" * 50 + KEY.encode()).decode()).encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_mark_is_found(form: str) -> None:
    """It is found whole or in part, as text or encoded, with other things around it."""
    assert SECRET.is_in(b"before " + FORMS[form] + b" after")


def test_another_key_is_not_found() -> None:
    """What is found is this mark and no other."""
    other, _ = marked_key()
    assert not SECRET.is_in(other.encode() + base64.b64encode(other.encode()))


def test_a_mark_that_could_be_missed_is_rejected() -> None:
    """A mark that is short, or written differently in JSON or a URL, is none."""
    for text in ("short", "a b/c&d" * 10):
        with pytest.raises(ValueError, match="escaped"):
            Mark(text)


def test_a_database_is_read_whole(tmp_path: Path) -> None:
    """Every table and column is searched, plain, compressed or encrypted, and so is what was deleted."""
    fernet, path = Fernet(Fernet.generate_key()), tmp_path / "some.db"
    hidden = {
        "plain": KEY,
        "compressed": zlib.compress(KEY.encode()),
        "encrypted": json.dumps({"a": fernet.encrypt(b"-" * 60 + KEY.encode()).decode()}),
        "empty": None,
    }
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA secure_delete = OFF")  # which some builds of SQLite have on
        database.execute('CREATE TABLE "one table" (plain, compressed, encrypted, empty)')
        database.execute('INSERT INTO "one table" VALUES (?, ?, ?, ?)', tuple(hidden.values()))
        database.commit()
        assert SECRET.among(cells(path, fernet)) == {
            f"one table.{name}" for name in hidden if name != "empty"
        }
        assert SECRET.among(cells(path, None)) == {"one table.plain", "one table.compressed"}
        database.execute('DELETE FROM "one table"')
        database.commit()
    assert SECRET.among(cells(path, fernet)) == set()
    assert SECRET.among(pages(path)) == {"some.db"}


def test_files_are_read_wherever_they_are(tmp_path: Path) -> None:
    """A file is found below folders, and named by its path."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text(KEY)
    (tmp_path / "other").write_text("nothing")
    assert SECRET.among(files(tmp_path)) == {"a/b/file"}
