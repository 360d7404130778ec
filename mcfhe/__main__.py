"""``python -m mcfhe``: the same as the ``mcfhe`` command."""

from mcfhe.cli import main

main()
