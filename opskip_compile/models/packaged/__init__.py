"""The small trained model that ships with the package, which commands call ``demo``: weights, processor, schedule."""
