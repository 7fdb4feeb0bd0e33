"""A day's report: page, charts and text. Amounts keep every digit; bar heights are rounded."""
