"""What to report about failures and overdue days, and its delivery. Nothing here imports Dagster."""
