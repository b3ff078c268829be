"""What the public checks allow, and what they say of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from noukai_core import InvalidInputError
from noukai_core.checks import (
    check_base_url,
    check_choice,
    check_count,
    check_duration,
    check_flag,
    check_flow_id,
    check_job_id,
    check_number,
    check_seconds,
)

NO_NUMBERS = [None, "30", b"1", True, math.nan, math.inf, -1, -0.5, 10**400]


@pytest.mark.parametrize("check", [check_number, check_seconds, check_duration])
def test_a_number_comes_back_as_a_float(check: Callable[..., float]) -> None:
    """Whole numbers and fractions above 0 are allowed, and 0 where the caller allows it."""
    assert [check(3, "timeout"), check(0.5, "timeout"), check(0, "timeout", zero=True)] == [3.0, 0.5, 0.0]
    assert all(isinstance(value, float) for value in (check(3, "timeout"), check(0, "timeout", zero=True)))


@pytest.mark.parametrize("check", [check_number, check_seconds, check_duration])
@pytest.mark.parametrize("value", [*NO_NUMBERS, 0], ids=lambda value: repr(value)[:12])
def test_what_is_no_number_above_0_is_refused(check: Callable[..., float], value: Any) -> None:
    """The message names the argument, the value and what is allowed."""
    with pytest.raises(InvalidInputError, match=r"^timeout is .*, but must be .*number.* above 0$") as caught:
        check(value, "timeout")
    assert repr(value)[:12] in str(caught.value)


def test_only_a_duration_may_be_a_timedelta() -> None:
    """A timedelta counts in seconds where it is allowed, and is refused elsewhere."""
    assert check_duration(timedelta(minutes=1), "timeout") == 60.0
    with pytest.raises(InvalidInputError, match=r"timeout is .*timedelta"):
        check_duration(timedelta(seconds=-1), "timeout")
    for check in (check_seconds, check_number):
        with pytest.raises(InvalidInputError, match=r"timeout is .*timedelta"):
            check(timedelta(minutes=1), "timeout")


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", True, None], ids=repr)
def test_a_count_is_a_whole_number_above_0(value: Any) -> None:
    """Anything but a whole number above 0 is refused by name."""
    assert check_count(1, "max_concurrency") == 1
    with pytest.raises(InvalidInputError, match=r"max_concurrency is .*, but must be a whole number above 0"):
        check_count(value, "max_concurrency")


@pytest.mark.parametrize("value", [None, 1, "True", [True]])
def test_a_flag_is_true_or_false(value: Any) -> None:
    """What only counts as true or false, such as a text from a template, is refused by name."""
    assert (check_flag(True, "trace"), check_flag(False, "trace")) == (True, False)
    with pytest.raises(InvalidInputError, match=r"trace is .*, but must be True or False"):
        check_flag(value, "trace")


@pytest.mark.parametrize("value", [None, "", 5, "acme/spelling/grade-3"])
def test_the_id_of_a_flow_is_not_its_path(value: Any) -> None:
    """What the server cannot have given a flow as its id is refused by name."""
    assert check_flow_id("fl_1") == "fl_1"
    with pytest.raises(InvalidInputError, match=r"flow_id is .*, but must be the id .*, not its path"):
        check_flow_id(value)


def test_a_choice_is_one_of_a_few() -> None:
    """The message lists what there is to choose from, and shows no key."""
    assert check_choice("fail", ("fail", "skip"), "on_cancelled") == "fail"
    with pytest.raises(InvalidInputError, match="on_cancelled is 'no', but must be 'fail' or 'skip'"):
        check_choice("no", ("fail", "skip"), "on_cancelled")
    with pytest.raises(InvalidInputError) as caught:
        check_choice("nk_live_secret", ("fail", "skip"), "on_cancelled")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 7, "", "two words", "a/b", ".."], ids=repr)
def test_the_id_of_a_job_has_no_spaces_or_slashes(value: Any) -> None:
    """An id comes back as it is, and anything that no submission returns is refused by name."""
    assert check_job_id("job_1") == "job_1"
    with pytest.raises(InvalidInputError, match="job_id is "):
        check_job_id(value)


@pytest.mark.parametrize(
    "value", ["https://noukai.test/api", "https://noukai.test/api//", " https://noukai.test/api/ "]
)
def test_an_address_comes_back_as_a_client_uses_it(value: str) -> None:
    """Spaces around an address and slashes at its end make no other address."""
    assert check_base_url(value) == "https://noukai.test/api"


@pytest.mark.parametrize("value", [None, "", "noukai.test", "https://noukai.test?a=b"], ids=repr)
def test_what_is_no_address_is_refused(value: Any) -> None:
    """The message names the argument."""
    with pytest.raises(InvalidInputError, match="base_url "):
        check_base_url(value)
