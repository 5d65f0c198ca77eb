"""Formats of stored models, read and written as pure data."""
