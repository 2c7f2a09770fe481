"""numeric as double, fixed point, decimal128 and Decimal: exactly what its text says, or an error."""

from __future__ import annotations

import math
import random
import struct
import sys
from collections.abc import Iterable, Iterator
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from wire import HEADER, TRAILER, decimal_texts, oracle

from pgtick._fast.decode import CopyDecoder
from pgtick._fast.result import Columns
from pgtick.errors import DecodeError

pytestmark = pytest.mark.core
EXACT = Context(prec=2000)
FORMS = (("fixed", 8), ("decimal128", 38, 8), ("decimal",))


@pytest.fixture(autouse=True, scope="module")
def long_integers() -> Iterator[None]:
    """Let Python's int, the oracle's tool, take any number of digits."""
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    yield
    sys.set_int_max_str_digits(limit)


def stream(values: Iterable[bytes]) -> bytes:
    rows = b"".join(struct.pack(">hi", 1, len(data)) + data for data in values)
    return HEADER + rows + TRAILER


def decode(values: Iterable[bytes], form: tuple[object, ...] = ("float",)) -> Columns:
    decoder = CopyDecoder([("x", 1700, form)])
    decoder.feed(stream(values))
    decoder.finish()
    return decoder.take()


def check_doubles(texts: list[str]) -> None:
    """Compare bits, so that no NaN and no sign escapes; numeric has no negative zero."""
    got = decode(map(oracle, texts))["x"].view("i8")
    wanted = (np.array([float(text) for text in texts]) + 0.0).view("i8")
    different = np.flatnonzero(got != wanted)
    assert not len(different), texts[different[0]]


def random_texts(n: int, seed: int) -> Iterator[str]:
    """Yield prices, any doubles' texts, halves between doubles, and long and far decimals."""
    dice = random.Random(seed)
    for i in range(n):
        kind = i % 6
        if kind == 0:
            yield f"{dice.randrange(10 ** dice.randrange(1, 19)) * 10 ** -dice.randrange(9):.8f}"
        elif kind == 1:
            yield repr(dice.uniform(-1, 1) * 10.0 ** dice.randrange(-300, 300))
        elif kind == 2:  # any finite double, subnormal ones too
            yield repr(math.ldexp(dice.getrandbits(53), dice.randrange(-1074, 970)))
        elif kind == 3:  # a half-way point in full, and its neighbours
            x = math.ldexp(dice.getrandbits(53) | 1 << 52, dice.randrange(-120, 60))
            half = EXACT.divide(EXACT.add(Decimal(x), Decimal(math.nextafter(x, math.inf))), Decimal(2))
            yield f"{half:f}" + dice.choice(["", "0000000001" if "." in f"{half:f}" else ""])
        elif kind == 4:
            yield f"{dice.randrange(10 ** dice.randrange(1, 60))}e{dice.randrange(-80, 60)}"
        else:  # around 2^53 and 10^22, where the short way ends
            yield f"{2**53 + dice.randrange(-3, 4)}{'0' * dice.randrange(24)}e-{dice.randrange(24)}"


def test_double_is_what_float_makes_of_the_text_for_50_000_values() -> None:
    check_doubles(list(random_texts(50_000, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_double_is_what_float_makes_of_the_text_for_a_million_values(seed: int) -> None:
    check_doubles(list(random_texts(100_000, 100 + seed)))


@given(st.lists(decimal_texts(), min_size=1, max_size=50))
def test_double_is_what_float_makes_of_any_text(texts: list[str]) -> None:
    check_doubles(texts)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_double_s_own_text_comes_back_as_the_double(values: list[float]) -> None:
    check_doubles([repr(value) for value in values])


def test_double_at_the_edges_is_right() -> None:
    check_doubles(
        [
            "0",
            "0.00000000",
            "9007199254740993",
            "9007199254740992.5",
            "1e22",
            "1e23",
            "8.5e22",
            "5e-324",
            "2.4703282292062327e-324",
            "2.4703282292062328e-324",
            "2.2250738585072011e-308",
            "1.7976931348623157e308",
            "1.7976931348623158e308",
            "1.7976931348623159e308",
            "-1e400",
            "1e-400",
            "1e-16000",
            "44.123456",
            "5000000000.000001",
            "0." + "3" * 5000,
            "1" + "0" * 900 + "." + "0" * 900 + "1",
            "0." + "0" * 400 + "7" * 3000,
        ]
    )


def test_half_way_point_with_a_digit_far_behind_is_rounded_up() -> None:
    half = EXACT.add(1, EXACT.power(2, -53))
    texts = [f"{half:f}", f"{half:f}" + "0" * 2000 + "1", f"-{half:f}" + "0" * 2000 + "1"]
    check_doubles(texts)
    assert decode(map(oracle, texts))["x"].tolist() == [1.0, 1.0000000000000002, -1.0000000000000002]


def test_nan_and_infinities_are_doubles_and_nothing_else() -> None:
    special = {"NaN": 0xC000, "Infinity": 0xD000, "-Infinity": 0xF000}
    wire = [struct.pack(">HhHH", 0, 0, sign, 0) for sign in special.values()]
    got = decode(wire)["x"].tolist()
    assert math.isnan(got[0])
    assert got[1:] == [math.inf, -math.inf]
    assert not decode(wire).masks["x"].any()
    for form in FORMS:
        for name, data in zip(special, wire, strict=True):
            with pytest.raises(DecodeError) as caught:
                decode([oracle("1"), data], form)
            assert caught.value.reason == f"{name} is not finite: only float64 holds it"
            assert (caught.value.row, caught.value.column) == (1, "x")


@given(decimal_texts(), st.integers(-12, 38))
@example("9223372036854775807", 0)
@example("-9223372036854775807", 0)
@example("9223372036854775808", 0)
@example("92233720368.54775807", 8)
@example("12000", -3)
@example("12345", -1)
def test_fixed_point_is_exact_or_an_error_that_shows_the_value(text: str, scale: int) -> None:
    exact = Fraction(Decimal(text)) * Fraction(10) ** scale
    if exact.denominator == 1 and abs(exact) < 2**63:
        assert decode([oracle(text)], ("fixed", scale))["x"].tolist() == [int(exact)]
        return
    with pytest.raises(DecodeError) as caught:
        decode([oracle(text)], ("fixed", scale))
    assert caught.value.column == "x"
    assert caught.value.row == 0
    shown, _, rule = caught.value.reason.partition(" ")
    assert f"{Decimal(text):f}".lstrip("+").startswith(shown)
    assert "decimals" in rule or "too large" in rule


@given(decimal_texts(), st.integers(1, 38), st.integers(-12, 38))
@example("1", 38, 37)
@example("10", 38, 37)
@example("-" + "9" * 38, 38, 0)
@example("1" + "0" * 38, 38, 0)
def test_decimal128_is_exact_or_an_error(text: str, precision: int, scale: int) -> None:
    exact = Fraction(Decimal(text)) * Fraction(10) ** scale
    if exact.denominator == 1 and abs(exact) < 10**precision:
        (value,) = decode([oracle(text)], ("decimal128", precision, scale)).objects("x")
        assert value == Decimal(text)
        return
    with pytest.raises(DecodeError, match=r"decimals|too large"):
        decode([oracle(text)], ("decimal128", precision, scale))


@given(st.lists(decimal_texts(), max_size=20))
def test_decimal_is_the_text_with_its_scale(texts: list[str]) -> None:
    for value, text in zip(decode(map(oracle, texts), ("decimal",)).objects("x"), texts, strict=True):
        wanted = Decimal(text)
        assert value == wanted
        assert value.as_tuple().exponent == min(int(wanted.as_tuple().exponent), 0)


def test_largest_and_smallest_numeric_are_read() -> None:
    texts = ["9" * 131072 + "." + "9" * 16383, "0." + "0" * 16382 + "1"]
    values = decode(map(oracle, texts), ("decimal",)).objects("x")
    assert [f"{value:f}" for value in values] == texts
    assert decode(map(oracle, texts))["x"].tolist() == [math.inf, 0.0]


@pytest.mark.parametrize("form", [("float",), *FORMS])
def test_short_bytes_of_a_huge_weight_cost_no_memory_and_no_crash(form: tuple[object, ...]) -> None:
    hostile = struct.pack(">HhHHH", 1, 32767, 0, 16383, 9999)
    if form[0] in ("float", "decimal"):
        assert decode([hostile] * 100, form).n_bytes < 10_000
    else:
        with pytest.raises(DecodeError, match="too large"):
            decode([hostile], form)
