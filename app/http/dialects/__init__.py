"""The dialects, each of which is one module."""

from app.http.dialect import Dialect
from app.http.dialects import native

DIALECTS: tuple[Dialect, ...] = (native.DIALECT,)
NATIVE = native.DIALECT
"""The one of every route that belongs to no other."""
