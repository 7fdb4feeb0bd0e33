"""`python -m affiliate_pipeline.cli` is `affiliate-pipeline`."""

from affiliate_pipeline.cli import main

main()
