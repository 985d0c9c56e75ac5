"""`python -m skelpipe.cli`, for torchrun and for interpreters without the script on their path."""

from .main import main

main()
