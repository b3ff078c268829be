"""What an XCom can hold, by Airflow's own serializer, the frames between its processes, and its client."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from airflow.sdk.execution_time.xcom import XCom
from hypothesis import given
from hypothesis import strategies as st

from noukai_airflow._xcom_values import UnreturnableError, as_xcom
from tests.fuzz.nonsense import fuzzed

texts = st.text(st.characters(codec=None), max_size=8) | st.sampled_from(
    ["\0", "a\0", "\ud83d", "\ude00\ud83d", "\\u0000", "k" * 1_000, "__type", "__version__", "__data__"]
)
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400, -(10**400), 1e999, -0.0]),
)
outputs = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


def through_airflow(value: Any) -> Any:
    """Return what another task gets of an XCom, if the database can hold it."""
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(XCom.serialize_value(value)))  # type: ignore[no-untyped-call]
    body = httpx.Request("POST", "http://airflow.test", json=[sent]).read()
    (stored,) = json.loads(body)
    text = json.dumps(stored)
    assert "\\u0000" not in text.replace("\\\\", "")  # PostgreSQL refuses it
    return XCom.deserialize_value(SimpleNamespace(value=stored))  # type: ignore[no-untyped-call]


@fuzzed()
@given(outputs)
def test_any_output(output: Any) -> None:
    """Whatever a flow returns, its task can return it, unchanged if Airflow can hold it as it is."""
    returned, changed = as_xcom(output)
    assert through_airflow(returned) == returned
    assert as_xcom(returned) == (returned, False)
    if not changed:
        assert returned is output


def test_what_is_replaced() -> None:
    """Each value that Airflow refuses has a replacement."""
    output = [float("nan"), float("-inf"), "a\0b\ud83d", {"\0": 2**64}, -(10**400), True, 2**64 - 1, -0.5]
    assert as_xcom(output) == (
        [None, None, "a\ufffdb\ufffd", {"\ufffd": 2.0**64}, None, True, 2**64 - 1, -0.5],
        True,
    )
    for value in output[:5]:
        with pytest.raises((ValueError, OverflowError, AssertionError)):
            through_airflow(value)


@pytest.mark.parametrize(
    "reserved",
    [
        {"__classname__": "x"},
        {"__id__": 1},
        {"__type": "set", "__var": []},
        {"__classname__": "x", "__version__": 1},
    ],
)
def test_reserved_fields(reserved: dict[str, Any]) -> None:
    """An object that Airflow would take for an instance of a class is refused, at any depth."""
    with pytest.raises(UnreturnableError, match="which Airflow reserves"):
        as_xcom([{"a": reserved}])


def test_an_output_of_many_levels() -> None:
    """An output that Airflow could store, and then not read any more, is refused."""
    output: Any = 0
    for _ in range(150):
        output = [output]
    assert as_xcom(output) == (output, False)
    with pytest.raises(UnreturnableError, match="more than 150 levels"):
        as_xcom({"a": output})
