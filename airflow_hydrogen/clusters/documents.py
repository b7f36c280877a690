"""Reading documents of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from airflow_hydrogen.contract.errors import ClusterResponseError


@contextmanager
def reading(url: str) -> Iterator[None]:
    """Turn a field that is missing or of another kind into an error that names the address and the field.

    Raises:
        ClusterResponseError: the document has another form.
    """
    try:
        yield
    except KeyError as error:
        raise ClusterResponseError(url, f"answered with a document without the field {error}") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ClusterResponseError(url, f"answered with a document of another form: {error}") from None
