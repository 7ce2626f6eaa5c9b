"""Passes that write skipping into the graph and move the row selections towards the inputs."""
