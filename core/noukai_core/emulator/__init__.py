"""A local Noukai over real HTTP, for tests and for trying things without an account.

Run it as a program. It serves until Ctrl-C or SIGTERM:

```sh
python -m noukai_core.emulator              # http://127.0.0.1:8090/api/v1
python -m noukai_core.emulator --port 0 --script script.json --state-file jobs.jsonl
```

It prints one line, `Noukai emulator: http://127.0.0.1:PORT/api/v1`, when it is ready. It accepts any key that
begins with `nk_`. In a test:

```python
from noukai_core.emulator import Emulator

with Emulator() as emulator:  # on a free port, in a thread
    emulator.control.script("grade-3", outcome="failed", error="no words left", after_polls=2)
    client = Noukai("nk_test_x", base_url=emulator.base_url)
    ...
    assert emulator.control.counts(job.id)["cancel"] == 1
```

One emulator can serve many tests: `emulator.control.reset()` empties it.

Without a script, every flow exists, and its jobs complete after one second. The result is the input,
`{"message": ..., "parameters": ...}`, without the parts that were not given.

## Scripts

A specification sets how a job behaves:

- `outcome`: `completed` (default), `failed`, `cancelled` (on the Noukai side) or `never`.
- `after_seconds`: How long the job takes, 1.0 by default. It is pending for the first tenth of that time.
- `after_polls`: Instead of `after_seconds`, the number of the poll that ends the job.
- `result`: The output, any JSON value.
- `result_bytes`: Instead of `result`, the length of a generated text.
- `error`: Why the job fails: a text, or an object with `code` and `message`.
- `progress`: A list of objects, spread over the run.
- `steps`: A list of trace steps, such as `{"stepId": "draft", "costUsd": "0.01"}`. They divide the run
  evenly; fields that a step leaves out are filled in.
- `visible_after_seconds`: How long after the submission the server responds 404 for the job (the 404 race).
- `missing`: If true, the flow does not exist.
- `cancel_seconds`: How long a cancel call takes to respond.

A specification applies to every flow (`*`), to a flow's slug, to a full path `org/project/slug`, or to one
job, in `parameters={"_emulator": {...}}` of its submission. For each field, the most specific one wins. A
script file is one JSON object that maps flows to specifications:
`{"*": {"after_seconds": 5}, "grade-3": {"outcome": "failed"}}`.

## Faults

`control.fault(kind, on=, times=, flow=, job_id=, probability=, seed=, **options)` switches a fault on:

- `status`: An error response: `status` (500), `code`, `message`, `body` (`json` or `html`), `retry_after`
  (seconds, or `"http-date"` for the date `seconds` from now, 2 by default).
- `drop_before`: The connection is closed without a response, before the request takes effect. `reset=True`
  resets it.
- `drop_after`: The connection is closed after the request took effect: the job exists, the response is lost.
- `slow`: The request takes effect at once; the response follows `seconds` (5) later.
- `truncated`: The response is cut off in the middle.
- `nonsense`: A response that makes no sense: `body`, `content_type`, `status` (200).
- `not_found`: 404: no such job, flow, run or session. It affects polls unless `on` is given.
- `no_cancel`: There is no cancel route: 405, or `status` (501; 404 as for an unknown path proves nothing).
- `expired_key`: 401.
- `redirect`: A redirect to `location`, with `status` (307).
- `stream`: A live trace that, after `after` events (1), does what `then` says: `end`, `stall`, or `huge` (an
  event of `bytes`, 10 MiB); or that sends each event twice (`repeat`).
- `race`: The server does not know the submitted job for the next `seconds` (5).
- `mixed`: One of several, drawn again for each request: `of=[{"kind": ..., ...}, ...]`.

`status` and `nonsense` take `takes_effect`: whether the request is processed despite the bad response (by
default, false and true). A `probability` with a `seed` gives the same faults to the same submissions in every
run, in whatever order they arrive. Submissions are the same if their flow and body are equal:

```python
control.fault("mixed", probability=0.2, seed=7, of=[{"kind": "drop_after"}, {"kind": "race"}])
```

## The control API

`EmulatorControl(base_url)` controls an emulator in another process. It sends JSON over HTTP to `/_emulator/`,
next to `/api/v1`, and so can any other client:

- `POST script`: `{"flow": "grade-3", ...specification}`
- `GET jobs`, `GET jobs/ID`: states, times, submitted inputs, and the webhooks that the service would have
  sent
- `POST jobs/ID/finish`: end a job now; `{"outcome": "completed", "result": ...}`
- `POST jobs/ID/progress`: set the progress that a job shows
- `POST faults`, `GET faults`, `DELETE faults`: `{"kind": "slow", "on": "poll", "seconds": 20}`
- `GET requests?kind=&job_id=`: the last 50,000 requests, without their keys
- `GET counts?job_id=`: the number of all requests, by kind
- `GET wait?kind=&count=&job_id=&timeout=`: responds when that many requests have arrived
- `POST reset`: forget all jobs, faults and requests, and restore the initial script

## What it does not do

It sends no webhooks: the service drops private targets, and this machine is one. The webhooks that the
service would have sent are listed with the job. `Idempotency-Key` is recorded but not honoured, because the
service does not document it; `honour_idempotency_key=True` turns it on. A `state_file` keeps the jobs, but
neither the request log nor what the control API has set. The cancel route is this project's assumption about
the service.
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
