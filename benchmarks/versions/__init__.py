"""The whole suite under every release that is supported, in an environment of its own for each, and one table.

    python -m benchmarks.versions                             # all of them, one after the other
    python -m benchmarks.versions torch2.15                   # those whose names contain this
    python -m benchmarks.versions py3.12 --part models rest   # some of its tests now, the others later
    python -m benchmarks.versions --list                      # names, parts, and what is done

An environment takes some gigabytes of ``.venvs`` and stays there (``--remove`` drops each after its run). Tests run
part by part. What a part gave is kept beside its environment until the code changes, so that a run that was cut short
goes on where it stopped. Once all parts of a combination are there, it goes into ``versions.json`` and ``VERSIONS.md``.
Needs nothing but Python. pip takes its settings from the environment, as ever.
"""
