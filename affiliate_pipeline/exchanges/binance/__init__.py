"""Binance Link: rebates of the partner, kickbacks of the client, and customer ids."""
