"""The daemon: domains and their life cycle, behind an HTTP API."""
