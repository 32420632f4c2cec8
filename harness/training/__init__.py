"""Train, judge, retry, promote."""
