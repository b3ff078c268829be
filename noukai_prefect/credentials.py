"""The credentials block."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex, TypeAlias, overload

from prefect.blocks.abstract import CredentialsBlock
from prefect.blocks.core import Block
from pydantic import (
    ConfigDict,
    Field,
    HttpUrl,
    PrivateAttr,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from noukai_core import AsyncNoukai, InvalidInputError, Noukai, RunUrlTemplate
from noukai_core.addresses import PRODUCTION_URL
from noukai_core.checks import check_base_url, check_choice, check_count, check_number, check_seconds
from noukai_prefect._block_fields import refuse_unknown_fields

DOCUMENTATION_URL = HttpUrl("https://docs.noukai.xyz")

# Prefect's forms show a switch between a type and null for a type that allows both in the schema.
OptionalText: TypeAlias = str | SkipJsonSchema[None]
OptionalNumber: TypeAlias = float | SkipJsonSchema[None]
OptionalInteger: TypeAlias = int | SkipJsonSchema[None]
OptionalObject: TypeAlias = dict[str, Any] | SkipJsonSchema[None]

# The block's name for an option of the client, and the client's name for it.
_CLIENT_OPTIONS = {
    "request_timeout": "timeout",
    "retry_timeout": "retry_timeout",
    "recovery_timeout": "recovery_timeout",
    "not_found_grace": "not_found_grace",
    "max_polls_per_second": "max_polls_per_second",
    "max_followed_jobs": "max_followed_jobs",
    "max_response_bytes": "max_response_bytes",
}


class NoukaiCredentials(CredentialsBlock):
    """The API key of a Noukai project, and the addresses of the API and of the run pages.

    Example:
        Load stored credentials and verify the key:
        ```python
        from noukai_prefect import NoukaiCredentials

        credentials = NoukaiCredentials.load("BLOCK_NAME")
        with credentials.get_client() as client:
            print(client.verify_key())
        ```
    """

    model_config = ConfigDict(validate_assignment=True, hide_input_in_errors=True)

    _block_type_name = "Noukai Credentials"
    _block_type_slug = "noukai-credentials"
    _documentation_url = DOCUMENTATION_URL

    api_key: SecretStr = Field(
        title="API Key", description="The key of the Noukai project. It begins with nk_."
    )
    base_url: OptionalText = Field(
        default=None, title="Base URL", description="The address of the API. Empty for Noukai's own."
    )
    org: OptionalText = Field(
        default=None,
        title="Organisation",
        description="With a project, flows can be named by their slug alone.",
    )
    project: OptionalText = Field(
        default=None, title="Project", description="The project inside the organisation."
    )
    run_url_template: OptionalText = Field(
        default=None,
        title="Run Page URL Template",
        description="The address of a job's page; {org}, {project}, {flow} and {job_id} are filled in. "
        "Without it, jobs have no link.",
    )

    allow_insecure_http: bool = Field(
        default=False,
        title="Allow Insecure HTTP",
        description="Send the key over http to another machine, where anyone on the way can read it.",
    )

    request_timeout: OptionalNumber = Field(
        default=None, title="Request Timeout", description="Seconds for one request. Default: 30."
    )
    retry_timeout: OptionalNumber = Field(
        default=None,
        title="Retry Timeout",
        description="Seconds for which transient errors are retried. Default: 300.",
    )
    recovery_timeout: OptionalNumber = Field(
        default=None,
        title="Recovery Timeout",
        description="Seconds to find out whether a submission with an unknown outcome created a job; 0 turns "
        "this off. Default: 60.",
    )
    not_found_grace: OptionalNumber = Field(
        default=None,
        title="Not-Found Grace Period",
        description="Seconds after a submission in which the server may not know the job. Default: 60.",
    )
    max_polls_per_second: OptionalNumber = Field(
        default=None,
        title="Polls per Second",
        description="The rate limit of all jobs in one process. Default: 50.",
    )
    max_followed_jobs: OptionalInteger = Field(
        default=None,
        title="Followed Jobs",
        description="The most jobs whose steps one process follows. Default: 50.",
    )
    max_response_bytes: OptionalInteger = Field(
        default=None,
        title="Response Size Limit",
        description="The largest response, in bytes. Default: 67108864.",
    )

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, key: SecretStr) -> SecretStr:
        text = key.get_secret_value()
        if text != text.strip():
            raise ValueError("api_key begins or ends with white space: store the key without it")
        return key

    @field_validator("run_url_template")
    @classmethod
    def _check_run_url_template(cls, template: str | None) -> str | None:
        return RunUrlTemplate(template).template if template else None

    @field_validator("request_timeout", "retry_timeout", "recovery_timeout", "not_found_grace")
    @classmethod
    def _check_seconds(cls, seconds: float | None, info: ValidationInfo) -> float | None:
        name = str(info.field_name)
        return None if seconds is None else check_seconds(seconds, name, zero=name != "request_timeout")

    @field_validator("max_polls_per_second")
    @classmethod
    def _check_rate(cls, rate: float | None) -> float | None:
        return None if rate is None else check_number(rate, "max_polls_per_second")

    @field_validator("max_followed_jobs", "max_response_bytes")
    @classmethod
    def _check_count(cls, count: int | None, info: ValidationInfo) -> int | None:
        return None if count is None else check_count(count, str(info.field_name))

    # A digest, since the private attributes of a block are pickled with it.
    _stored_digest: str | None = PrivateAttr(default=None)

    _refuse_unknown_fields = model_validator(mode="after")(refuse_unknown_fields)

    if not TYPE_CHECKING:  # type checkers would allow the assignment of any name

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            # Prefect names a block when it has loaded or saved it, on its own or inside another block.
            if name == "_block_document_name":
                self._stored_digest = self._digest()

    def _digest(self) -> str:
        """Return a digest of the fields, with their secrets."""
        fields = self.model_dump(
            mode="json", include=set(type(self).model_fields), context={"include_secrets": True}
        )
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _load_masked(self) -> Self:
        # Prefect's JSON serializer masks the key, but writes the name of a stored block beside it. What else
        # it wrote is not used: the key goes only to the address that it is stored with.
        name = (self.__pydantic_extra__ or {}).get("_block_document_name")
        if self._is_masked and isinstance(name, str):
            self.__setstate__(_load(type(self), name).__getstate__())
        return self

    @overload
    def get_client(self, client_type: Literal["sync"] = "sync", **options: Any) -> Noukai: ...

    @overload
    def get_client(self, client_type: Literal["async"], **options: Any) -> AsyncNoukai: ...

    def get_client(
        self, client_type: Literal["sync", "async"] = "sync", **options: Any
    ) -> Noukai | AsyncNoukai:
        """Create a client, which is a context manager. Each call creates a new one; the block keeps none.

        Args:
            client_type: `"sync"` for a `noukai_core.Noukai`, `"async"` for a `noukai_core.AsyncNoukai`.
            **options: Further arguments of the client, such as `timeout` or `base_url`, but not `api_key`.
                They take precedence over the fields of the block.

        Returns:
            The client. An async one belongs to the event loop that first uses it.

        Raises:
            InvalidInputError: A field of the block or an argument is invalid, or the block's key is masked.
        """
        check_choice(client_type, ("sync", "async"), "client_type")
        if "api_key" in options:
            options.clear()  # some tracebacks show local variables
            raise InvalidInputError("api_key is the block's own: for another key, create another block")
        if self._is_masked:
            raise InvalidInputError(
                "api_key is masked, because the credentials were written as JSON, which hides secrets: save "
                "the block, so that it is written as its name, or use Prefect's `pickle` serializer"
            )
        options.setdefault("base_url", self.api_url)
        options.setdefault("org", self.org or None)
        options.setdefault("project", self.project or None)
        options.setdefault("allow_insecure_http", self.allow_insecure_http)
        for name, argument in _CLIENT_OPTIONS.items():
            if (value := getattr(self, name)) is not None:
                options.setdefault(argument, value)
        client_class = Noukai if client_type == "sync" else AsyncNoukai
        return client_class(self.api_key.get_secret_value(), **options)

    def get_async_client(self, **options: Any) -> AsyncNoukai:
        """Create an async client; see `get_client`."""
        return self.get_client("async", **options)

    @property
    def _is_masked(self) -> bool:
        return set(self.api_key.get_secret_value()) == {"*"}

    @property
    def api_url(self) -> str:
        """The address of the API, as clients use it: without a slash at its end, and never empty.

        Raises:
            InvalidInputError: `base_url` is no http address.
        """
        return check_base_url((self.base_url or "").strip() or PRODUCTION_URL)

    @property
    def saved_as(self) -> str | None:
        """The name under which this block is stored; `None` if it is not, or was changed since."""
        return self.stored_name if self._stored_digest == self._digest() else None

    @property
    def stored_name(self) -> str | None:
        """The name under which this block was loaded or saved, even if it was changed since."""
        return self._block_document_name or None

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle a stored block as its name, since Prefect stores results and task inputs as pickles.

        One that was changed since is pickled whole, or the change would be lost.
        """
        name = self.saved_as
        return super().__reduce_ex__(protocol) if name is None else (_load, (type(self), name))

    def page_of(self, flow: str, job_id: str) -> str | None:
        """Return the address of a job's page; `None` without a template.

        Args:
            flow: The flow, as `org/project/slug`.
            job_id: The job.
        """
        return RunUrlTemplate(self.run_url_template).url(flow, job_id) if self.run_url_template else None


def check_credentials(credentials: object) -> NoukaiCredentials:
    """Check the argument `credentials`, and return it.

    Raises:
        InvalidInputError: It is no `NoukaiCredentials` block. The error says what is missing.
    """
    if isinstance(credentials, NoukaiCredentials):
        return credentials
    kind = type(credentials).__name__
    if inspect.iscoroutine(credentials):
        credentials.close()  # or Python warns that nothing awaited it
    what_to_do = {
        "str": "load the block with `NoukaiCredentials.load(...)`",
        "coroutine": "write `await NoukaiCredentials.aload(...)` in async code",
        "tuple": "write `unmapped(credentials)` in `.map(...)`, which would take a block apart",
    }.get(kind, "load one with `NoukaiCredentials.load(...)`")
    raise InvalidInputError(f"credentials is a {kind}, but must be a NoukaiCredentials block: {what_to_do}")


def stored_reference(credentials: NoukaiCredentials) -> str | None:
    """Return how a record names a stored block; `None` if it is not stored, or was changed since.

    It is the block's name or, if its class is a subclass with a block type of its own, `slug/name`.
    """
    name = credentials.saved_as
    if name is None:
        return None
    slug = type(credentials).get_block_type_slug()
    return name if slug == NoukaiCredentials.get_block_type_slug() else f"{slug}/{name}"


async def load_stored(reference: str) -> NoukaiCredentials:
    """Load the block that a record names; see `stored_reference`.

    Raises:
        InvalidInputError: The type of the block is not one of credentials.
    """
    slug, _, name = reference.rpartition("/")
    block_class: type[Block] = Block.get_block_class_from_key(slug) if slug else NoukaiCredentials
    # Others may be able to write records, and must not choose which blocks are loaded.
    if not issubclass(block_class, NoukaiCredentials):
        raise InvalidInputError(f"{slug} is not a type of Noukai credentials")
    return await block_class.aload(name)


def _load(block_class: type[NoukaiCredentials], name: str) -> NoukaiCredentials:
    load: Any = block_class.load  # pyright: ignore[reportUnknownMemberType]
    block: NoukaiCredentials = load(name, _sync=True)
    return block
