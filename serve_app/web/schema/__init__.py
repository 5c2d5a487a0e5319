"""Schemas: the fields that requests are parsed by, JSON Schema, OpenAPI and its page."""
