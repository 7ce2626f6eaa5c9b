"""The graph passes: everything between Dynamo's graph and the graph that is lowered."""
