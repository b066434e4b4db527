"""`python -m tilecc.cli`: the same as the `tilecc` program, for environments without its script."""

from tilecc.cli.main import main

main()
