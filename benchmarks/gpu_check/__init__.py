"""What a GPU is asked in the few minutes that there is one: is it right, and how fast.

    python -m benchmarks.gpu_check                    # ends within 9 minutes
    python -m benchmarks.gpu_check --quick            # within 3
    python -m benchmarks.gpu_check --device cpu --quick --lower eager    # the same way on a CPU, at small size

Needs torch, transformers and this package; no network, no pretrained weights. Each step runs in a process of its own
with a limit of its own, prints as it goes, and writes what it found at once into a file of ``--out``: whatever ends it,
nothing is lost. The exit code is 1 if an answer was wrong or a step failed.
"""
