"""A day's report: page, charts and text. Amounts have every digit; bar heights are rounded."""
