"""What a compile did, as plain data: the report and the graph diff in all their forms."""
