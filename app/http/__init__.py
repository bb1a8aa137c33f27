"""HTTP, and Flask: nothing else in Reef knows either."""

from app.http.app import create_app

__all__ = ["create_app"]
