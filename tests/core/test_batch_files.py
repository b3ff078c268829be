"""What a file of inputs may contain, and what an error says of it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from noukai_core import InvalidInputError
from noukai_core.batch_files import json_line, json_text, read_inputs


def inputs_in(text: str, name: str) -> list[Any]:
    """Read a file as the integrations open it: without the mark at its beginning, with its line ends."""
    return list(read_inputs(io.StringIO(text.removeprefix("\ufeff"), newline=""), name))


def line(**fields: Any) -> str:
    """Return a line of a JSONL file."""
    return json.dumps(fields)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_jsonl(end: str) -> None:
    """Each line is an input, whatever ends it; blank lines are skipped, and the last one needs no end."""
    lines = ['\ufeff"a"', "", line(message="b", key="größe"), line(parameters={"日本": 1})]
    expected = ["a", {"message": "b", "key": "größe"}, {"parameters": {"日本": 1}}]
    assert inputs_in(end.join(lines), "in.jsonl") == expected


def test_a_field_that_is_not_known() -> None:
    """The name of a field comes from a file, and is shown without what a terminal would obey."""
    with pytest.raises(InvalidInputError) as raised:
        inputs_in(line(**{"a\x1b[31m\nNoukai job 1 \ud800": 1}), "in.jsonl")
    assert "line 1 has a" in str(raised.value)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv(end: str) -> None:
    """Each row is an input; a field in quotes may contain line ends, and a column may have any name."""
    lines = ["\ufeffkey,größe,message", 'k,3,"a', 'b"', ",,c"]
    assert inputs_in(end.join(lines), "in.csv") == [
        {"message": f"a{end}b", "key": "k", "parameters": {"größe": "3"}},
        {"message": "c", "key": "", "parameters": {"größe": ""}},
    ]


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        (line(message=7), "message is 7"),
        (line(message=""), "neither message nor parameters is given"),
        (line(), "neither message nor parameters is given"),
        ('""', "neither message nor parameters is given"),
        (line(message="a", parameters=[1]), r"parameters is \[1\]"),
        (line(message="a", parameters={"x": float("nan")}), r"parameters\['x'\] is nan"),
        (line(message="a", block_overrides={"step": 1}), r"block_overrides\['step'\] is 1"),
        (line(message="a", key=7), "key is 7"),
        (line(message="a", key="\ud800"), "key holds half of a surrogate pair"),
        (line(message="\ud800"), "half of a surrogate pair"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_line_that_would_be_rejected(text: str, reported: str) -> None:
    """What the submission of an input would refuse is found when the file is checked, with its line."""
    with pytest.raises(InvalidInputError, match=rf"^inputs in\.jsonl, line 2: .*{reported}"):
        inputs_in(f'"good"\n{text}\n', "in.jsonl")


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("message,x,x\na,1,2\n", "line 1: the column 'x' is there 2 times"),
        ("message,\na,1\n", "line 1: the column '' has no name"),
        ("key, message\nk,a\n", "line 1: the column ' message' has no name, or one that begins"),
        ("key;message\na;b\n", "line 1: the column 'key;message': columns are separated by commas"),
        ("message\tx\na\t1\n", r"line 1: the column 'message\\tx': columns are separated by commas"),
        ("Message,key\na,1\n", "line 1: the column 'Message' must be written 'message'"),
        ("message,x\na\n", "line 2: a row without exactly 2 columns"),
        ('message\na\n"b\nc\n', "line 4: no CSV .unexpected end of data"),
        ("message,key\na,1\n,2\n", "line 3: neither message nor parameters is given"),
        ("message,attachments\na,1\n", "line 2: parameters has the key 'attachments'"),
        (f"message\n{'x' * 200_000}\n", r"line 2: no CSV .*131072\)\); use a .jsonl file"),
    ],
)
def test_a_table_that_would_be_misread(text: str, reported: str) -> None:
    """A header or quote that would make paid jobs of something else is an error."""
    with pytest.raises(InvalidInputError, match=rf"^inputs in\.csv, .*{reported}"):
        inputs_in(text, "in.csv")


def test_an_outcome_is_a_line_of_json() -> None:
    """NaN and infinity, which Python's parser takes and strict readers refuse, become null."""
    output = {"scores": [float("nan"), float("inf"), -1.5, 10**30], "ok": True, "none": None}
    row = {"index": 0, "output": output, "seconds": float("-inf")}
    assert json_line(row) == (
        '{"index":0,"output":{"scores":[null,null,-1.5,1000000000000000000000000000000],"ok":true,'
        '"none":null},"seconds":null}'
    )
    assert row["output"] is output
    assert output["scores"][1] == float("inf")


def test_a_deeply_nested_output_with_nan() -> None:
    """What can be written with finite numbers can be written with others, however deep it is."""
    output: Any = float("nan")
    for _ in range(600):
        output = [output]
    assert json_text(output) == "[" * 600 + "null" + "]" * 600
