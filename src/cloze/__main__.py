"""`python -m cloze` is the command `cloze`."""

from cloze.cli import main

main()
