"""``python -m helios`` is ``helios``; ``torchrun -m helios train ...`` starts every rank."""

from helios.cli.main import main

main()
