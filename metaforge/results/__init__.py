"""From the scores of test tasks to tables, pictures and pages."""
