"""What a teacher runs: a class's notebooks marked, each submission in a process that can harm nothing."""
