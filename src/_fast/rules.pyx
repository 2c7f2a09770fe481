"""The rules that a value can break, in words."""

from pgtick.errors import RowError

# The words are those of pgtick/rules.py; the two that depend on the column are made in refusal().
cdef dict _RULES = {
    IS_NULL: "must not be NULL",
    NOT_NUMBER: "must be a number: float, Decimal, int, or decimal text",
    NOT_FINITE: "must be finite",
    NOT_POSITIVE: "must be > 0",
    NEGATIVE: "must be >= 0",
    NUMERIC_RANGE: "must fit numeric",
    NOT_INT: "must be an int",
    INT2_RANGE: "must fit int2",
    INT4_RANGE: "must fit int4",
    INT8_RANGE: "must fit int8",
    FLOAT4_RANGE: "must fit float4",
    NOT_FLOAT: "must be a float",
    NOT_STR: "must be a str",
    HAS_NUL: "must not contain NUL",
    NOT_UNICODE: "must be valid Unicode",
    NOT_TIME: "must be an aware datetime, or an int with its time_unit named",
    NAIVE: "must be aware: a naive datetime would be read in the machine's zone",
    NOT_BOOL: "must be a bool",
    NOT_DATE: "must be a date without a time",
    NOT_UUID: "must be a UUID or its text",
    NOT_BYTES: "must be bytes or another buffer",
    NOT_JSON: "must be a JSON value with finite numbers, or msgspec.Raw",
    MISSING: "must be an attribute of the row",
    TOO_LONG: "must be shorter than 1 GB",
}


cdef object refusal(str table, Py_ssize_t index, object column, object value, int broken):
    """Return the RowError of a value of a Column."""
    if broken == NOT_ALLOWED:
        rule = f"must be one of {', '.join(column.rule)}"
    elif broken == OUT_OF_WINDOW:
        rule = f"must lie between 2009-01-01 and now + {column.max_ahead.days} d"
    else:
        rule = _RULES[broken]
    return RowError(table, index, column.name, value, rule)
