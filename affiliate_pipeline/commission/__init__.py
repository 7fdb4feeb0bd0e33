"""What was earned: added up by day, exported, and shown to people."""
