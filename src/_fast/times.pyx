"""Instants and dates to fields."""

from libc.stdint cimport int64_t, uint32_t, uint64_t
cimport cpython.datetime as dt

from pgtick._fast.ints cimport whole
from pgtick._fast.rules cimport (
    DATE_RANGE, NAIVE, NOT_DATE, NOT_TIME, OUT_OF_WINDOW, Clock, Plan,
)
from pgtick._fast.wire cimport Buffer, put_field4, put_field8

from datetime import datetime as _datetime, timedelta as _timedelta, timezone as _timezone

from pgtick.rules import EARLIEST as _FIRST_INSTANT

cdef extern from *:
    """
    #include <chrono>

    static inline int64_t pgtick_now_us() {
        using namespace std::chrono;
        return duration_cast<microseconds>(system_clock::now().time_since_epoch()).count();
    }

    #define PGTICK_DAY 86400000000LL
    #define PGTICK_LATEST 9000000000000000000LL
    """
    const int64_t _DAY "PGTICK_DAY"  # µs
    const int64_t _LATEST "PGTICK_LATEST"  # µs
    int64_t now_us "pgtick_now_us"() noexcept nogil

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1

dt.import_datetime()

cdef dict _UNITS = {"s": (1000000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}

cdef object _UTC = _timezone.utc
cdef object _EPOCH = _datetime(2000, 1, 1, tzinfo=_timezone.utc)
cdef object _MICROSECOND = _timedelta(microseconds=1)
cdef int64_t _EPOCH_UNIX = 946684800000000
cdef int64_t _EARLIEST = (_FIRST_INSTANT - _EPOCH) // _MICROSECOND
cdef int64_t _EPOCH_DAY = 10957


cdef int set_clock(Clock *clock, object time_unit) except -1:
    """``time_unit``: s, ms, us or ns, what integer times count; None refuses them."""
    clock.now = now_us() - _EPOCH_UNIX
    clock.multiply = 0
    clock.divide = 1
    clock.day = 0
    if time_unit is not None:
        if time_unit not in _UNITS:
            raise ValueError(f"time_unit is s, ms, us or ns, not {time_unit!r}")
        clock.multiply, clock.divide = _UNITS[time_unit]
    return 0


cdef inline int64_t _civil_day(int year, int month, int day) noexcept nogil:
    """Return the days from 2000-01-01 (years begin in March, so that the leap day is the last)."""
    cdef int y = year - (month <= 2)
    cdef int era = y // 400
    cdef int year_of_era = y - era * 400
    cdef int day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    cdef int day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return <int64_t>era * 146097 + day_of_era - 730425


cdef int put_timestamptz(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    cdef int64_t us
    cdef int overflow = 0
    if dt.PyDateTime_Check(value):
        us = _civil_day(
            dt.PyDateTime_GET_YEAR(value), dt.PyDateTime_GET_MONTH(value), dt.PyDateTime_GET_DAY(value)
        )
        us = us * 24 + dt.PyDateTime_DATE_GET_HOUR(value)
        us = us * 60 + dt.PyDateTime_DATE_GET_MINUTE(value)
        us = us * 60 + dt.PyDateTime_DATE_GET_SECOND(value)
        us = us * 1000000 + dt.PyDateTime_DATE_GET_MICROSECOND(value)
        if dt.datetime_tzinfo(value) is not _UTC:
            offset = value.utcoffset()
            if offset is None:
                return NAIVE
            if not dt.PyDelta_Check(offset):
                raise TypeError(f"utcoffset() returned {offset!r}")
            us -= (
                <int64_t>dt.timedelta_days(offset) * 86400 + dt.timedelta_seconds(offset)
            ) * 1000000 + dt.timedelta_microseconds(offset)
    else:
        value = whole(value)
        if clock.multiply == 0 or value is None:
            return NOT_TIME
        us = PyLong_AsLongLongAndOverflow(value, &overflow)
        if overflow:
            return OUT_OF_WINDOW
        return put_count(out, plan, us, clock.multiply, clock.divide, clock)
    return _put_instant(out, plan, us, clock)


cdef int _put_instant(Buffer *out, Plan *plan, int64_t us, Clock *clock) except -1 nogil:
    """Write an instant of µs since 2000."""
    if us < _EARLIEST or us > clock.now + plan.max_ahead:
        return OUT_OF_WINDOW
    if plan.is_time:
        clock.day = us // _DAY + _EPOCH_DAY
    return put_field8(out, <uint64_t>us)


cdef int put_count(
    Buffer *out, Plan *plan, int64_t count, int64_t multiply, int64_t divide, Clock *clock
) except -1 nogil:
    """Write the instant of count x multiply / divide µs since 1970."""
    # Before 1970 is before 2009, so only the far future has to be kept from overflowing.
    if count < 0 or (multiply > 1 and count > _LATEST // multiply):
        return OUT_OF_WINDOW
    count = count * multiply
    # Constants divide faster.
    count = count // 1000 if divide == 1000 else count // divide if divide > 1 else count
    return _put_instant(out, plan, count - _EPOCH_UNIX, clock)


cdef int put_day(Buffer *out, int64_t day) except -1 nogil:
    """Write a date of days since 1970."""
    if not -719162 <= day <= 2932896:
        return DATE_RANGE
    return put_field4(out, <uint32_t>(day - _EPOCH_DAY))


cdef int put_date(Buffer *out, Plan *plan, object value, Clock *clock) except -1:
    if not dt.PyDate_Check(value) or dt.PyDateTime_Check(value):
        return NOT_DATE
    return put_field4(out, <uint32_t>_civil_day(
        dt.PyDateTime_GET_YEAR(value), dt.PyDateTime_GET_MONTH(value), dt.PyDateTime_GET_DAY(value)
    ))
