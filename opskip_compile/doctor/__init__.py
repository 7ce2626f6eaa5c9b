"""What this machine and this installation are, and whether they can skip: what belongs into a report of a fault."""
