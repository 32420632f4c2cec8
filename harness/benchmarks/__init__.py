"""What is asked, and from which rows?

`catalog` finds and loads tasks by name, `task_folders` says where they come from (plugins too), `rows` checks rows and
their content hash, `partition` splits a task into a gate half and a report half, `option_order` permutes options, and
`lm_eval_tasks` wraps lm-eval's tasks. Others use `catalog.TaskLoader`; a task's `rows.py` uses `rows`.
"""
