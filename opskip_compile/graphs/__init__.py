"""Graphs as data: records of their nodes, and the difference of two of them. Knows torch.fx and no pass."""
