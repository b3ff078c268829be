"""Airflow on SQLite: the event of a deleted trigger resumes the task of another one, which got its id.

Run it with an empty AIRFLOW_HOME, after `airflow db migrate`.
"""

from airflow.models.trigger import Trigger
from airflow.utils.session import create_session


def defer():
    """Store a trigger, as a deferral does, and return its id."""
    with create_session() as session:
        trigger = Trigger(classpath="some.Trigger", kwargs={})
        session.add(trigger)
        session.flush()
        return trigger.id


first = defer()
print("the first try defers: trigger", first)
Trigger.clean_unused()  # the user clears the task, and the triggerer deletes its trigger
print("the next try defers: trigger", defer())
