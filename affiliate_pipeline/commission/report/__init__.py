"""The report: pages, charts and text. Sums are exact; they are rounded only for display, as bar heights are."""
