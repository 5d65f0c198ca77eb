"""Strategies, optimiser, one step in the graph, one loop for every task."""
