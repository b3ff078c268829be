"""What a caller may get wrong: a clear error that names the argument and the value, and not one request."""

from __future__ import annotations

import math
from collections import UserString
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import Submission
from tests.core.scripted_server import FLOW, ScriptedServer, rejected

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient


MESSAGE: dict[str, Any] = {"message": "hello"}


def cycle() -> dict[str, Any]:
    knot: dict[str, Any] = {}
    knot["again"] = [knot]
    return knot


def deep() -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for _ in range(100_000):
        nested = {"in": nested}
    return nested


SLUGS = [
    "../x",
    "..",
    "",
    "x",
    "Grade-3",
    "-grade",
    "grade-",
    "grade_3",
    "grade 3",
    "a" * 51,
    "gr\x00ade",
    "grade-3\n",
    "grädé",
    "%2e%2e",
]


@pytest.mark.parametrize("slug", SLUGS, ids=ascii)
@pytest.mark.parametrize("place", ["flow", "flow in path", "org in path", "org", "project"])
def test_a_slug_of_the_wrong_shape(
    scripted: MakeClient, server: ScriptedServer, slug: str, place: str
) -> None:
    """Each part of a flow's address is checked, wherever it is given."""

    def act() -> None:
        defaults = {"org": "acme", "project": "spelling"}
        if place in defaults:
            scripted(**{**defaults, place: slug}).flow("grade-3").job(**MESSAGE)
        else:
            path = {
                "flow": slug,
                "flow in path": f"acme/spelling/{slug}",
                "org in path": f"{slug}/spelling/grade-3",
            }
            scripted(**defaults).flow(path[place]).job(**MESSAGE)

    message = rejected(server, act, place.split()[0])
    assert "\x00" not in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "flow",
    ["a/b", "acme/spelling", "acme/spelling/grade-3/jobs", "/acme/spelling/grade-3", None, 7, b"grade-3"],
)
def test_a_flow_that_is_not_one_or_three_slugs(
    scripted: MakeClient, server: ScriptedServer, flow: Any
) -> None:
    """Two parts, four parts or no string at all: the message shows what was given."""
    rejected(
        server,
        lambda: scripted(org="acme", project="spelling").flow(flow),
        "flow",
        repr(flow) if flow != flow else "",
    )


@pytest.mark.parametrize(
    "version", [-1, 10**9, True, False, "latest", "", "v1", "1/../2", 1.0, math.nan, b"draft", [1]], ids=repr
)
def test_an_unknown_version(scripted: MakeClient, server: ScriptedServer, version: Any) -> None:
    """A version is production, draft or a number that is not negative; a bool is no number."""
    flow = scripted().flow(FLOW)
    rejected(
        server, lambda: flow.job(**MESSAGE, version=version), "version", repr(version), "production", "draft"
    )


@pytest.mark.parametrize("message", [7, True, b"hello", ["hello"], {"text": "hello"}, 1.5], ids=repr)
def test_a_message_that_is_not_text(scripted: MakeClient, server: ScriptedServer, message: Any) -> None:
    """A message is a string."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(message=message), "message", repr(message))


@pytest.mark.parametrize("nothing", [{}, {"message": None}, {"message": None, "parameters": None}], ids=repr)
def test_neither_message_nor_parameters(
    scripted: MakeClient, server: ScriptedServer, nothing: dict[str, Any]
) -> None:
    """A job needs something to work on."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(**nothing), "message", "parameters")


NOT_JSON: list[Any] = [
    pytest.param(math.nan, "nan", id="nan"),
    pytest.param(-math.inf, "-inf", id="infinity"),
    pytest.param(b"bytes", "b'bytes'", id="bytes"),
    pytest.param(bytearray(b"bytes"), "bytearray(b'bytes')", id="bytearray"),
    pytest.param(UserString("text"), "'text'", id="text of another type"),
    pytest.param({1}, "{1}", id="set"),
    pytest.param([1, {"x": {2}}], "{2}", id="nested set"),
    pytest.param(datetime(2026, 1, 1), "2026", id="datetime"),
    pytest.param(object, "object", id="class"),
    pytest.param({1: "x"}, "1", id="key that is no text"),
    pytest.param("\ud800", "surrogate", id="half a surrogate pair"),
    pytest.param({"\ud800": 1}, "surrogate", id="half a surrogate pair as key"),
    pytest.param(10**5000, "", id="an integer too long to write"),
    pytest.param(cycle(), "", id="cycle"),
    pytest.param(deep(), "", id="too deep"),
]


@pytest.mark.parametrize(("value", "shown"), NOT_JSON)
def test_parameters_that_json_cannot_carry(
    scripted: MakeClient, server: ScriptedServer, value: Any, shown: str
) -> None:
    """The message names the parameter, and shows the value where it can be shown."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(parameters={"fine": 1, "words": value}), "parameters", shown)


@pytest.mark.parametrize(("value", "shown"), NOT_JSON)
def test_overrides_that_json_cannot_carry(
    scripted: MakeClient, server: ScriptedServer, value: Any, shown: str
) -> None:
    """Block overrides are checked as parameters are, and named as themselves."""
    flow = scripted().flow(FLOW)
    reported = "" if shown == "surrogate" else "block_overrides"
    rejected(server, lambda: flow.job(**MESSAGE, block_overrides={"step": {"words": value}}), reported, shown)


@pytest.mark.parametrize("parameters", [["a"], "a", 7, [("a", 1)], True], ids=repr)
def test_parameters_that_are_no_object(scripted: MakeClient, server: ScriptedServer, parameters: Any) -> None:
    """Parameters are a mapping."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(**MESSAGE, parameters=parameters), "parameters", repr(parameters))


def test_the_reserved_parameter(scripted: MakeClient, server: ScriptedServer) -> None:
    """The server rejects a parameter called attachments; so does the client, before the request."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(**MESSAGE, parameters={"attachments": []}), "parameters", "attachments")


@pytest.mark.parametrize("overrides", [["a"], "a", {"step": 1}, {"step": ["x"]}], ids=repr)
def test_overrides_that_are_no_object_of_objects(
    scripted: MakeClient, server: ScriptedServer, overrides: Any
) -> None:
    """Block overrides are a mapping from a step to a mapping."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(**MESSAGE, block_overrides=overrides), "block_overrides")


@pytest.mark.parametrize("trace", [1, "yes", None])
def test_a_trace_that_is_no_flag(scripted: MakeClient, server: ScriptedServer, trace: Any) -> None:
    """Whether a job is traced is True or False."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(**MESSAGE, trace=trace), "trace", repr(trace), "True or False")


URLS = [
    "http://hooks.example.com",
    "ftp://hooks.example.com",
    "hooks.example.com",
    "https://",
    "",
    "https://a b.com",
    "https://x\r\ny",
    7,
]


@pytest.mark.parametrize("url", URLS, ids=ascii)
def test_a_callback_url_that_is_not_https(scripted: MakeClient, server: ScriptedServer, url: Any) -> None:
    """A callback goes to a whole https address."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(**MESSAGE, callback_url=url), "callback_url", repr(url), "https")


@pytest.mark.parametrize(
    "events",
    [["flow.cancelled"], ["flow.completed", "x"], "flow.completed", [7], {"flow.completed": 1}, 7],
    ids=repr,
)
def test_an_unknown_callback_event(scripted: MakeClient, server: ScriptedServer, events: Any) -> None:
    """Events are some of the two that exist, in a list and not in a string."""
    flow = scripted().flow(FLOW)
    url = "https://hooks.example.com"
    rejected(
        server,
        lambda: flow.job(**MESSAGE, callback_url=url, callback_events=events),
        "callback_events",
        "flow.failed",
    )


DURATIONS = [0, -1, math.nan, math.inf, "30", True, b"1", 10**400]


@pytest.mark.parametrize("value", [*DURATIONS[:3], *DURATIONS[4:]], ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize(
    ("verb", "argument"),
    [("wait", "timeout_ms"), ("wait", "poll_interval"), ("watch", "timeout"), ("watch", "poll_interval")],
)
def test_a_duration_of_a_wait(
    scripted: MakeClient, server: ScriptedServer, verb: str, argument: str, value: Any
) -> None:
    """A wait's deadline and interval are checked before its first poll."""
    job = scripted().flow(FLOW).attach("job-1")

    def act() -> None:
        waited = getattr(job, verb)(**{argument: value})
        next(iter(waited))

    rejected(server, act, argument)


@pytest.mark.parametrize(
    "job_id",
    ["", "a/b", "/", "a\\b", " ", "a\nb", "a\x00", "x" * 5000, None, 7, b"job"],
    ids=lambda value: ascii(value)[:9],
)
def test_a_job_id_that_cannot_be_one(scripted: MakeClient, server: ScriptedServer, job_id: Any) -> None:
    """An id is one path segment: not empty, without a slash, without control characters."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.attach(job_id), "job_id", repr(job_id)[:40])


@pytest.mark.parametrize("moment", [datetime(2026, 1, 1), "2026-01-01T00:00:00Z", 1_760_000_000], ids=repr)
def test_a_submission_time_without_a_zone(scripted: MakeClient, server: ScriptedServer, moment: Any) -> None:
    """The time of a submission must have a time zone."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.attach("job-1", submitted_at=moment), "submitted_at", "zone")


@pytest.mark.parametrize("session_id", ["", "mine", "x\r\ny: z", 7], ids=repr)
def test_a_session_id_that_is_no_uuid(scripted: MakeClient, server: ScriptedServer, session_id: Any) -> None:
    """A session id is a UUID, and never a second header."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(**MESSAGE, session_id=session_id), "session_id", repr(session_id))


def test_a_submission_submission_id_that_is_no_uuid(scripted: MakeClient, server: ScriptedServer) -> None:
    """A malformed submission id is rejected where it is created or where it is used."""
    flow = scripted().flow(FLOW)
    rejected(server, lambda: flow.job(**MESSAGE, submission=Submission(id="../x")), "../x")


def test_a_submission_submission_id_with_a_time_without_a_zone(
    scripted: MakeClient, server: ScriptedServer
) -> None:
    """The time of the first try must have a time zone."""
    flow = scripted().flow(FLOW)
    rejected(
        server,
        lambda: flow.job(
            **MESSAGE, submission=Submission(Submission.new().id, last_sent_at=datetime(2026, 1, 1))
        ),
        "last_sent_at",
    )


def test_a_key_in_the_wrong_place_is_not_shown(scripted: MakeClient, server: ScriptedServer) -> None:
    """A key that was passed as another argument is not repeated in the message."""
    key = "nk_live_marked"
    client = scripted()
    for act in (
        lambda: client.flow(key),
        lambda: client.flow(FLOW).job(message=[key]),
        lambda: client.flow(FLOW).job(**MESSAGE, parameters={"a": {key}}),
        lambda: client.flow(FLOW).job(**MESSAGE, parameters={key: {1}}),
        lambda: client.flow(FLOW).attach(key + "/x"),
        lambda: scripted(base_url=f"http://{key}:x@noukai.test"),
        lambda: scripted(base_url=f"http://noukai.test/?key={key}"),
    ):
        assert "marked" not in rejected(server, act)
