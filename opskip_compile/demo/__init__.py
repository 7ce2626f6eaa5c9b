"""A small trained Qwen3-VL and the easy-VQA data it answers questions about.

It is large enough that skipping visual rows costs or keeps accuracy measurably, and small enough for a
laptop.
"""
