"""The Dagster definitions: assets, checks, schedules, sensors and their resource.

They translate between Dagster and the packages below, which do not know Dagster. No SQL and no landing logic is here.
"""
