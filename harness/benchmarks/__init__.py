"""What is asked, and by which rows: tasks, their data, their partitions and option orders."""
