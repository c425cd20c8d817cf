"""What was submitted, what became of it, and who works on it: a SQL database."""
