"""Conditions on rows that Arrow decides as Spark does, with SQL's three values.

Spark parses, resolves and simplifies a condition; `translate` takes over what it can say for sure. NaN equals
itself and is larger than every other number, strings are compared byte by byte, a comparison with null is
null, and only rows of which a condition is true are kept.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

# pyarrow is imported late: conditions travel with the list of files (see `files`).
if TYPE_CHECKING:
    import pyarrow as pa

Value = str | int | float | bool
"""Of a literal; a date is the number of its day since 1970."""

_FLOATS = ("float", "double")
_WHOLE = ("tinyint", "smallint", "int", "bigint")
_ORDERED = (*_WHOLE, *_FLOATS, "string", "date")
_COMPARISONS = {
    "EqualTo": "=",
    "EqualNullSafe": "<=>",
    "LessThan": "<",
    "LessThanOrEqual": "<=",
    "GreaterThan": ">",
    "GreaterThanOrEqual": ">=",
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


class Range(NamedTuple):
    """Bounds of a column's values without nulls and NaN, as Parquet stores them: strings are bytes."""

    lowest: Any
    highest: Any


class Condition(Protocol):
    """What a row is asked. A value, which travels to workers."""

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it reads."""

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        """True, false or null for each row."""

    def may_hold(self, ranges: Mapping[str, Range]) -> bool:
        """Whether it can be true of a row whose columns lie in these ranges."""


class _OfColumn:
    """A condition on one column."""

    column: str

    @property
    def columns(self) -> frozenset[str]:
        return frozenset([self.column])


@dataclass(frozen=True)
class Comparison(_OfColumn):
    """A column against a value; `operator` is one of `= <=> < <= > >=`."""

    operator: str
    column: str
    value: Value

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        import pyarrow as pa
        import pyarrow.compute as pc

        column = batch.column(self.column)
        if pa.types.is_floating(column.type):
            found = self._of_floats(column)
        else:
            found = _function(self.operator)(column, pa.scalar(self.value, column.type))
        return pc.fill_null(found, False) if self.operator == "<=>" else found

    def _of_floats(self, column: pa.Array) -> pa.BooleanArray:
        import pyarrow as pa
        import pyarrow.compute as pc

        is_nan = pc.is_nan(column)  # null for null
        if not math.isnan(self.value):  # type: ignore[arg-type]
            found = _function(self.operator)(column, pa.scalar(self.value, column.type))
            return pc.or_(found, is_nan) if self.operator in (">", ">=") else found
        if self.operator == "<":
            return pc.invert(is_nan)
        if self.operator == "<=":
            return pc.or_(is_nan, pc.invert(is_nan))
        if self.operator == ">":
            return pc.and_(is_nan, pc.invert(is_nan))
        return is_nan

    def may_hold(self, ranges: Mapping[str, Range]) -> bool:
        bounds = ranges.get(self.column)
        if bounds is None:
            return True
        value = self.value.encode() if isinstance(self.value, str) else self.value
        if isinstance(value, float) and (math.isnan(value) or self.operator in (">", ">=")):
            return True  # of NaN, which the bounds leave out
        if self.operator in ("=", "<=>"):
            return not (value < bounds.lowest or value > bounds.highest)
        bound = bounds.lowest if self.operator in ("<", "<=") else bounds.highest
        # Asked the other way round: bounds that are NaN exclude nothing.
        excluded = {"<": operator.ge, "<=": operator.gt, ">": operator.le, ">=": operator.lt}
        return not excluded[self.operator](bound, value)


@dataclass(frozen=True)
class OneOf(_OfColumn):
    """Whether a column has one of some values, none of which is null or a float."""

    column: str
    values: tuple[Value, ...]

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        import pyarrow as pa
        import pyarrow.compute as pc

        column = batch.column(self.column)
        found = pc.is_in(column, value_set=pa.array(self.values, column.type))
        return pc.if_else(pc.is_valid(column), found, pa.scalar(None, pa.bool_()))

    def may_hold(self, ranges: Mapping[str, Range]) -> bool:
        return any(Comparison("=", self.column, value).may_hold(ranges) for value in self.values)


@dataclass(frozen=True)
class IsNull(_OfColumn):
    """Whether a column is null."""

    column: str

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        return batch.column(self.column).is_null()

    def may_hold(self, ranges: Mapping[str, Range]) -> bool:
        return True


@dataclass(frozen=True)
class Not:
    """The opposite; of null, null."""

    condition: Condition

    @property
    def columns(self) -> frozenset[str]:
        return self.condition.columns

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        import pyarrow.compute as pc

        return pc.invert(self.condition.mask(batch))

    def may_hold(self, ranges: Mapping[str, Range]) -> bool:
        return True


@dataclass(frozen=True)
class _Pair:
    """Two conditions in one."""

    left: Condition
    right: Condition

    @property
    def columns(self) -> frozenset[str]:
        return self.left.columns | self.right.columns


class Both(_Pair):
    """`and`."""

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        import pyarrow.compute as pc

        return pc.and_kleene(self.left.mask(batch), self.right.mask(batch))

    def may_hold(self, ranges: Mapping[str, Range]) -> bool:
        return self.left.may_hold(ranges) and self.right.may_hold(ranges)


class Either(_Pair):
    """`or`."""

    def mask(self, batch: pa.RecordBatch) -> pa.BooleanArray:
        import pyarrow.compute as pc

        return pc.or_kleene(self.left.mask(batch), self.right.mask(batch))

    def may_hold(self, ranges: Mapping[str, Range]) -> bool:
        return self.left.may_hold(ranges) or self.right.may_hold(ranges)


def all_of(conditions: list[Condition]) -> Condition | None:
    """One condition of several; None of none."""
    return functools.reduce(Both, conditions) if conditions else None


def translate(expression: Any) -> Condition | None:
    """What an expression of Spark's plan asks; None where that cannot be said for sure.

    Args:
        expression: of a resolved and optimized plan, in the JVM. Casts in it, which Spark has found that it
            cannot do without, are not translated.
    """
    kind = expression.getClass().getSimpleName()
    if kind in ("And", "Or"):
        left = translate(expression.left())
        right = None if left is None else translate(expression.right())
        if left is None or right is None:
            return None
        return Both(left, right) if kind == "And" else Either(left, right)
    if kind == "Not":
        inner = translate(expression.child())
        return None if inner is None else Not(inner)
    if kind in ("IsNull", "IsNotNull"):
        name = _column(expression.child())
        if name is None:
            return None
        return IsNull(name) if kind == "IsNull" else Not(IsNull(name))
    if kind in ("In", "InSet"):
        return _one_of(expression, kind)
    if kind in _COMPARISONS:
        return _comparison(_COMPARISONS[kind], expression.left(), expression.right())
    if kind == "AttributeReference" and _type(expression) == "boolean":
        return Comparison("=", str(expression.name()), True)
    return None


def _comparison(sign: str, left: Any, right: Any) -> Condition | None:
    if _column(left) is None:
        left, right, sign = right, left, _MIRRORED.get(sign, sign)
    name, value = _column(left), _literal(right)
    type_ = _type(left)
    if name is None or value is None or type_ != _type(right):
        return None
    if type_ in _ORDERED or (type_ == "boolean" and sign in ("=", "<=>")):
        return Comparison(sign, name, value)
    return None


def _one_of(expression: Any, kind: str) -> Condition | None:
    # Not of floats: what a set of Spark's says of -0.0 depends on the number of its values.
    if kind == "In":
        name, type_ = _column(expression.value()), _type(expression.value())
        items = [expression.list().apply(place) for place in range(expression.list().size())]
        if any(_type(item) != type_ for item in items):
            return None
        values = [_literal(item) for item in items]
    else:
        name, type_ = _column(expression.child()), _type(expression.child())
        found = expression.hset().toSeq()
        values = [_plain(found.apply(place)) for place in range(found.size())]
    if name is None or type_ not in (*_WHOLE, "string", "date"):
        return None
    known = tuple(value for value in values if value is not None)
    return OneOf(name, known) if len(known) == len(values) else None


def _column(expression: Any) -> str | None:
    is_column = expression.getClass().getSimpleName() == "AttributeReference"
    return str(expression.name()) if is_column else None


def _literal(expression: Any) -> Value | None:
    return _plain(expression.value()) if expression.getClass().getSimpleName() == "Literal" else None


def _plain(value: Any) -> Value | None:
    """A value of Catalyst's in Python; strings are objects there."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value.toString()) if value.getClass().getSimpleName() == "UTF8String" else None


def _type(expression: Any) -> str:
    return str(expression.dataType().simpleString())


def _function(sign: str) -> Callable[..., Any]:
    import pyarrow.compute as pc

    names = {"<": "less", "<=": "less_equal", ">": "greater", ">=": "greater_equal"}
    function: Callable[..., Any] = getattr(pc, names.get(sign, "equal"))
    return function
