"""Timing one prefill: decoders of real sizes, token dropping as a baseline, peak memory, where the time goes."""
