"""Tasks for medbench: one folder per benchmark, with a copy of medbench's `tasks/_medbench_yaml` beside them."""
