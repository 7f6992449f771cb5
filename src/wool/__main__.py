"""`python -m wool`: the command line."""

from wool.cli import main

main()
