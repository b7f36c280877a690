"""Templates whose result is text, also in a DAG that renders them to Python's types.

`render_template_as_native_obj=True` makes a number of what looks like one: a partition "20240102" becomes an
int, "2024_01" becomes 202401 and "00" becomes 0, from which nobody can tell what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    from airflow.sdk.definitions.context import Context

_VALUES = ("where_args", "query_args")


def renders_natively(environment: jinja2.Environment) -> bool:
    """Whether an environment's templates render to Python's types."""
    from jinja2.nativetypes import NativeEnvironment

    return isinstance(environment, NativeEnvironment)


def render_as_text(
    content: Any, context: Context, environment: jinja2.Environment, otherwise: Callable[[Any], Any]
) -> Any:
    """Render the templates in a container to text.

    Args:
        content: a mapping or a list, with further ones in it.
        context: Airflow's.
        environment: one whose templates render to text.
        otherwise: renders what is no text: XComs, numbers, and values that are bound to names in SQL.
    """
    from airflow.sdk.definitions.context import render_template_to_string

    if isinstance(content, str):
        return render_template_to_string(environment.from_string(content), context)
    if isinstance(content, Mapping):
        return {
            key: otherwise(item) if key in _VALUES else render_as_text(item, context, environment, otherwise)
            for key, item in content.items()
        }
    if isinstance(content, (list, tuple)):
        return [render_as_text(item, context, environment, otherwise) for item in content]
    return otherwise(content)
