"""`python -m multispin` is the command `multispin`."""

from multispin.cli.main import main

main()
