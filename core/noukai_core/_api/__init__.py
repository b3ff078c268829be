"""Calls of the API and what their responses mean. No I/O."""
