"""What every pass knows of a graph: where its nodes come from and how large they are."""
