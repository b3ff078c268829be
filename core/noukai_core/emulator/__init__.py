"""A local Noukai over real HTTP, for trying things out without an account, and for tests.

As a program, which ends on Ctrl-C or SIGTERM::

    python -m noukai_core.emulator              # http://127.0.0.1:8080/api/v1, where NOUKAI_ENV=dev points
    python -m noukai_core.emulator --port 0 --script script.json --state-file jobs.book

It prints one line, ``Noukai emulator: http://127.0.0.1:PORT/api/v1``, once it listens. Any key that begins
with ``nk_`` is accepted. In a test::

    from noukai_core.emulator import Emulator

    with Emulator() as emulator:                # on a free port, in a thread
        emulator.control.script("grade-3", outcome="failed", error="no words left", after_polls=2)
        client = Noukai("nk_test_x", base_url=emulator.base_url)
        ...
        assert emulator.control.counts(job.id)["cancel"] == 1

One emulator can serve many tests: ``emulator.control.reset()`` empties it.

Without a script every flow exists, and its jobs complete after a second with their input as the result:
``{"message": ..., "parameters": ...}``, as far as these were given.

Scripts
-------

A specification says what becomes of a job:

outcome
    ``completed`` (default), ``failed``, ``cancelled`` (on Noukai's side), or ``never``.
after_seconds
    How long the job takes, 1.0 by default. It is pending for the first tenth of it.
after_polls
    Instead: the job ends with its Nth look.
result
    The output: anything that JSON can carry.
result_bytes
    Instead: a text of so many bytes.

Error:
    Why it fails: a text, or an object with code and message.
progress
    A list of objects, spread over the run.
steps
    A list of trace steps, such as ``{"stepId": "draft", "costUsd": "0.01"}``. They share the run evenly, and
    what one does not say is filled in.
visible_after_seconds
    For so long after the submission the server does not know the job: the 404 race.
missing
    True: there is no such flow.
cancel_seconds
    How long the answer to a cancel takes.

It is given for every flow (``*``), for a flow's slug, for its whole path ``org/project/slug``, or for one
job, in ``parameters={"_emulator": {...}}`` of its submission; the more exact wins, name by name. A script
file is one JSON object of specifications by flow: ``{"*": {"after_seconds": 5}, "grade-3": {"outcome":
"failed"}}``.

Faults
------

``control.fault(kind, on=, times=, flow=, job_id=, probability=, seed=, **options)`` switches one on:

status
    An error answer: ``status`` (500), ``code``, ``message``, ``body`` (``json`` or ``html``), ``retry_after``
    (seconds, or ``"http-date"`` for the date ``seconds`` from now, 2 by default).
drop_before
    The connection is closed without an answer, and nothing was done. ``reset=True`` resets it.
drop_after
    The same after the request took effect: the job exists, its answer is lost.
slow
    The request takes effect at once, and its answer comes ``seconds`` (5) later.
truncated
    The answer breaks off in the middle.
nonsense
    An answer that makes no sense: ``body``, ``content_type``, ``status`` (200).
not_found
    404: no such job, flow, run or session. Of polls, when ``on`` is not given.
no_cancel
    There is no cancel route: 404 as of an unknown path, or ``status`` (405, 501).
expired_key
    401.
redirect
    A redirect to ``location``, with ``status`` (307).
race
    The server does not know the job of this submission for the next ``seconds`` (5).
mixed
    One of several, drawn anew each time: ``of=[{"kind": ..., ...}, ...]``.

``status`` and ``nonsense`` take ``takes_effect``: whether the request is carried out although the answer is
bad (false and true by default). A ``probability`` with a ``seed`` gives the same faults to the same
submissions in every run, in whatever order they arrive; submissions are the same when their flow and their
body are::

    control.fault("mixed", probability=0.2, seed=7, of=[{"kind": "drop_after"}, {"kind": "race"}])

Control from elsewhere
----------------------

``EmulatorControl(base_url)`` does the same for an emulator in another process. It speaks JSON over HTTP to
``/_emulator/``, beside ``/api/v1``, as anything else can:

- ``POST script``: ``{"flow": "grade-3", ...specification}``
- ``GET jobs``, ``GET jobs/ID``: states, times, what was submitted, webhooks that would have been sent
- ``POST jobs/ID/finish``: end a job now; ``{"outcome": "completed", "result": ...}``
- ``POST jobs/ID/progress``: the progress that a job shows from now on
- ``POST faults``, ``GET faults``, ``DELETE faults``: ``{"kind": "slow", "on": "poll", "seconds": 20}``
- ``GET requests?kind=&job_id=``: the last 50,000 requests, without their keys
- ``GET counts?job_id=``: all requests, by kind
- ``GET wait?kind=&count=&job_id=&timeout=``: answers when so many requests have arrived
- ``POST reset``: forget jobs, faults and requests, and go back to the first script

What it does not do
-------------------

Webhooks are not sent: the service drops private targets, and this machine is one. What would have been sent
is listed with the job. ``Idempotency-Key`` is recorded but not honoured, as the service does not document
it; ``honour_idempotency_key=True`` turns it on. A ``book`` keeps the jobs, but neither the log of requests
nor what was set by control. The cancel route is this project's assumption about the service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noukai_core.emulator._control import EmulatorControl

if TYPE_CHECKING:
    from noukai_core.emulator._server import Emulator

__all__ = ["Emulator", "EmulatorControl"]


def __getattr__(name: str) -> Any:
    if name != "Emulator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from noukai_core.emulator._server import Emulator
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "uvicorn"):
            raise
        raise ModuleNotFoundError(
            f'the emulator needs {missing}: pip install "noukai-orchestration[emulator]"', name=missing
        ) from None
    return Emulator
