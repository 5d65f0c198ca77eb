"""What tools/evidence.py consists of: models to compare, their runs, scores, tables and picture."""
