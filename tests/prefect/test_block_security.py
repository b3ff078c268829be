"""What a block of credentials refuses, and what it stands for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentUpdate
from prefect.serializers import JSONSerializer
from prefect.utilities.templating import resolve_block_document_references
from pydantic import SecretStr, ValidationError

from noukai_prefect import NoukaiCredentials, NoukaiJob
from noukai_prefect.flows import noukai_job

KEY = "nk_test_12345678_secret"


@pytest.mark.parametrize("key", [f" {KEY}", f"{KEY}\n"])
def test_white_space_around_a_key(key: str) -> None:
    """A key that was pasted with white space is refused, and the error names the field, not the key."""
    with pytest.raises(ValidationError, match="white space") as caught:
        NoukaiCredentials(api_key=key)
    assert "api_key" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_a_block_does_not_name_is_production(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stored block means the same server in every process, whatever its environment says."""
    monkeypatch.setenv("NOUKAI_BASE_URL", "http://localhost:8080/api/v1")
    with NoukaiCredentials(api_key=KEY).get_client() as client:
        assert "https://api.noukai.dev/api/v1" in repr(client)


def test_plain_http_needs_a_field() -> None:
    """A block sends its key over plain HTTP to another machine only if a field says so."""
    with pytest.raises(ValueError, match="allow_insecure_http"):
        NoukaiCredentials(api_key=KEY, base_url="http://noukai.test").get_client()
    allowed = NoukaiCredentials(api_key=KEY, base_url="http://noukai.test", allow_insecure_http=True)
    allowed.get_client().close()


def test_a_mistyped_address_does_not_mean_production() -> None:
    """A name that is no field is refused; the error names it and the right one, and hides the values."""
    mistyped: dict[str, Any] = {"baseurl": "http://localhost"}
    with pytest.raises(ValidationError, match=r"baseurl is not a field .* did you mean base_url") as caught:
        NoukaiCredentials(api_key=KEY, **mistyped)
    assert "secret" not in str(caught.value)
    with pytest.raises(ValidationError, match="the fields are api_key, base_url"):
        NoukaiCredentials(api_key=KEY, **{"zzz": 1})
    block = NoukaiCredentials(api_key=KEY)
    with pytest.raises(ValidationError, match="base_url"):
        setattr(block, "baseurl", "http://localhost")  # noqa: B010


@pytest.mark.parametrize("credentials", [NoukaiCredentials(api_key=KEY), {"api_key": KEY}])
def test_a_mistyped_field_of_a_job(credentials: Any) -> None:
    """A job block refuses a name that is no field, its own or its credentials', and hides the values."""
    given: list[dict[str, Any]] = [
        {"credentials": credentials, "messages": "hello"},
        {"credentials": {"api_key": KEY, "baseurl": "http://localhost"}, "message": "hello"},
    ]
    for fields, right in zip(given, ("message", "base_url"), strict=True):
        with pytest.raises(ValidationError, match=f"did you mean {right}") as caught:
            NoukaiJob(flow="acme/spelling/grade-3", **fields)
        assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("prefect_server")
async def test_what_prefect_adds_to_a_block_is_accepted() -> None:
    """Blocks are saved, loaded, nested, pickled, written as JSON and resolved from a reference as before."""
    credentials = NoukaiCredentials(api_key=KEY, base_url="http://127.0.0.1:1/api/v1")
    await credentials.asave("strict", overwrite=True)
    job = NoukaiJob(credentials=credentials, flow="acme/spelling/grade-3", message="hello")
    await job.asave("strict", overwrite=True)
    loaded = await NoukaiJob.aload("strict")
    assert loaded.credentials.base_url == credentials.base_url
    assert cloudpickle.loads(cloudpickle.dumps(loaded.credentials)) == loaded.credentials

    serializer = JSONSerializer()
    for block in (loaded, loaded.credentials):
        assert repr(serializer.loads(serializer.dumps(block))) == repr(block)
    reference = {"$ref": {"block_document_id": str(credentials._block_document_id)}}
    resolved = await resolve_block_document_references({"credentials": reference})
    parameters = noukai_job.validate_parameters({"noukai_flow": "acme/spelling/grade-3", **resolved})
    assert parameters["credentials"].api_key.get_secret_value() == KEY


def with_another_key(block: NoukaiCredentials) -> NoukaiCredentials:
    block.api_key = SecretStr("nk_test_87654321_another")
    return block


def with_another_address(block: NoukaiCredentials) -> NoukaiCredentials:
    block.base_url = "http://127.0.0.1:2/api/v1"
    return block


def copied(block: NoukaiCredentials) -> NoukaiCredentials:
    return block.model_copy(update={"org": "acme", "project": "spelling"})


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("change", [with_another_key, with_another_address, copied])
async def test_a_stored_block_that_code_changes(
    change: Callable[[NoukaiCredentials], NoukaiCredentials],
) -> None:
    """A change is neither lost in a pickle nor taken for the stored block; once saved, it is that block."""
    credentials = NoukaiCredentials(api_key=KEY, base_url="http://127.0.0.1:1/api/v1")
    await credentials.asave("changed", overwrite=True)
    await NoukaiJob(credentials=credentials, flow="acme/spelling/grade-3").asave("changed", overwrite=True)
    nested = (await NoukaiJob.aload("changed")).credentials
    for block in (credentials, await NoukaiCredentials.aload("changed"), nested):
        assert block.saved_as == "changed"
        changed = change(block)
        assert changed.saved_as is None
        pickled = cloudpickle.dumps(changed)
        read = cloudpickle.loads(pickled)
        assert read == changed
        assert read.api_key.get_secret_value() == changed.api_key.get_secret_value()
        assert read.saved_as is None
        assert changed.api_key == credentials.api_key or KEY.encode() not in pickled
    await changed.asave("changed", overwrite=True)
    assert changed.saved_as == "changed"
    assert (await NoukaiCredentials.aload("changed")).api_key == changed.api_key


@pytest.mark.usefixtures("prefect_server")
async def test_how_a_change_is_noticed_is_not_shown() -> None:
    """Neither the text, the fields nor the schema of a stored block have a digest of its key."""
    credentials = NoukaiCredentials(api_key=KEY)
    await credentials.asave("not-shown", overwrite=True)
    assert credentials._stored_digest is not None
    for text in (repr(credentials), credentials.model_dump_json(), str(credentials.model_dump())):
        assert credentials._stored_digest not in text
        assert "digest" not in text
    assert "digest" not in str(NoukaiCredentials.model_json_schema())


@pytest.mark.usefixtures("prefect_server")
async def test_a_mistyped_field_of_a_stored_block() -> None:
    """A block document that was written with an unknown field does not load."""
    await NoukaiCredentials(api_key=KEY).asave("mistyped", overwrite=True)
    async with get_client() as client:
        document = await client.read_block_document_by_name("mistyped", "noukai-credentials")
        await client.update_block_document(
            document.id, BlockDocumentUpdate(data={"baseurl": "http://localhost"})
        )
    with pytest.raises(RuntimeError, match="failed validation") as caught:
        await NoukaiCredentials.aload("mistyped")
    assert "did you mean base_url" in str(caught.value.__cause__)
