"""What people see of the long table: summaries, terminal and notebook tables, figures, pictures."""
