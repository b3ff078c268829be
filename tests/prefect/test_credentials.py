"""The block that holds the key, without a server."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import cloudpickle
import pytest
from prefect import flow, runtime
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from pydantic import SecretStr, ValidationError

from noukai_core import AsyncNoukai, InvalidInputError, Noukai, ResponseTooLargeError
from noukai_core._options import ClientArguments
from noukai_core.addresses import PRODUCTION_URL
from noukai_prefect import NoukaiCredentials, NoukaiJob, NoukaiJobRun, run_noukai_job, run_noukai_jobs
from tests.prefect.conftest import KEY

if TYPE_CHECKING:
    from noukai_core.emulator import Emulator


def test_sync_client(credentials: NoukaiCredentials) -> None:
    """The sync client works with the block's key and address."""
    with credentials.get_client() as client:
        assert isinstance(client, Noukai)
        assert client.verify_key() is not None


async def test_async_client(credentials: NoukaiCredentials) -> None:
    """The async client works with the block's key and address."""
    async with credentials.get_client("async") as client:
        assert isinstance(client, AsyncNoukai)
        assert await client.verify_key() is not None


def test_each_call_creates_a_client(credentials: NoukaiCredentials) -> None:
    """Each call creates a client, so event loops never share one."""
    with credentials.get_client() as first, credentials.get_client() as second:
        assert first is not second


def test_empty_fields_of_a_form_mean_none(emulator: Emulator) -> None:
    """Empty strings from the web form mean no organisation, project or address."""
    block = NoukaiCredentials(api_key=SecretStr(KEY), base_url=emulator.base_url, org="", project="")
    with block.get_client() as client:
        assert client.flow("acme/spelling/grade-3").path == "acme/spelling/grade-3"


@pytest.mark.parametrize("address", [None, "", " ", f" {PRODUCTION_URL}", f"{PRODUCTION_URL}/"], ids=repr)
def test_an_address_that_is_written_differently(address: str | None) -> None:
    """What means the same server is one address, which clients use."""
    block = NoukaiCredentials(api_key=SecretStr(KEY), base_url=address)
    assert block.api_url == PRODUCTION_URL
    with block.get_client() as client:
        assert client._settings.base_url == PRODUCTION_URL


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("batch", [False, True])
def test_a_rerun_after_an_address_was_edited(emulator: Emulator, batch: bool) -> None:
    """A rerun whose block names the same server differently attaches to the jobs that exist."""

    @flow(retries=1)
    def edited_between() -> None:
        attempt = runtime.flow_run.run_count  # type: ignore[attr-defined]
        address = emulator.base_url + "/" * (attempt - 1)
        block = NoukaiCredentials(api_key=SecretStr(KEY), base_url=address)
        if batch:
            run_noukai_jobs(block, "acme/spelling/grade-3", ["hello"])
        else:
            run_noukai_job(block, "acme/spelling/grade-3", "hello")
        if attempt == 1:
            raise RuntimeError("again")

    edited_between()
    assert len(emulator.control.jobs()) == 1


def test_org_and_project(emulator: Emulator) -> None:
    """With organisation and project, a slug alone names a flow."""
    block = NoukaiCredentials(
        api_key=SecretStr(KEY), base_url=emulator.base_url, org="acme", project="spelling"
    )
    with block.get_client() as client:
        assert client.flow("grade-3").path == "acme/spelling/grade-3"


def test_wrong_fields_are_reported(emulator: Emulator) -> None:
    """An invalid key is rejected before a request, and not shown."""
    block = NoukaiCredentials(api_key=SecretStr("sk-secret-of-another"), base_url=emulator.base_url)
    with pytest.raises(InvalidInputError) as refused:
        block.get_client()
    assert "sk-secret-of-another" not in str(refused.value)
    assert emulator.control.requests() == []


def test_the_key_is_not_shown(credentials: NoukaiCredentials) -> None:
    """Neither the text nor the JSON of a block shows the key."""
    job = NoukaiJob(credentials=credentials, flow="acme/spelling/grade-3", message="hello")
    for block in (credentials, job):
        for text in (repr(block), str(block), block.model_dump_json()):
            assert KEY not in text


def test_job_page(credentials: NoukaiCredentials) -> None:
    """The address of a job's page comes from the block's template; without one there is none."""
    assert credentials.page_of("acme/spelling/grade-3", "job_1") is None
    credentials.run_url_template = "https://noukai.test/{org}/{project}/{flow}/runs/{job_id}"
    assert credentials.page_of("acme/spelling/grade-3", "job_1") == (
        "https://noukai.test/acme/spelling/grade-3/runs/job_1"
    )
    assert "runs/job%2F%3F1" in str(credentials.page_of("acme/spelling/grade-3", "job/?1"))


@pytest.mark.parametrize(
    "template", ["javascript:alert('{job_id}')", "https://x/{org:>300000000}", "https://x/{nothing}"]
)
def test_a_template_that_is_none(credentials: NoukaiCredentials, template: str) -> None:
    """A template with anything else in braces, or of another scheme, is refused by the block itself."""
    with pytest.raises(ValidationError, match="run_url_template"):
        NoukaiCredentials(api_key=credentials.api_key, run_url_template=template)
    with pytest.raises(ValidationError, match="run_url_template"):
        credentials.run_url_template = template


def test_pickles(credentials: NoukaiCredentials, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickled block contains the name under which it is stored, and loads that block again."""
    credentials._block_document_id, credentials._block_document_name = uuid4(), "of-a-test"
    loaded: list[str] = []

    def load(name: str, **_: Any) -> NoukaiCredentials:
        loaded.append(name)
        return credentials

    monkeypatch.setattr(NoukaiCredentials, "load", load)
    run = NoukaiJobRun(credentials, "acme/spelling/grade-3", "job-1")
    for kept in (credentials, run):
        pickled = cloudpickle.dumps(kept)
        assert KEY.encode() not in pickled
        assert repr(cloudpickle.loads(pickled)) == repr(kept)
    assert loaded == ["of-a-test", "of-a-test"]


def test_a_block_that_is_not_stored_can_be_sent_to_another_process(credentials: NoukaiCredentials) -> None:
    """A block that is not stored is pickled whole, since nothing else has its key."""
    assert cloudpickle.loads(cloudpickle.dumps(credentials)) == credentials


@pytest.mark.parametrize("block", [NoukaiCredentials, NoukaiJob])
def test_form(block: type[Block]) -> None:
    """The web form of a block knows the type of each field, and which one is secret."""
    schema = block.model_json_schema()
    assert schema["secret_fields"] == (["api_key"] if block is NoukaiCredentials else ["credentials.api_key"])
    for name, field in schema["properties"].items():
        assert "type" in field or "anyOf" in field or "$ref" in field or "allOf" in field, name


def test_a_limit_of_the_block_applies_to_its_tasks(emulator: Emulator) -> None:
    """A task runs with the client options of its credentials."""
    block = NoukaiCredentials(api_key=SecretStr(KEY), base_url=emulator.base_url, max_response_bytes=2000)
    with pytest.raises(ResponseTooLargeError):
        run_noukai_job.fn(block, "acme/spelling/grade-3", "hello" * 1000)


def options_of(block: NoukaiCredentials, **options: Any) -> dict[str, Any]:
    """Return the options of a client that a block creates."""
    with block.get_client(**options) as client:
        return dataclasses.asdict(client._settings)


def test_options_of_a_client(credentials: NoukaiCredentials) -> None:
    """A field that is set is the client's option, one that is not has the client's default."""
    defaults = options_of(credentials)
    options: dict[str, Any] = {
        "request_timeout": 7.0,
        "retry_timeout": 8.0,
        "not_found_grace": 9.0,
        "recovery_timeout": 0.0,
        "max_polls_per_second": 10.0,
        "max_followed_jobs": 11,
        "max_response_bytes": 12_000,
    }
    block = NoukaiCredentials(api_key=credentials.api_key, base_url=credentials.base_url, **options)
    expected = {**options, "timeout": options.pop("request_timeout")}
    del expected["request_timeout"]
    assert options_of(block) == {**defaults, **expected}


def test_arguments_of_a_call_precede_the_fields(credentials: NoukaiCredentials) -> None:
    """What a call of `get_client` names takes precedence over the block."""
    credentials.max_polls_per_second = 10
    credentials.request_timeout = 10
    given = options_of(credentials, max_polls_per_second=20, timeout=20)
    assert (given["max_polls_per_second"], given["timeout"]) == (20, 20)


def test_an_address_of_a_call_precedes_the_fields(credentials: NoukaiCredentials) -> None:
    """So do the address of the API, the organisation and the project, each for itself."""
    credentials.org, credentials.project = "acme", "spelling"
    given = options_of(credentials, base_url="https://noukai.test/api/v1", project="grammar")
    assert (given["base_url"], given["org"], given["project"]) == (
        "https://noukai.test/api/v1",
        "acme",
        "grammar",
    )


def test_a_client_has_no_other_key_than_the_block(credentials: NoukaiCredentials) -> None:
    """A key beside that of the block is refused, and shown neither in the error nor in its traceback."""
    other = "nk_test_other_0123456789abcdef"
    with pytest.raises(InvalidInputError, match="api_key") as refused:
        credentials.get_client(api_key=other)
    assert other not in str(refused.value)
    assert other not in str([frame.locals for frame in refused.traceback[1:]])


@pytest.mark.parametrize("client_type", ["blocking", "Sync", None])
def test_a_type_of_client_that_is_none(credentials: NoukaiCredentials, client_type: Any) -> None:
    """A wrong type is an error that names the right ones, and not the other client."""
    with pytest.raises(InvalidInputError, match=r"client_type is .* 'sync' or 'async'"):
        credentials.get_client(client_type)


def test_a_refused_assignment_leaves_the_block_as_it_was(credentials: NoukaiCredentials) -> None:
    """After an assignment to a name that is no field, the block is unchanged and takes valid ones."""
    before = credentials.model_copy()
    unknown: Any = credentials
    with pytest.raises(ValidationError, match="did you mean base_url"):
        unknown.baseurl = "x"
    assert credentials == before
    assert credentials.model_fields_set == before.model_fields_set
    assert not hasattr(credentials, "baseurl")
    credentials.org = "acme"
    assert credentials.org == "acme"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_timeout", 0),
        ("retry_timeout", -1),
        ("not_found_grace", float("nan")),
        ("recovery_timeout", float("inf")),
        ("max_polls_per_second", 0),
        ("max_followed_jobs", 0),
        ("max_response_bytes", 0.5),
    ],
)
def test_an_option_that_no_client_accepts(credentials: NoukaiCredentials, field: str, value: float) -> None:
    """An invalid option is refused by the block itself, which names the field."""
    options: dict[str, Any] = {field: value}
    with pytest.raises(ValidationError, match=field):
        NoukaiCredentials(api_key=credentials.api_key, **options)
    with pytest.raises(ValidationError, match=field):
        setattr(credentials, field, value)


def test_the_same_options_as_in_airflow() -> None:
    """The block has the client options that the Airflow connection has, by the same names."""
    module = Path(__file__).parents[2] / "noukai_airflow" / "_connection.py"
    options = next(
        ast.literal_eval(statement.value)
        for statement in ast.parse(module.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "_OPTIONS"
    )
    fields = set(NoukaiCredentials.model_fields)
    assert set(options) <= fields
    arguments = {options.get(name, name) for name in fields - {"api_key", "run_url_template"}}
    # The interval is an argument of each task; submissions at the same time are a task's own decision.
    assert set(ClientArguments.__annotations__) - arguments == {"poll_interval", "max_concurrent_submissions"}
    assert arguments <= set(ClientArguments.__annotations__)


@pytest.mark.usefixtures("prefect_server")
async def test_a_block_that_was_saved_without_the_options(credentials: NoukaiCredentials) -> None:
    """A block document without the newer fields loads, and its clients have their defaults."""
    await credentials.asave("saved-before")
    async with get_client() as client:
        document = await client.read_block_document_by_name("saved-before", "noukai-credentials")
        old = {name: document.data[name] for name in ("base_url", "org", "project", "run_url_template")}
        data = {**old, "api_key": KEY, "allow_insecure_http": False}
        await client.update_block_document(
            document.id, BlockDocumentUpdate(data=data, merge_existing_data=False)
        )
    loaded = await NoukaiCredentials.aload("saved-before")
    assert loaded.max_response_bytes is None
    assert options_of(loaded) == options_of(credentials)
