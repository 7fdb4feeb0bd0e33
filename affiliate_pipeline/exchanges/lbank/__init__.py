"""The LBank affiliate API: users, commissions, trades, and deposits and withdrawals."""
