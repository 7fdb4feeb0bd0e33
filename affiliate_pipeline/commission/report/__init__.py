"""What people see of a day: a page, a chart and a text. Amounts are shown with every digit; only bar heights are floats."""
