"""`python -m pipelines` is `mum-pipeline`."""

from pipelines.cli import main

main()
