"""What the exchanges are and do: the only place that knows them."""
