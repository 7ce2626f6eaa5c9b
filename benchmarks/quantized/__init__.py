"""Operators that leave rows out of decoders with quantised weights, against the oracle."""
