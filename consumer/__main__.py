"""`python -m consumer` is `cfo-sync`."""

from consumer.cli import main

main()
