"""`EmulatorControl` and the log of requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest

from noukai_core.emulator import Emulator, EmulatorControl

FLOW = "seq/acme/spelling/grade-3"


@pytest.fixture
def client(emulator: Emulator) -> Iterator[httpx.Client]:
    """A plain HTTP client with a good key."""
    headers = {"Authorization": "Bearer nk_live_12345678_verysecret"}
    with httpx.Client(base_url=emulator.base_url, headers=headers, trust_env=False) as client:
        yield client


def submit(client: httpx.Client) -> str:
    return str(client.post(f"{FLOW}/jobs", json={"message": "hello"}).json()["executionId"])


def test_requests_are_counted_by_job(emulator: Emulator, client: httpx.Client) -> None:
    """A test can count submissions, polls and cancels of one job, and of all."""
    first, second = submit(client), submit(client)
    for job_id in (first, first, second):
        client.get(f"{FLOW}/jobs/{job_id}")
    client.post(f"{FLOW}/jobs/{first}/cancel")
    client.get("nowhere")
    counts = emulator.control.counts(first)
    assert (counts["submit"], counts["poll"], counts["cancel"], counts["session"]) == (1, 2, 1, 0)
    assert emulator.control.counts(second)["poll"] == 1
    total = emulator.control.counts()
    assert (total["submit"], total["poll"], total["cancel"], total["other"]) == (2, 3, 1, 1)


def test_a_request_is_reported_without_its_key(emulator: Emulator, client: httpx.Client) -> None:
    """Kind, method, path, headers, job, status and time are there; the key is not."""
    job_id = submit(client)
    client.get(f"{FLOW}/jobs/{job_id}", headers={"X-Session-Id": "mine"})
    (poll,) = emulator.control.requests("poll", job_id)
    assert (poll["method"], poll["path"]) == ("GET", f"/api/v1/{FLOW}/jobs/{job_id}")
    assert (poll["job_id"], poll["status"]) == (job_id, 200)
    assert poll["headers"]["x-session-id"] == "mine"
    assert poll["headers"]["authorization"] == "Bearer ***"
    assert "verysecret" not in str(emulator.control.requests())
    assert poll["time"] > emulator.control.requests("submit")[0]["time"]


@pytest.mark.parametrize(
    "authorization", ["nk_live_12345678_verysecret", "Bearer nk_live_12345678_verysecret", "x"]
)
def test_a_key_without_a_scheme_is_masked_too(
    emulator: Emulator, client: httpx.Client, authorization: str
) -> None:
    """Whatever the header contains, nothing of it that could be a key is kept."""
    client.get("keys/verify", headers={"Authorization": authorization})
    assert "nk_live" not in str(emulator.control.requests())


def test_the_control_api_is_not_in_the_log(emulator: Emulator) -> None:
    """Control requests do not count, invalid ones included."""
    control = emulator.control
    control.jobs()
    with pytest.raises(LookupError):
        control.job("job_unknown")
    httpx.get(emulator.base_url.replace("/api/v1", "/_emulator/nothing"), trust_env=False)
    assert set(control.counts().values()) == {0}


def test_waiting_for_requests(emulator: Emulator, client: httpx.Client) -> None:
    """`wait_for` returns once so many have arrived, and not before."""
    job_id = submit(client)
    emulator.control.wait_for("submit")
    waiter = threading.Thread(target=emulator.control.wait_for, args=("poll", 2), kwargs={"job_id": job_id})
    waiter.start()
    client.get(f"{FLOW}/jobs/{job_id}")
    waiter.join(0.2)
    assert waiter.is_alive()
    client.get(f"{FLOW}/jobs/{job_id}")
    waiter.join(20)
    assert not waiter.is_alive()


def test_a_hanging_request_has_arrived(emulator: Emulator, client: httpx.Client) -> None:
    """A request is logged before its response, without a status."""
    emulator.control.fault("slow", on="verify", seconds=30)
    with pytest.raises(httpx.ReadTimeout):
        client.get("keys/verify", timeout=0.1)
    emulator.control.wait_for("verify")
    (entry,) = emulator.control.requests("verify")
    assert entry["status"] is None


def test_waiting_without_success(emulator: Emulator) -> None:
    """`wait_for` reports what arrived instead."""
    with pytest.raises(TimeoutError, match="expected 1 poll requests"):
        emulator.control.wait_for("poll", timeout=0.05)
    with pytest.raises(ValueError, match="'pole'"):
        emulator.control.wait_for("pole")


def test_a_job_that_cannot_be_finished(emulator: Emulator, client: httpx.Client) -> None:
    """An unknown job is a `LookupError`, one that has ended a `ValueError` with its state."""
    job_id = submit(client)
    assert emulator.control.finish(job_id, "failed", error="by hand")["state"] == "failed"
    with pytest.raises(ValueError, match=f"{job_id} is already failed"):
        emulator.control.finish(job_id)
    with pytest.raises(LookupError, match="job_unknown"):
        emulator.control.finish("job_unknown")
    with pytest.raises(ValueError, match="outcome"):
        emulator.control.finish(job_id, "never")
    with pytest.raises(ValueError, match="'colour'"):
        emulator.control.finish(job_id, colour="red")


def test_reset_goes_back_to_the_beginning() -> None:
    """Jobs, faults and requests are gone, and the script is the one of the start."""
    with (
        Emulator({"grade-3": {"outcome": "failed", "after_polls": 1}}) as emulator,
        httpx.Client(base_url=emulator.base_url, headers={"Authorization": "Bearer nk_test_x"}) as client,
    ):
        emulator.control.script("grade-3", outcome="cancelled", after_polls=1)
        emulator.control.fault("status", times=None, on="poll")
        submit(client)
        emulator.control.reset()
        assert (emulator.control.jobs(), emulator.control.faults(), emulator.control.requests()) == (
            [],
            [],
            [],
        )
        job_id = submit(client)
        assert client.get(f"{FLOW}/jobs/{job_id}").json()["status"] == "failed"


def test_an_emulator_elsewhere_is_controlled_by_its_address(emulator: Emulator, client: httpx.Client) -> None:
    """`EmulatorControl` needs nothing but the base URL that a client has."""
    job_id = submit(client)
    with EmulatorControl(emulator.base_url) as control:
        control.progress(job_id, {"step": 1})
        assert [job["id"] for job in control.jobs()] == [job_id]
    assert client.get(f"{FLOW}/jobs/{job_id}").json()["progress"] == {"step": 1}


def test_a_second_submission_with_an_idempotency_key_when_it_is_honoured() -> None:
    """On request, the emulator returns the first job again, even if its response was lost."""
    headers = {"Authorization": "Bearer nk_test_x", "Idempotency-Key": "the-key"}
    with (
        Emulator(honour_idempotency_key=True) as emulator,
        httpx.Client(base_url=emulator.base_url, headers=headers) as client,
    ):
        emulator.control.fault("drop_after", on="submit")
        with pytest.raises(httpx.RemoteProtocolError):
            submit(client)
        assert submit(client) == emulator.control.jobs()[0]["id"]
        assert len(emulator.control.jobs()) == 1


def test_an_emulator_that_does_not_listen_has_no_address() -> None:
    """The message says what to do."""
    with pytest.raises(RuntimeError, match="with Emulator"):
        _ = Emulator().base_url


def test_a_port_that_is_taken(emulator: Emulator) -> None:
    """The error is raised on entering, in the caller's thread."""
    with pytest.raises(OSError, match="in use"):
        Emulator(port=httpx.URL(emulator.base_url).port or 0).__enter__()


def test_only_this_machine_can_connect(emulator: Emulator) -> None:
    """By default, the emulator binds to loopback."""
    assert httpx.URL(emulator.base_url).host == "127.0.0.1"
