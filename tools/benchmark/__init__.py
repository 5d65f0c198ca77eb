"""Ours and the peers side by side: the parts of tools/benchmark.py."""
