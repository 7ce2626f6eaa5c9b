"""The command ``opskip``: one file for each subcommand."""
