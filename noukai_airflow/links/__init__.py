"""Links from tasks to Noukai."""
