"""Targets: the grammar, what it resolves to, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InvalidInputError
from autocompress.targets import BYTES_PER_UNIT, FileSize, WeightBits, parse_target

ORIGINAL_BYTES = 1_724_320
WEIGHTS = 430_500


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("50KB", 50_000),
        ("50kb", 50_000),
        (" 50 KB ", 50_000),
        ("50KiB", 51_200),
        ("50kib", 51_200),
        ("1.5MB", 1_500_000),
        (".5MiB", 524_288),
        ("4000B", 4000),
        ("4000b", 4000),
        ("1.0009KB", 1000),  # rounded down: the file is at most this
        ("1%", 17_243),
        ("0.5%", 8621),
        ("100x", 17_243),
        ("100X", 17_243),
        ("345.5x", 4990),
        ("weights:836x", 16_478),
        ("weights:1975x", 6975),
        ("WEIGHTS:2120X", 6498),
        ("weights:6498bits", 6498),
        ("weights:1bit", 1),
    ],
)
def test_budget_of_a_target(text, budget):
    assert parse_target(text).resolve(ORIGINAL_BYTES, WEIGHTS) == budget


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0KB", "above zero"),
        ("0.0%", "above zero"),
        ("0.0001KB", "at least one byte"),
        ("-5KB", "a number above zero and its unit"),
        ("nan", "a number above zero and its unit"),
        ("nanKB", "a number above zero and its unit"),
        ("infKB", "a number above zero and its unit"),
        ("1e3KB", "a number above zero and its unit"),
        ("5", "a number above zero and its unit"),
        ("", "a number above zero and its unit"),
        ("KB", "a number above zero and its unit"),
        ("9" * 5000 + "KB", "a number above zero and its unit"),
        ("50,5KB", "a number above zero and its unit"),
        ("\u0665KB", "a number above zero and its unit"),
        ("5 parsec", "'parsec' is no unit"),
        ("50K", "'K' is no unit"),
        ("200%", "more than the original"),
        ("0.5x", "more than the original"),
        ("weights:0x", "above zero"),
        ("weights:0.5x", "at least 1"),
        ("weights:50KB", "as a factor"),
        ("weights:812b", "as a factor"),
        ("weights:2.5bits", "as a factor"),
        ("weights:", "a number above zero and its unit"),
        ("size:50KB", "'size' is no kind of target"),
        ("energy:0%", "above zero"),
        ("energy:140%", "at most 100"),
        ("energy:2.5x", "in percent"),
        ("energy:40", "a number above zero and its unit"),
    ],
)
def test_refusal_names_the_value_and_shows_right_ones(text, reason):
    with pytest.raises(InvalidInputError, match=reason) as caught:
        parse_target(text)
    assert repr(text) in str(caught.value)
    assert '"50KB"' in str(caught.value)


@pytest.mark.parametrize("value", [None, 5.0, True, b"50KB"])
def test_only_strings_and_targets_are_parsed(value):
    with pytest.raises(InvalidInputError, match="a target is a string"):
        parse_target(value)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"bits": 5, "factor": 5},
        {"bits": 0},
        {"bits": 2.5},
        {"factor": 0.5},
        {"factor": "836"},
        {"factor": float("nan")},
        {"factor": float("inf")},
    ],
)
def test_weight_bits_refuses(arguments):
    with pytest.raises(InvalidInputError, match="cannot use the target"):
        WeightBits(**arguments)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, None])
def test_file_size_refuses(size):
    with pytest.raises(InvalidInputError, match="cannot use the target"):
        FileSize(size)


def test_equal_if_they_ask_the_same():
    assert FileSize("50KB") == FileSize(50_000) == FileSize("0.05mb")
    assert FileSize("1%") == FileSize("100x")
    assert FileSize("50KB") != FileSize("50KiB")
    assert WeightBits(factor=836) == parse_target("weights:836x") == WeightBits(factor=836.0)


def test_targets_pass_through_and_print_as_asked():
    target = FileSize("50kib")
    assert parse_target(target) is target
    assert str(target) == "50KiB"
    assert str(FileSize(50_000)) == "50000B"
    assert str(WeightBits(bits=6498)) == "weights:6498bits"


AMOUNTS = st.decimals(min_value="1", max_value="100", places=3).map(str)


@given(AMOUNTS, st.sampled_from([*BYTES_PER_UNIT, "%", "x"]), st.sampled_from(["", "weights:"]))
def test_text_round_trips(amount, unit, kind):
    target = parse_target(f"weights:{amount}x" if kind else amount + unit)
    assert parse_target(str(target)) == target
    assert parse_target(str(target).upper()) == target
