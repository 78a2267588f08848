"""Conditioners: maps from a context set to the parameters of a field."""
