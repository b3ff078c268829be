"""The real Airflow of the demo and the tests, as far as it can be tested without one."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from devtools.airflow_server import _never_reuse_trigger_ids, write_local_settings
from devtools.processes import ServerError

AIRFLOWS_OWN = """CREATE TABLE "trigger" (
\tid INTEGER NOT NULL, \n\tclasspath VARCHAR(1000) NOT NULL, \n\tteam_name VARCHAR(50), \n\tCONSTRAINT trigger_pkey PRIMARY KEY (id), \n\tCONSTRAINT trigger_team_name_fkey FOREIGN KEY(team_name) REFERENCES team (name) ON DELETE SET NULL
)"""  # noqa: E501


def test_trigger_ids() -> None:
    """The id of a deleted trigger is not given to the next one, and the indexes stay."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(AIRFLOWS_OWN)
        database.execute('CREATE INDEX idx_trigger_team_name ON "trigger" (team_name)')
        _never_reuse_trigger_ids(database)
        ids = []
        for _ in range(2):
            ids.append(database.execute("INSERT INTO trigger (classpath) VALUES ('a')").lastrowid)
            database.execute("DELETE FROM trigger")
        assert ids == [1, 2]
        assert database.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall() == [
            ("idx_trigger_team_name",)
        ]


def test_another_schema() -> None:
    """A definition that is not recognized is reported, and not changed."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE trigger (id BIGINT)")
        with pytest.raises(ServerError, match="id BIGINT"):
            _never_reuse_trigger_ids(database)


SCHEDULER = """
import airflow_local_settings
from sqlalchemy import Column, Integer, String, create_engine, text
from sqlalchemy.orm import Session, declarative_base

class Task(declarative_base()):
    __tablename__ = "task"
    id = Column(Integer, primary_key=True)
    state = Column(String)

engine = create_engine("sqlite://")
Task.metadata.create_all(engine)
with Session(engine) as session:
    session.add(task := Task(id=1, state="queued"))
    session.flush()
    session.execute(text("UPDATE task SET id = 2, state = 'cleared'"))
    task.state = None
    session.commit()
    print(session.execute(text("SELECT id, state FROM task")).all())
"""


def test_a_row_that_is_gone(tmp_path: Path) -> None:
    """A scheduler that writes the state of a task that has just been cleared goes on, and the clear holds."""
    write_local_settings(tmp_path)
    path = os.pathsep.join([str(tmp_path / "config"), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", SCHEDULER],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "[(2, 'cleared')]\n", done.stderr
