"""The demo: the packaged model answers questions of easy-VQA, dense and skipping its visual rows."""
