"""The requests that clients send and the answers they get, as pydantic models.

Requests are validated with these models. Answers are written by hand (no pydantic per token); their models
are the published description (`/openapi.json`), and the tests hold every answer against them.
"""
