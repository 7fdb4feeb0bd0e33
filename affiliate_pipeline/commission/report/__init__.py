"""The report of a day: page, charts and text. Amounts keep every digit; only bar heights are floats."""
