"""What a client may be made with, and what not: a clear error, and not one request."""

from __future__ import annotations

import math
import traceback
from typing import TYPE_CHECKING, Any

import pytest

from noukai_core import AsyncNoukai, InvalidInputError, Noukai
from tests.core.scripted_server import FLOW, ScriptedServer, rejected

if TYPE_CHECKING:
    from tests.core.conftest import MakeClient

MESSAGE: dict[str, Any] = {"message": "hello"}


@pytest.mark.parametrize("key", [None, "", "   "])
def test_no_key(scripted: MakeClient, server: ScriptedServer, key: str | None) -> None:
    """Without a key, the message names the argument and the variable that would provide it."""
    rejected(
        server,
        lambda: scripted(api_key=key).flow(FLOW).job(**MESSAGE),
        "api_key",
        "NOUKAI_API_KEY" if not key else "",
    )


@pytest.mark.parametrize(
    "key", ["sk-marked", "marked", "NK_marked", "nk_", "nk_marked\nx", "nk_mär", 7, b"nk_marked"]
)
def test_a_key_of_the_wrong_shape_is_refused_unseen(
    scripted: MakeClient, server: ScriptedServer, key: Any
) -> None:
    """A malformed key is rejected, and the message does not show it."""
    message = rejected(server, lambda: scripted(api_key=key).flow(FLOW).job(**MESSAGE), "api_key", "nk_")
    assert "marked" not in message


@pytest.mark.parametrize(
    ("half", "missing"), [({"org": "acme"}, "project"), ({"project": "spelling"}, "org")]
)
def test_half_of_org_and_project(
    scripted: MakeClient, server: ScriptedServer, half: dict[str, str], missing: str
) -> None:
    """Org without project, or project without org, names the one that is missing."""
    rejected(server, lambda: scripted(**half).flow("grade-3"), missing)


def test_a_slug_alone_without_org_and_project(scripted: MakeClient, server: ScriptedServer) -> None:
    """A slug alone needs a client that knows the rest."""
    rejected(server, lambda: scripted().flow("grade-3"), "grade-3", "org", "project")


@pytest.mark.parametrize("client", [Noukai, AsyncNoukai])
def test_the_options_have_their_names(client: type[Noukai | AsyncNoukai]) -> None:
    """The four bounds of a client are set by the field's own words."""
    client(
        "nk_test_x",
        max_polls_per_second=5,
        retry_timeout=10,
        max_response_bytes=1000,
        max_concurrent_submissions=2,
    )


@pytest.mark.parametrize("client", [Noukai, AsyncNoukai])
@pytest.mark.parametrize(
    "name",
    ["looks_per_second", "fault_patience", "max_answer_bytes", "submissions_in_flight", "key", "settings"],
)
def test_an_unknown_option(client: type[Any], name: str) -> None:
    """A name that does not exist is a `TypeError` that tells it and the names that do, and no value."""
    with pytest.raises(
        TypeError, match=rf"{client.__name__}\(\) .* '{name}'; .*max_polls_per_second"
    ) as caught:
        client("nk_test_x", **{name: "nk_test_marked"})
    frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True).stack[1:]
    assert "marked" not in str(caught.value) + "".join(str(frame.locals) for frame in frames)


DURATIONS = [0, -1, math.nan, math.inf, "30", True, b"1", 10**400]


@pytest.mark.parametrize("value", DURATIONS, ids=lambda value: repr(value)[:12])
@pytest.mark.parametrize("argument", ["timeout", "poll_interval"])
def test_a_duration_of_the_client(
    scripted: MakeClient, server: ScriptedServer, argument: str, value: Any
) -> None:
    """Seconds are a finite number above zero."""
    rejected(
        server, lambda: scripted(**{argument: value}), argument, str(value)[:12] if value != 10**400 else ""
    )


@pytest.mark.parametrize("value", [-1, math.nan, "30", True, b"1"], ids=repr)
@pytest.mark.parametrize("argument", ["retry_timeout", "not_found_grace", "recovery_timeout"])
def test_a_retry_window_of_the_client(
    scripted: MakeClient, server: ScriptedServer, argument: str, value: Any
) -> None:
    """How long to be patient is a number of seconds that is not negative."""
    rejected(server, lambda: scripted(**{argument: value}), argument)


@pytest.mark.parametrize("value", [0, -1, math.nan, "30", True], ids=repr)
@pytest.mark.parametrize(
    "argument", ["max_polls_per_second", "max_concurrent_submissions", "max_response_bytes"]
)
def test_a_bound_of_the_client(
    scripted: MakeClient, server: ScriptedServer, argument: str, value: Any
) -> None:
    """A bound of nothing at all would be an endless wait."""
    rejected(server, lambda: scripted(**{argument: value}), argument)


@pytest.mark.parametrize("url", ["https://noukai.test", "http://noukai.test"])
@pytest.mark.parametrize("value", [1, 0, "yes", None], ids=repr)
def test_whether_http_is_allowed(scripted: MakeClient, server: ScriptedServer, url: str, value: Any) -> None:
    """What only counts as True or False is refused by its name, and not taken for either."""
    rejected(server, lambda: scripted(base_url=url, allow_insecure_http=value), "allow_insecure_http is")


@pytest.mark.parametrize(
    "url",
    ["", "noukai.test", "ftp://noukai.test", "http://", "http://noukai.test/?a=b", "http://[", 7],
    ids=repr,
)
def test_a_base_url_that_is_none(scripted: MakeClient, server: ScriptedServer, url: Any) -> None:
    """The base URL is a whole http address."""
    rejected(server, lambda: scripted(base_url=url), "base_url")


@pytest.mark.parametrize("host", ["xn--", "noukai..test", f"{'n' * 70}.test"])
def test_a_host_that_is_no_name_is_refused(make_client: MakeClient, host: str) -> None:
    """A URL that cannot be requested at all is rejected when the client is created."""
    with pytest.raises(InvalidInputError, match="base_url"):
        make_client(base_url=f"https://{host}/")


def test_an_unknown_environment(
    scripted: MakeClient, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key never goes to a server that a misspelled NOUKAI_ENV did not mean."""
    monkeypatch.setenv("NOUKAI_ENV", "staging")
    rejected(server, lambda: scripted(base_url=None).flow(FLOW), "NOUKAI_ENV", "'staging'", "'dev' or 'prod'")
