"""What people see: the money by day, as a page, a chart and a text. Amounts are never floats here, not even to draw them."""
